/* mxrun verify and info as a user runs them: what they print, when they fail, and that a golden which differs in one
 * number is found out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/bytes.h"
#include "base/json.h"
#include "checkpoint_maker.h"

static char output[60000]; /* stdout and stderr of the last run */

/* Runs mxrun with these arguments, after `cd` into the checkout; returns the exit code. */
static int run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int run(const char *format, ...) {
    char arguments[3000], command[4500];
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    snprintf(command, sizeof command, "cd '%s' && '%s' %s 2>&1", getenv("MXRUN_SOURCE"), getenv("MXRUN_BINARY"),
             arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t size = fread(output, 1, sizeof output - 1, pipe);
    output[size] = 0;
    int status = pclose(pipe);
    if (!WIFEXITED(status)) fail_msg("mxrun %s: ended by a signal: %s", arguments, output);
    return WEXITSTATUS(status);
}

static void expect(int code, int wanted, const char *text) {
    if (code != wanted || !strstr(output, text))
        fail_msg("exit code %d, expected %d with \"%s\": %s", code, wanted, text, output);
}

/* ---- verify ------------------------------------------------------------------------------------------------------ */

#define BASE "-m tests/data/base tests/data/base.golden.safetensors "

static void test_passes(void **state) {
    (void)state;
    expect(run("verify " BASE "--cases t1,t2,t17"), 0, "passed: worst mean KL");
    assert_non_null(strstr(output, "of 3 cases"));
    assert_non_null(strstr(output, "\nt17 "));
    assert_null(strstr(output, "layer"));
    expect(run("verify " BASE "--cases t17,t127 --chunk 5 --threads 1 --max-kl 1e-7"), 0, "steps of up to 5 rows");
    expect(run("verify -m stories tests/data/stories.golden.safetensors --cases chat1 --kv-type f16"), 0, "f16 cache");
    expect(run("verify " BASE "--cases t2 --max-kl 0"), 1, "FAILED: worst mean KL");
}

static double number(const mx_json *object, const char *key) {
    double x;
    if (!mx_json_double(mx_json_get(object, key), &x)) fail_msg("no number %s in %s", key, output);
    return x;
}

/* Runs verify --json and returns its first case; the document is freed by the next call. */
static const mx_json *first_case(const char *arguments, int code) {
    static mx_json_document *document;
    mx_json_free(document);
    document = NULL;
    if (!arguments) return NULL;
    assert_int_equal(run("verify %s --json", arguments), code);
    mx_error error;
    if (mx_json_parse("verify --json", output, strlen(output), &document, &error))
        fail_msg("%s: %s", error.text, output);
    bool passed;
    assert_true(mx_json_bool(mx_json_get(mx_json_root(document), "passed"), &passed));
    assert_int_equal(passed, code == 0);
    const mx_json *cases = mx_json_get(mx_json_root(document), "cases");
    assert_non_null(cases);
    assert_int_equal(cases->count, 1);
    return cases->child;
}

static void test_json(void **state) {
    (void)state;
    const mx_json *c = first_case(BASE "--cases t17", 0);
    assert_true(mx_json_is_string(mx_json_get(c, "case"), "t17"));
    assert_true(number(c, "tokens") == 17 && number(c, "rows") == 6);
    assert_true(number(c, "mean_kl") < 1e-7 && number(c, "max_logit_difference") < 1e-3);
    assert_true(number(c, "top1_agreement") == 1 && number(c, "expert_agreement") == 1);
    assert_true(number(c, "residual_distance") < 1e-4);
    assert_null(mx_json_get(c, "first_departing_layer"));
    first_case(NULL, 0);
}

/* Byte offset of tensor `name` in a safetensors file that was read whole. */
static size_t offset_of(const mx_bytes *file, const char *name) {
    uint64_t length = mx_load_u64(file->data);
    mx_json_document *header;
    assert_int_equal(mx_json_parse("golden", file->data + 8, length, &header, NULL), MX_OK);
    int64_t begin;
    assert_true(mx_json_int64(mx_json_get(mx_json_get(mx_json_root(header), name), "data_offsets")->child, &begin));
    mx_json_free(header);
    return 8 + length + (size_t)begin;
}

/* Writes base's golden with four bytes of a tensor replaced into the maker's folder. */
static void write_changed(const maker *m, const char *tensor, int64_t element, uint32_t bits) {
    mx_bytes golden = {0};
    char path[1000];
    snprintf(path, sizeof path, "%s/tests/data/base.golden.safetensors", getenv("MXRUN_SOURCE"));
    assert_int_equal(mx_read_file(path, 1 << 24, &golden, NULL), MX_OK);
    memcpy(golden.data + offset_of(&golden, tensor) + 4 * element, &bits, 4);
    maker_file(m, "golden.safetensors", golden.data, golden.size);
    mx_bytes_free(&golden);
}

/* Runs case t17 of a changed golden. */
static const mx_json *with_changed(const char *tensor, int64_t element, uint32_t bits, int code) {
    maker m;
    char arguments[1500];
    maker_open(&m);
    write_changed(&m, tensor, element, bits);
    snprintf(arguments, sizeof arguments, "-m tests/data/base %s --cases t17", maker_path(&m, "golden.safetensors"));
    const mx_json *c = NULL;
    if (code == 2) /* not a number to compare but a broken golden */
        expect(run("verify %s", arguments), 1, tensor);
    else
        c = first_case(arguments, code);
    maker_close(&m);
    return c;
}

static void test_differences_are_found(void **state) {
    (void)state;
    const uint32_t hundred = 0x42C80000, nan = 0x7FC00000;
    const mx_json *c = with_changed("t17.logits", 2 * 512 + 77, hundred, 1); /* row 2 becomes sure of token 77 */
    assert_true(number(c, "max_logit_difference") > 50 && number(c, "mean_kl") > 1);
    assert_true(fabs(number(c, "top1_agreement") - 5 / 6.0) < 1e-5);
    c = with_changed("t17.logits", 0, nan, 1);
    assert_true(mx_json_get(c, "mean_kl")->type == MX_JSON_NULL);
    assert_true(mx_json_get(c, "max_logit_difference")->type == MX_JSON_NULL);
    /* residual [layers + 1, tokens, hidden]: a number after layer 2 (the third) */
    c = with_changed("t17.residual", (3 * 17 + 4) * 192 + 9, hundred, 0);
    assert_true(number(c, "first_departing_layer") == 2);
    c = with_changed("t17.residual", 0, nan, 1);
    assert_true(mx_json_get(c, "residual_distance")->type == MX_JSON_NULL);
    assert_true(number(c, "first_departing_layer") == -1);
    c = with_changed("t17.experts", 5, 99, 0); /* one choice of 4 layers * 17 tokens * 4 */
    assert_true(fabs(number(c, "expert_agreement") - 271 / 272.0) < 1e-5);
    first_case(NULL, 0);
    with_changed("t17.ids", 3, 512, 2);
    with_changed("t17.ids", 3, 0xFFFFFFFF, 2);
    with_changed("t17.rows", 1, 17, 2);
    with_changed("t17.rows", 1, 0, 2);
}

/* In the table one NaN makes its case and the verdict nan, whatever comes after it. */
static void test_nan_is_the_worst(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    write_changed(&m, "t2.logits", 3, 0x7FC00000);
    expect(run("verify -m tests/data/base %s --cases t2,t17", maker_path(&m, "golden.safetensors")), 1,
           "FAILED: worst mean KL nan of 2 cases");
    const char *row = strstr(output, "\nt2 ");
    assert_non_null(row);
    char logits[20], kl[20];
    assert_int_equal(sscanf(row, " t2 %*d %*d %19s %19s", logits, kl), 2);
    assert_string_equal(logits, "nan");
    assert_string_equal(kl, "nan");
    maker_close(&m);
}

#define STORIES "book600,chat0,chat1,chat2,chat3,chat4,chat5,chat6,chat7"
/* The table of README.md: what a cache of half the bits costs. Bounds a few times what was measured. */
static void test_cache_types(void **state) {
    (void)state;
    static const struct {
        const char *model, *cases, *type;
        const char *max_kl;
    } bounds[] = {
        {"stories", STORIES, "f16", "5e-7"},
        {"stories", STORIES, "bf16", "1e-5"},
        {"base", "t17,t127", "f16", "5e-2"},
        {"top1", "t1,t9,t300", "f16", "1e-4"},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        bool stories = !strcmp(bounds[i].model, "stories");
        expect(run("verify -m %s%s tests/data/%s.golden.safetensors --cases %s --kv-type %s --max-kl %s",
                   stories ? "" : "tests/data/", bounds[i].model, bounds[i].model, bounds[i].cases, bounds[i].type,
                   bounds[i].max_kl),
               0, "passed: worst mean KL");
    }
    /* and the type is really used */
    expect(run("verify " BASE "--cases t127 --kv-type f16 --max-kl 1e-7"), 1, "f16 cache");
}

static void test_verify_refuses(void **state) {
    (void)state;
    expect(run("verify"), 2, "no model given");
    expect(run("verify -m nowhere x"), 1, "nowhere");
    expect(run("verify " BASE "more.safetensors"), 2, "more than one golden");
    expect(run("verify " BASE "--kv-type f8"), 2, "--kv-type f8: expected f16, bf16 or f32");
    expect(run("verify " BASE "--chunk 513"), 2, "--chunk 513");
    expect(run("verify " BASE "--chunk -1"), 2, "--chunk -1");
    expect(run("verify " BASE "--chunk 0"), 2, "--chunk 0");
    expect(run("verify " BASE "--threads 0"), 2, "--threads 0");
    expect(run("verify " BASE "--threads -1"), 2, "--threads -1");
    expect(run("verify " BASE "--max-kl -1"), 2, "--max-kl");
    expect(run("verify " BASE "--max-kl x"), 2, "invalid numeric value");
    expect(run("verify " BASE "--no-such-option"), 2, "--no-such-option");
    expect(run("verify " BASE "--cases t3,t"), 2, "no case of these names: t3,t");
    expect(run("verify -m tests/data/base absent.safetensors"), 1, "absent.safetensors: No such file");
    expect(run("verify -m tests/data/base tests/data/mqa.golden.safetensors"), 1,
           "not that of a golden for this model");
    expect(run("verify -m tests/data/base tests/data/base/model.safetensors"), 1, "not a golden");
    expect(run("verify -m tests/data/base tests/data/base/config.json"), 1, "config.json: header");
    expect(run("verify -m tests/data/base"), 2, "(24 layers, 32 experts, vocabulary 201088; this model has 4, ");
    expect(run("verify --help"), 0, "Usage: mxrun verify -m MODEL");
}

/* 24 layers and 32 experts. */
static void grow_to_20b(maker *m) {
    char types[600] = "[";
    for (int layer = 0; layer < 24; layer++)
        strcat(types, layer == 23 ? "\"full_attention\"]"
                      : layer % 2 ? "\"full_attention\","
                                  : "\"sliding_attention\",");
    maker_set(m, "num_hidden_layers", "24");
    maker_set(m, "num_local_experts", "32");
    maker_set(m, "layer_types", types);
    for (int i = 0, count = m->tensors; i < count; i++) {
        maker_tensor *t = &m->tensor[i];
        if (strstr(t->name, ".mlp."))
            maker_retype(t, t->dtype, t->dims, (int64_t[]){32, t->shape[1], t->shape[2], t->shape[3]});
        for (int layer = 2; layer < 24 && strstr(t->name, "layers.1."); layer++) {
            char name[100];
            snprintf(name, sizeof name, "model.layers.%d.%s", layer, strstr(t->name, "layers.1.") + 9);
            maker_add(m, name, t->dtype, t->dims, t->shape);
        }
    }
}

/* A model with the published vocabulary that says <|channel|> to everything: right once in each of the 7 answers. */
static void test_official_greedy(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    maker_set(&m, "vocab_size", "201088");
    maker_retype(maker_find(&m, "model.embed_tokens.weight"), "BF16", 2, (int64_t[]){201088, 64});
    maker_tensor *head = maker_find(&m, "lm_head.weight");
    maker_retype(head, "BF16", 2, (int64_t[]){201088, 64});
    const uint16_t two = 0x4000;
    for (int i = 0; i < 64; i++) memcpy(head->data + 2 * (200005 * 64 + i), &two, 2);
    maker_write(&m);
    expect(run("verify -m %s", m.folder), 2, "this model has 2, 2, 201088): give a golden");
    grow_to_20b(&m);
    maker_write(&m);
    expect(run("verify -m %s --chunk 100", m.folder), 1, "FAILED: 7 of 56 greedy tokens");
    assert_non_null(strstr(output, "harmony_346           346   1 / 8  token 1: 200005 for 35644"));
    expect(run("verify -m %s --json", m.folder), 1, "{\"passed\":false,\"near_tie\":0.25,");
    memset(head->data, 0, head->bytes); /* all logits are 0: near ties everywhere */
    maker_write(&m);
    expect(run("verify -m %s", m.folder), 0, "passed: 0 of 56 greedy tokens");
    assert_non_null(strstr(output, "56 others are near ties, less than 0.25 apart"));
    maker_close(&m);
}

/* ---- info -------------------------------------------------------------------------------------------------------- */

/* The parts of two nodes' threads make the whole matrix. (Where the machine's cores 0 and 1 are not both there, one
 * node is left, and the numbers are those of everybody.) */
static void test_two_memory_nodes(void **state) {
    (void)state;
    setenv("HWLOC_SYNTHETIC", "numa:2 core:1 pu:1", 1);
    expect(run("verify -m stories tests/data/stories.golden.safetensors --cases chat1 --numa spread --threads 2"), 0,
           "passed");
    expect(run("verify -m stories tests/data/stories.golden.safetensors --cases chat1 --threads 3 --load read"), 0,
           "passed");
    unsetenv("HWLOC_SYNTHETIC");
    expect(run("verify -m stories --numa distribute"), 2, "expected auto, off, interleave or spread");
}

static void test_info(void **state) {
    (void)state;
    expect(run("info -m stories"), 0, "4: 2 with full attention, 2 with a window of 128");
    assert_non_null(strstr(output, "16 of width 128, 4 for a token"));
    assert_non_null(strstr(output, "4096, 9 of them special"));
    assert_non_null(strstr(output, "<|call|> 4095"));
    expect(run("info -m tests/data/base"), 0, "only token ids can be run");
    expect(run("info"), 2, "no model given");
    expect(run("info -m stories extra"), 2, "unexpected argument \"extra\"");
    expect(run("info -m stories 2>&1 >/dev/full #"), 1, "cannot write to stdout");
}

/* A matrix of another format is called by its name, and no other layout takes it. */
static void test_info_of_quantised_weights(void **state) {
    (void)state;
    static const char q[] = "model.layers.1.self_attn.q_proj.weight";
    maker m;
    maker_open(&m);
    maker_retype(maker_find(&m, q), "F8_E4M3", 2, (int64_t[]){64, 64});
    maker_add(&m, "model.layers.1.self_attn.q_proj.weight_scale", "F32", 2, (int64_t[]){64, 1});
    maker_set(&m, "quantization_config", "{\"quant_method\":\"fp8\"}");
    maker_write(&m);
    expect(run("info -m %s", m.folder), 0, "BF16, FP8 E4M3 channel");
    expect(run("info -m %s --json", m.folder), 0, "\"types\":\"BF16, FP8 E4M3 channel\"");
    expect(run("convert --to gguf %s %s.gguf", m.folder, m.folder), 1, q);
    assert_non_null(strstr(output, "is quantised (F8_E4M3) in a way that the layout GGUF cannot hold"));
    maker_close(&m);
}

static void test_info_json(void **state) {
    (void)state;
    expect(run("info -m stories --json"), 0, "{");
    mx_json_document *document;
    mx_error error;
    if (mx_json_parse("info --json", output, strlen(output), &document, &error)) fail_msg("%s", error.text);
    const mx_json *root = mx_json_root(document), *config = mx_json_get(root, "config");
    assert_true(number(config, "layers") == 4 && number(config, "vocab") == 4096 && number(config, "top_k") == 4);
    const mx_json *weights = mx_json_get(root, "weights"), *experts = mx_json_get(weights, "experts");
    assert_true(number(mx_json_get(weights, "total"), "tensors") == 79);
    assert_true(number(mx_json_get(weights, "unused"), "tensors") == 0);
    /* by hand: 4 layers, 16 experts, [256, 256] and [256, 128], 17 bytes for 32, and BF16 biases of 512 */
    double numbers = 4.0 * 16 * (256 * 256 + 256 * 128), biases = 4.0 * 16 * 512;
    assert_true(number(experts, "bytes") == numbers * 17 / 32 + biases * 2);
    assert_true(number(experts, "parameters") == numbers + biases);
    assert_true(number(experts, "bytes_per_token") == number(experts, "bytes") / 4);
    assert_true(number(mx_json_get(weights, "embedding"), "bytes_per_token") == 512);
    /* 2 full layers of 2048 pages and 2 sliding ones of 11 (640 positions anywhere: the window and a step's 512); a
     * page holds 64 positions of 2 heads of 64, k and v */
    const mx_json *kv = mx_json_get(root, "kv_bytes");
    double page = 64.0 * 2 * 64 * 2;
    assert_true(number(mx_json_get(kv, "f16"), "131072") == (2 * 2048 + 2 * 11) * page * 2);
    assert_true(number(mx_json_get(kv, "f32"), "4096") == (2 * 64 + 2 * 11) * page * 4);
    assert_true(number(mx_json_get(root, "tokenizer"), "tokens") == 4096);
    mx_json_free(document);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_passes),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_differences_are_found),
        cmocka_unit_test(test_nan_is_the_worst),
        cmocka_unit_test(test_cache_types),
        cmocka_unit_test(test_verify_refuses),
        cmocka_unit_test(test_official_greedy),
        cmocka_unit_test(test_two_memory_nodes),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_info_of_quantised_weights),
        cmocka_unit_test(test_info_json),
    };
    return cmocka_run_group_tests_name("verify and info", tests, NULL, NULL);
}
