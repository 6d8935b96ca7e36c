/* The arithmetic of plan against GPT_OSS_FACTS.md, section 3, and against the README's table of speeds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "made_up.h"

enum { SMALL, SMALL_GGUF, LARGE, LARGE_GGUF };

static void weigh(int index, double experts, double biases, double attention, double router, double norms,
                  double total) {
    const mx_plan_model m = made_up_known(index);
    assert_true(m.bytes.experts == experts);
    assert_true(m.bytes.expert_biases == biases);
    assert_true(m.bytes.attention == attention);
    assert_true(m.bytes.router == router);
    assert_true(m.bytes.norms == norms);
    assert_true(m.bytes.embedding == 1158266880 && m.bytes.lm_head == 1158266880);
    assert_true(m.weights == total);
}

static void weights_are_those_of_the_published_files(void **state) {
    (void)state;
    weigh(SMALL, 10152345600, 13271040, 1274406912, 4425216, 282240, 13761264768);
    weigh(LARGE, 60914073600, 79626240, 1911610368, 26551296, 420480, 65248815744);
    /* 12,109,566,560 bytes with its vocabulary */
    assert_true(fabs(made_up_known(SMALL_GGUF).weights / 12109566560.0 - 1) < 0.002);
}

static double of_a_token(int index) {
    const mx_plan_model m = made_up_known(index);
    return mx_plan_step_bytes(&m.config, &m.bytes, 1, 1);
}

static void a_token_reads_what_the_facts_say(void **state) {
    (void)state;
    assert_true(fabs(of_a_token(SMALL) - 3708089088) < 1);
    assert_true(fabs(of_a_token(LARGE) - 5002907904) < 1);
    assert_true(fabs(of_a_token(SMALL_GGUF) - 2574705396) < 1);
    assert_true(fabs(of_a_token(LARGE_GGUF) - 3594213108) < 1);
}

static void many_rows_choose_as_many_experts_as_the_facts_say(void **state) {
    (void)state;
    static const struct {
        double rows, small, large;
    } fact[] = {{1, 4, 4}, {2, 7.5, 7.9}, {4, 13.2, 15.3}, {8, 21, 28.7}, {32, 31.6, 81.7}, {128, 32, 126}};
    const mx_config small = made_up_known(SMALL).config, large = made_up_known(LARGE).config;
    for (size_t i = 0; i < sizeof fact / sizeof *fact; i++) {
        assert_true(fabs(mx_plan_experts(&small, fact[i].rows) - fact[i].small) < 0.06);
        assert_true(fabs(mx_plan_experts(&large, fact[i].rows) - fact[i].large) < 0.3);
    }
}

/* The facts' rings are 128 deep; mxrun's layers with a window hold 11 tiles of 64, for the rows of a step. */
static void check_kv(int index, int64_t tokens, double trimmed, double full) {
    const mx_config c = made_up_known(index).config;
    const double layers = c.layers / 2, ring = layers * 2048 * (11 * 64 - 128);
    assert_true(mx_plan_kv_bytes(&c, MX_F16, tokens) == trimmed + ring);
    assert_true(mx_plan_kv_bytes(&c, MX_F32, tokens) == 2 * (trimmed + ring));
    mx_config plain = c;
    for (int i = 0; i < c.layers; i++) plain.sliding[i] = false;
    assert_true(mx_plan_kv_bytes(&plain, MX_F16, tokens) == full);
}

static void keys_and_values_are_those_of_the_facts(void **state) {
    (void)state;
    check_kv(SMALL, 4096, 103809024, 201326592);
    check_kv(SMALL, 8192, 204472320, 402653184);
    check_kv(SMALL, 32768, 808452096, 1610612736);
    check_kv(SMALL, 131072, 3224371200, 6442450944);
    check_kv(LARGE, 4096, 155713536, 301989888);
    check_kv(LARGE, 32768, 1212678144, 2415919104);
    check_kv(LARGE, 131072, 4836556800, 9663676416);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static mx_plan_memory memory_of(int index, const mx_plan_machine *m, int64_t context, int streams) {
    const mx_plan_model model = made_up_known(index);
    const mx_plan_request r = {context, streams, MX_F16};
    mx_plan_memory out;
    mx_error error;
    assert_int_equal(mx_plan_memory_cpu(&model, m, &r, &out, &error), MX_OK);
    assert_true(out.sum == out.weights + out.kv + out.scratch + out.program);
    assert_true(out.left == out.room - out.sum);
    return out;
}

static void memory_adds_up(void **state) {
    (void)state;
    const mx_plan_machine m = made_up_zen5(50);
    const mx_plan_memory one = memory_of(SMALL, &m, 8192, 1), eight = memory_of(SMALL, &m, 8192, 8);
    assert_true(one.weights == 13761264768);
    /* README: 13.84 GB with 27 tokens, in which steps are smaller. */
    assert_true(memory_of(SMALL, &m, 27, 1).sum > 13.80e9 && memory_of(SMALL, &m, 27, 1).sum < 13.90e9);
    assert_true(one.scratch > 50e6 && one.scratch < 300e6);
    assert_true(fabs(eight.kv / one.kv - 8) < 0.1); /* whole huge pages */
    assert_true(one.left > 9e9 && one.context == 131072);
    assert_true(memory_of(LARGE, &m, 8192, 1).left < -40e9 && memory_of(LARGE, &m, 8192, 1).context == 0);
}

/* The longest context that fits is one that fits, the program's part of it counted, and the next longer one does not.
 */
static void the_longest_context_just_fits(void **state) {
    (void)state;
    mx_plan_machine m = made_up_zen5(50);
    m.memory_free = 14.5e9;
    static const struct {
        int64_t context;
        int streams;
    } asked[] = {{131072, 1}, {8192, 1}, {27, 1}, {131072, 4}};
    for (int i = 0; i < 4; i++) {
        const mx_plan_memory at = memory_of(SMALL, &m, asked[i].context, asked[i].streams);
        assert_true(at.context > 2000 && at.context < 40000);
        assert_true(memory_of(SMALL, &m, at.context, asked[i].streams).left >= 0);
        assert_true(memory_of(SMALL, &m, at.context + 1, asked[i].streams).left < 0);
    }
    assert_true(memory_of(SMALL, &m, 131072, 4).context < memory_of(SMALL, &m, 131072, 1).context / 3);
    /* What fits is never said to have no context: short steps take less. */
    m.memory_free = memory_of(SMALL, &m, 27, 1).sum;
    assert_true(memory_of(SMALL, &m, 27, 1).left == 0 && memory_of(SMALL, &m, 27, 1).context >= 27);
}

static void a_gpu_without_known_memory_holds_nothing(void **state) {
    (void)state;
    const mx_plan_model model = made_up_known(SMALL);
    const mx_plan_request r = {8192, 1, MX_F16};
    mx_plan_gpu gpu = {.memory = 16e9, .memory_free = 15.9e9};
    mx_plan_memory out;
    mx_plan_memory_gpu(&model, &gpu, &r, &out);
    assert_true(out.left > 0 && out.context > 8192);
    gpu.memory_free = 0;
    mx_plan_memory_gpu(&model, &gpu, &r, &out);
    assert_true(out.left < 0 && out.context == 0);
}

/* ---- speed ------------------------------------------------------------------------------------------------------- */

static mx_plan_speed speed_of(int index, const mx_plan_machine *m, int64_t context, int streams) {
    const mx_plan_model model = made_up_known(index);
    const mx_plan_request r = {context, streams, MX_F16};
    mx_plan_speed out;
    mx_plan_speed_cpu(&model, m, &r, &out);
    return out;
}

/* Within a tenth, where 15 % are allowed. */
static void near(double got, double measured) {
    if (fabs(got / measured - 1) > 0.1) fail_msg("%.2f tokens/s expected, %.2f were measured", got, measured);
}

static void speeds_are_those_of_the_readme(void **state) {
    (void)state;
    const mx_plan_machine slow = made_up_zen5(50), fast = made_up_zen5(83);
    static const struct {
        int64_t depth;
        int streams;
        double slow, fast;
    } decode[] = {{1, 1, 12.2, 17.7}, {4096, 1, 11.4, 16.9}, {32768, 1, 9.4, 13.3}, {1, 8, 39.7, 53}, {1, 32, 72.6, 0}};
    for (size_t i = 0; i < sizeof decode / sizeof *decode; i++) {
        near(speed_of(SMALL, &slow, 2 * decode[i].depth, decode[i].streams).decode_rate.median, decode[i].slow);
        if (decode[i].fast > 0)
            near(speed_of(SMALL, &fast, 2 * decode[i].depth, decode[i].streams).decode_rate.median, decode[i].fast);
    }
    near(speed_of(SMALL, &slow, 8192, 1).prompt_rate.median, 124);
    mx_plan_machine bf16 = fast;
    mx_error error;
    assert_int_equal(mx_precisions_parse("bf16", &bf16.precision, &error), MX_OK);
    near(speed_of(SMALL, &bf16, 8192, 1).prompt_rate.median, 146);
    near(speed_of(SMALL, &bf16, 2, 1).decode_rate.median, 18.9);
}

static void low_and_high_hold_the_bandwidths(void **state) {
    (void)state;
    mx_plan_machine m = made_up_zen5(60);
    m.bandwidth = (mx_plan_range){40e9, 60e9, 80e9};
    m.disk = 2e9;
    const mx_plan_speed s = speed_of(SMALL, &m, 8192, 1);
    assert_true(s.decode_rate.low < 0.75 * s.decode_rate.median && s.decode_rate.high > 1.2 * s.decode_rate.median);
    assert_true(s.prompt_rate.low > 0.85 * s.prompt_rate.median); /* bound by the cores */
    assert_true(fabs(s.cold_start - 13761264768 / 2e9) < 1e-6);
}

static void what_is_not_known_is_not_invented(void **state) {
    (void)state;
    mx_plan_machine m = made_up_zen5(50);
    m.bandwidth = (mx_plan_range){0};
    mx_plan_speed s = speed_of(SMALL, &m, 8192, 1);
    assert_true(s.decode_rate.median == 0 && s.prompt_rate.median == 0 && s.cold_start == 0);
    assert_true(s.decode.bytes > 3.7e9); /* that is arithmetic */
    m = made_up_zen5(50);
    m.peaks = (mx_peaks){0};
    s = speed_of(SMALL, &m, 8192, 1);
    assert_true(s.decode_rate.median == 0);
}

/* A peak that is left out counts as unknown, not as infinite; kernels that nobody measured have no speed. */
static void a_peak_or_a_tier_that_is_not_known_is_named(void **state) {
    (void)state;
    mx_plan_machine m = made_up_zen5(50);
    assert_string_equal(speed_of(SMALL, &m, 8192, 1).unknown, "");
    m.peaks.of[MX_PEAK_DPBF16] = 0;
    m.given = true;
    mx_plan_speed s = speed_of(SMALL, &m, 8192, 1);
    assert_true(s.decode_rate.median == 0 && s.prompt_rate.median == 0 && s.decode.slowness == 0);
#if defined(__x86_64__)
    assert_string_equal(s.unknown, "the peak of dpbf16 is not known: --peak has to name it, too");
#else
    assert_non_null(strstr(s.unknown, "is not known"));
#endif
    m = made_up_zen5(50);
    m.peaks.of[MX_PEAK_FMA512] = 0; /* attention's */
    assert_true(speed_of(SMALL, &m, 8192, 1).decode_rate.median == 0);
    m = made_up_zen5(50);
    for (int i = 0; i < MX_PEAK_LOOPS; i++) m.peaks.of[i] = 1e12;
    static const char *const tiers[] = {"scalar", "neon", "neondot", "neonbf16", "amx"};
    for (int i = 0; i < 5; i++) {
        snprintf(m.tier, sizeof m.tier, "%s", tiers[i]);
        s = speed_of(SMALL, &m, 8192, 1);
        assert_true(s.decode_rate.median == 0 && s.prompt_rate.median == 0);
        assert_non_null(strstr(s.unknown, tiers[i]));
    }
    /* bench's floors, too. */
    const mx_cost cost = {.flops = {[MX_CLASS_QKV] = 1e12, [MX_CLASS_GATE_UP] = 1e12}, .attention = 1e12};
    mx_peaks peaks = {{0}};
    peaks.of[MX_PEAK_FMA512] = 1e12;
    m = made_up_zen5(50);
    assert_true(mx_cost_seconds(&cost, m.tier, &m.precision, &peaks) == 0);
    peaks.of[MX_PEAK_DPBF16] = 2e12; /* of experts once, of the others twice */
    assert_true(mx_cost_seconds(&cost, m.tier, &m.precision, &peaks) == 2.5);
    assert_null(mx_cost_lacking(&cost, m.tier, &m.precision, &peaks));
    m = made_up_laptop();
    s = speed_of(SMALL, &m, 8192, 1);
    assert_true(s.borrowed && s.decode_rate.low < 0.66 * s.decode_rate.median);
    m = made_up_zen5(50);
    assert_false(speed_of(SMALL, &m, 8192, 1).borrowed);
}

/* F32, F16 and, at bf16x2, Q8_0 weights are multiplied once, in fp32. */
static void operations_follow_the_formats(void **state) {
    (void)state;
    mx_plan_machine m = made_up_zen5(50);
    mx_plan_model model = made_up_known(SMALL);
    const mx_plan_request r = {2, 1, MX_F16};
    static const struct {
        mx_format dense;
        double times; /* that each multiplication is done at mixed */
    } dense[] = {{MX_BF16, 2}, {MX_Q8_0, 1}, {MX_F16, 1}, {MX_F32, 1}};
    const mx_config *c = &model.config;
    const double q = 64 * 64, kv = 8 * 64, hidden = c->hidden;
    const double matrices = 2 * hidden * (c->layers * 2 * (q + kv) + c->vocab);
    double operations[4], bf16[4];
    for (int p = 0; p < 2; p++) {
        mx_error error;
        assert_int_equal(mx_precisions_parse(p ? "bf16" : "mixed", &m.precision, &error), MX_OK);
        for (int i = 0; i < 4; i++) {
            mx_plan_speed s;
            model.formats.dense = dense[i].dense;
            mx_plan_speed_cpu(&model, &m, &r, &s);
            (p ? bf16 : operations)[i] = s.decode.operations;
        }
    }
    for (int i = 1; i < 4; i++) {
        assert_true(fabs((operations[0] - operations[i]) / ((2 - dense[i].times) * matrices) - 1) < 1e-9);
        assert_true(bf16[i] == bf16[0]);
    }
    assert_true(mx_cost_by_fma("avx512bf16", MX_Q8_0, MX_X_BF16X2) &&
                !mx_cost_by_fma("avx512bf16", MX_Q8_0, MX_X_BF16));
    assert_true(!mx_cost_by_fma("neonbf16", MX_Q8_0, MX_X_BF16X2) && mx_cost_by_fma("neonbf16", MX_F16, MX_X_BF16));
}

/* mx_cost_by_fma against the kernels: where BF16 is not used, the tier has the product of the one below. */
static void products_in_fp32_are_those_of_the_lower_tier(void **state) {
    (void)state;
    static const char *const tiers[][2] = {{"avx512bf16", "avx512"}, {"amx", "avx512"}, {"neonbf16", "neon"}};
    for (int i = 0; i < 3; i++) {
        const mx_kernels *tier, *below;
        if (mx_kernels_get(tiers[i][0], &tier, NULL) || mx_kernels_get(tiers[i][1], &below, NULL)) continue;
        for (int f = 0; f < MX_FORMATS; f++)
            for (int p = MX_X_BF16X2; p <= MX_X_BF16; p++)
                assert_int_equal(tier->product[f][p] == below->product[f][p],
                                 mx_cost_by_fma(tiers[i][0], (mx_format)f, (mx_precision)p));
    }
}

static void weights_on_the_disk_make_it_slow(void **state) {
    (void)state;
    mx_plan_machine m = made_up_server(64);
    const mx_plan_model model = made_up_known(LARGE);
    const mx_plan_memory memory = memory_of(LARGE, &m, 8192, 1);
    mx_plan_speed s = speed_of(LARGE, &m, 8192, 1);
    const double in_memory = s.decode_rate.median;
    mx_plan_speed_from_disk(&model, &m, &memory, &s);
    assert_true(s.from_disk && s.prompt_rate.median == 0);
    assert_true(s.decode_rate.low < 1.1 && s.decode_rate.high < in_memory);
    assert_true(s.decode_rate.low <= s.decode_rate.median && s.decode_rate.median <= s.decode_rate.high);
    m.disk = 0;
    mx_plan_speed_from_disk(&model, &m, &memory, &s);
    assert_true(s.decode_rate.median == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_those_of_the_published_files),
        cmocka_unit_test(a_token_reads_what_the_facts_say),
        cmocka_unit_test(many_rows_choose_as_many_experts_as_the_facts_say),
        cmocka_unit_test(keys_and_values_are_those_of_the_facts),
        cmocka_unit_test(memory_adds_up),
        cmocka_unit_test(the_longest_context_just_fits),
        cmocka_unit_test(a_gpu_without_known_memory_holds_nothing),
        cmocka_unit_test(speeds_are_those_of_the_readme),
        cmocka_unit_test(low_and_high_hold_the_bandwidths),
        cmocka_unit_test(what_is_not_known_is_not_invented),
        cmocka_unit_test(a_peak_or_a_tier_that_is_not_known_is_named),
        cmocka_unit_test(operations_follow_the_formats),
        cmocka_unit_test(products_in_fp32_are_those_of_the_lower_tier),
        cmocka_unit_test(weights_on_the_disk_make_it_slow),
    };
    return cmocka_run_group_tests_name("plan, arithmetic", tests, NULL, NULL);
}
