/* What plan recommends on machines that are made up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "made_up.h"
#include "plan/advice.h"

static mx_plan_fit fit[MX_PLAN_KNOWN + 1];
static mx_bytes text;

/* All known models; `asked` (-1: none) comes first, too. */
static void advise(const mx_plan_machine *m, int64_t context, int streams, int asked) {
    const mx_plan_request r = {context, streams, MX_F16};
    mx_error error;
    int count = 0;
    for (int i = asked < 0 ? 0 : -1; i < MX_PLAN_KNOWN; i++) {
        if (i >= 0 && i == asked) continue;
        const mx_plan_model model = made_up_known(i < 0 ? asked : i);
        assert_int_equal(mx_plan_fit_make(&model, m, &r, &fit[count++], &error), MX_OK);
    }
    mx_bytes_clear(&text);
    assert_true(mx_plan_advise(m, &r, fit, count, asked >= 0, &text));
}

static void says(const char *part) {
    if (!text.data || !strstr(text.data, part)) fail_msg("\"%s\" expected in:\n%s", part, text.data ? text.data : "");
}

static void says_not(const char *part) {
    if (text.data && strstr(text.data, part)) fail_msg("\"%s\" not expected in:\n%s", part, text.data);
}

static void a_small_laptop_is_too_small(void **state) {
    (void)state;
    mx_plan_machine m = made_up_laptop();
    advise(&m, 8192, 1, -1);
    says("gpt-oss-20b-gguf needs 12.");
    says(" GB, 9.0 GB are free of 16.0 GB: end other programs until 3.");
    says("mxrun -m stories");
    says_not("Run ");
    m.memory_total = 10e9;
    advise(&m, 8192, 1, -1);
    says("and this machine has 10.0 GB");
    m.memory_free = 13e9; /* AVX2 has no BF16: the precision is fp32 */
    m.memory_total = 16e9;
    advise(&m, 8192, 1, -1);
    says("Run gpt-oss-20b-gguf: it fits with 1 stream of 8192 tokens");
    says_not("mixed");
}

static void with_24_gb_it_is_20b(void **state) {
    (void)state;
    const mx_plan_machine m = made_up_zen5(50);
    advise(&m, 8192, 1, -1);
    says("Run gpt-oss-20b: it fits with 1 stream of 8192 tokens and leaves 9.");
    says("gpt-oss-120b-gguf needs 63.");
    says(" GB, and this machine has 25.0 GB");
    says("Answers are bound by memory (3.8");
    says("Precision mixed");
    says("gpt-oss-20b-gguf decodes about 1.3 times as fast and takes 1.7 GB less");
    says_not("GPU");
    advise(&m, 8192, 1, 2);
    says("gpt-oss-120b needs 65.");
    says("Run gpt-oss-20b instead");
    advise(&m, 8192, 1, 0);
    says("gpt-oss-20b fits: 14.");
    says(" GB of the 24.0 GB that are free, a stream may have 131072 tokens.");
    says_not("instead");
}

static void many_long_streams_want_less_context(void **state) {
    (void)state;
    const mx_plan_machine m = made_up_zen5(50);
    advise(&m, 131072, 8, 0);
    says("gpt-oss-20b fits with a smaller context: ");
    says("tokens a stream at most (--ctx)");
}

static void with_64_gb_120b_does_not_fit_and_with_96_it_does(void **state) {
    (void)state;
    mx_plan_machine m = made_up_server(64);
    advise(&m, 8192, 1, -1);
    says("Run gpt-oss-20b:");
    says("gpt-oss-120b-gguf needs 6");
    m = made_up_server(96);
    advise(&m, 8192, 1, -1);
    says("Run gpt-oss-120b:");
    advise(&m, 8192, 1, 0);
    says("gpt-oss-120b, a larger model, fits here, too.");
}

static void gpus_are_judged_by_what_they_hold_and_the_plugin(void **state) {
    (void)state;
    mx_plan_machine m = made_up_server(128);
    made_up_gpu(&m, "NVIDIA H100 80GB HBM3", 9, 0, 85.5, 3.35);
    made_up_gpu(&m, "NVIDIA GeForce RTX 5090", 12, 0, 34.2, 1.79);
    made_up_gpu(&m, "NVIDIA GeForce RTX 4060", 8, 9, 8.6, 0.27);
    made_up_gpu(&m, "Tesla T4", 7, 5, 16, 0.32);
    made_up_gpu(&m, "GPU of which nothing is known", 0, 0, 0, 0);
    advise(&m, 8192, 1, -1);
    says("GPU 0, NVIDIA H100 80GB HBM3: holds gpt-oss-120b and 131072 tokens a stream; this mxrun does not use it");
    says("GPU 1, NVIDIA GeForce RTX 5090: holds gpt-oss-20b and 131072 tokens a stream; this mxrun does not use it");
    says("GPU 2, NVIDIA GeForce RTX 4060: its 8.6 GB hold none of these models whole.");
    says("GPU 3, Tesla T4: compute capability 7.5 has no BF16 tensor cores");
    says("GPU 4, GPU of which nothing is known: its memory is unknown.");
    m.cuda = true;
    advise(&m, 8192, 1, -1);
    says("GPU 0, NVIDIA H100 80GB HBM3: holds gpt-oss-120b and 131072 tokens a stream; --device cuda takes it");
}

static mx_plan_kernels kernels(const char *tier, mx_format experts, mx_format dense, const char *precision) {
    const mx_plan_formats formats = {experts, dense, MX_F32};
    mx_precisions p;
    mx_error error;
    assert_int_equal(mx_precisions_parse(precision, &p, &error), MX_OK);
    return mx_plan_kernels_cpu(tier, &p, &formats);
}

static void kernels_follow_tier_model_and_capability(void **state) {
    (void)state;
    const mx_plan_kernels published = kernels("avx512bf16", MX_MXFP4, MX_BF16, "mixed");
    assert_int_equal(published.dense.kind, MX_PLAN_NATIVE);
    assert_string_equal(published.dense.how, "BF16 dot products, activations as two BF16 halves");
    assert_int_equal(published.experts.kind, MX_PLAN_WIDENED);
    assert_string_equal(published.experts.how, "MXFP4 widened to BF16 in registers, BF16 dot products");
    assert_int_equal(kernels("avx512bf16", MX_BF16, MX_BF16, "mixed").experts.kind, MX_PLAN_NATIVE);
    assert_int_equal(kernels("avx2", MX_MXFP4, MX_BF16, "fp32").dense.kind, MX_PLAN_WIDENED);
    assert_int_equal(kernels("scalar", MX_MXFP4, MX_BF16, "fp32").dense.kind, MX_PLAN_PLAIN);
    /* Of the model, too: Q8_0 has BF16 dot products at bf16 only, F16 and F32 at none. */
    static const char fma[] = "Q8_0 widened to fp32 in registers, FMA";
    assert_string_equal(kernels("avx512bf16", MX_MXFP4, MX_Q8_0, "mixed").dense.how, fma);
    assert_string_equal(kernels("amx", MX_MXFP4, MX_Q8_0, "mixed").dense.how, fma);
    assert_string_equal(kernels("avx512bf16", MX_MXFP4, MX_Q8_0, "bf16").dense.how,
                        "Q8_0 widened to BF16 in registers, BF16 dot products");
    assert_non_null(strstr(kernels("neonbf16", MX_MXFP4, MX_Q8_0, "mixed").dense.how, "BFMMLA"));
    assert_string_equal(kernels("avx512bf16", MX_MXFP4, MX_F16, "bf16").dense.how,
                        "F16 widened to fp32 in registers, FMA");
    assert_string_equal(kernels("avx512bf16", MX_F32, MX_F32, "bf16").experts.how, "F32, fp32 FMA");
    assert_int_equal(mx_plan_kernels_gpu(12, 1).experts.kind, MX_PLAN_WIDENED);
    assert_int_equal(mx_plan_kernels_gpu(9, 0).experts.kind, MX_PLAN_WIDENED);
    assert_int_equal(mx_plan_kernels_gpu(8, 6).dense.kind, MX_PLAN_NATIVE);
    assert_int_equal(mx_plan_kernels_gpu(7, 0).experts.kind, MX_PLAN_NONE);
    assert_string_equal(mx_plan_gpu_family(8, 9), "Ada");
    assert_string_equal(mx_plan_gpu_family(8, 6), "Ampere");
    assert_string_equal(mx_plan_gpu_family(99, 0), "");
}

static void huge_pages_that_are_off_are_named(void **state) {
    (void)state;
    mx_plan_machine m = made_up_zen5(50);
    snprintf(m.huge_pages, sizeof m.huge_pages, "never");
    advise(&m, 8192, 1, -1);
    says("Huge pages are switched off");
}

static void without_a_known_memory_nothing_is_advised(void **state) {
    (void)state;
    mx_plan_machine m = made_up_zen5(50);
    m.memory_free = m.memory_total = 0;
    advise(&m, 8192, 1, -1);
    says("How much memory is free is unknown");
    says_not("Run ");
    says_not("needs");
}

/* ---- before a load ----------------------------------------------------------------------------------------------- */

static void a_load_that_will_not_fit_is_warned_of(void **state) {
    (void)state;
    char path[4200], out[6000] = "", *source = getenv("MXRUN_SOURCE");
    assert_non_null(source);
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", source);
    mx_plan_load load = {.path = path};
    assert_false(mx_plan_warning(&load, 1e9, out, sizeof out));
    assert_true(mx_plan_warning(&load, 20e6, out, sizeof out)); /* the weights are 10.3 MB, the steps take more */
    assert_non_null(strstr(out, "weights will be read from the disk again and again"));
    assert_null(strchr(out, '\n'));
    load.context = 131072;
    assert_true(mx_plan_warning(&load, 150e6, out, sizeof out)); /* 135 MB of keys and values */
    load.context = 1024;
    assert_false(mx_plan_warning(&load, 150e6, out, sizeof out));
    load.kv_memory = 1e9;
    assert_true(mx_plan_warning(&load, 150e6, out, sizeof out));
    assert_non_null(strstr(out, "it may run out of memory"));
    load = (mx_plan_load){.path = path, .more = 1e9};
    assert_true(mx_plan_warning(&load, 1e9, out, sizeof out));
    assert_non_null(strstr(out, "a buffer that measures 1.0"));
    load = (mx_plan_load){.path = path, .copied = true};
    assert_false(mx_plan_warning(&load, 5e6, out, sizeof out)); /* that fails by itself */
    assert_true(mx_plan_warning(&load, 20e6, out, sizeof out));
    load.path = "/nowhere";
    assert_false(mx_plan_warning(&load, 0, out, sizeof out));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_laptop_is_too_small),
        cmocka_unit_test(with_24_gb_it_is_20b),
        cmocka_unit_test(many_long_streams_want_less_context),
        cmocka_unit_test(with_64_gb_120b_does_not_fit_and_with_96_it_does),
        cmocka_unit_test(gpus_are_judged_by_what_they_hold_and_the_plugin),
        cmocka_unit_test(kernels_follow_tier_model_and_capability),
        cmocka_unit_test(without_a_known_memory_nothing_is_advised),
        cmocka_unit_test(huge_pages_that_are_off_are_named),
        cmocka_unit_test(a_load_that_will_not_fit_is_warned_of),
    };
    const int failed = cmocka_run_group_tests_name("plan, advice", tests, NULL, NULL);
    mx_bytes_free(&text);
    return failed;
}
