/* One model spelled in different ways computes the same, bit for bit: what config.json or the files may say otherwise
 * without meaning otherwise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_maker.h"
#include "model/model.h"

enum { TOKENS = 20, VOCAB = 16, LAYERS = 2 };

/* Numbers of about 1 in every BF16 tensor, any nibbles and moderate scales in the experts. The same for the same name,
 * whatever the order of the tensors. */
static void randomise(maker *m) {
    for (int i = 0; i < m->tensors; i++) {
        maker_tensor *t = &m->tensor[i];
        uint32_t state = 1;
        for (const char *p = t->name; *p; p++) state = state * 31 + (unsigned char)*p;
        bool bf16 = !strcmp(t->dtype, "BF16"), scales = strstr(t->name, "_scales");
        for (uint64_t k = 0; k < t->bytes; k += bf16 ? 2 : 1) {
            state = state * 1664525 + 1013904223;
            uint16_t value = (uint16_t)(0x3E00 + (state >> 24) + ((state >> 8 & 1) << 15)); /* +-0.125 .. +-0.25 */
            if (bf16)
                memcpy(t->data + k, &value, 2);
            else
                t->data[k] = scales ? (uint8_t)(122 + (state >> 24) % 4) : (uint8_t)(state >> 24);
        }
    }
}

static void begin(maker *m) {
    maker_open(m);
    randomise(m);
}

/* Writes the folder, runs TOKENS tokens in one step, keeps the logits of all of them, removes the folder. */
static void compute_at(maker *m, const char *precision, float logits[TOKENS][VOCAB]) {
    mx_error error;
    mx_precisions precisions;
    mx_weights *w;
    mx_pool *pool;
    mx_backend *b;
    maker_write(m);
    if (mx_weights_open(m->folder, NULL, &w, &error)) fail_msg("%s", error.text);
    assert_int_equal(mx_pool_create(1, &pool, &error), MX_OK);
    mx_backend_options options = {.kv_format = MX_F32, .pages = LAYERS, .max_rows = TOKENS, .max_wanted = TOKENS};
    if (precision) {
        assert_int_equal(mx_precisions_parse(precision, &precisions, &error), MX_OK);
        options.precision = &precisions;
    }
    if (mx_cpu_backend_create(w, pool, &options, &b, &error)) fail_msg("%s", error.text);
    const int32_t table[LAYERS] = {0, 1};
    const mx_sequence_view view = {table, 1};
    mx_row row[TOKENS];
    for (int i = 0; i < LAYERS; i++) b->ops->page_clear(b, i);
    for (int i = 0; i < TOKENS; i++) row[i] = (mx_row){.token = i * 5 % VOCAB, .position = i, .wanted = true};
    mx_batch batch = {.row = row, .rows = TOKENS, .sequence = &view, .sequences = 1};
    if (b->ops->step(b, &batch, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < TOKENS; i++) memcpy(logits[i], b->ops->logits(b, i), sizeof logits[i]);
    b->ops->destroy(b);
    mx_pool_destroy(pool);
    mx_weights_close(w);
    maker_close(m);
}

/* At the precision that the machine has by default. */
static void compute(maker *m, float logits[TOKENS][VOCAB]) {
    compute_at(m, NULL, logits);
}

static float reference[TOKENS][VOCAB], logits[TOKENS][VOCAB];

static int compute_reference(void **state) {
    (void)state;
    maker m;
    begin(&m);
    compute(&m, reference);
    return 0;
}

static void test_reference_is_worth_comparing(void **state) {
    (void)state;
    maker m;
    begin(&m);
    maker_find(&m, "model.layers.1.mlp.experts.down_proj_bias")->data[1] ^= 1; /* one number halved or doubled */
    compute(&m, logits);
    assert_memory_not_equal(logits, reference, sizeof logits);
    assert_memory_not_equal(reference[3], reference[3 + VOCAB], sizeof reference[3]); /* same token, other past */
}

/* BF16 to F32, the same numbers. */
static void widen(maker_tensor *t) {
    uint64_t count = t->bytes / 2;
    uint8_t *wide = calloc(count, 4);
    assert_non_null(wide);
    for (uint64_t i = 0; i < count; i++) memcpy(wide + 4 * i + 2, t->data + 2 * i, 2);
    free(t->data);
    t->data = wide;
    t->bytes = 4 * count;
    snprintf(t->dtype, sizeof t->dtype, "F32");
}

/* In fp32 the same bits. Other precisions take BF16 weights to instructions of their own. */
static void test_f32(void **state) {
    (void)state;
    float fp32[TOKENS][VOCAB];
    maker narrow;
    begin(&narrow);
    compute_at(&narrow, "fp32", fp32);
    static const char *const parts[] = {"bias",          "norm",  "sinks",   "_proj.weight",
                                        "router.weight", "embed", "lm_head", ""};
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        maker m;
        begin(&m);
        for (int i = 0; i < m.tensors; i++)
            if (!strcmp(m.tensor[i].dtype, "BF16") && strstr(m.tensor[i].name, parts[p])) widen(&m.tensor[i]);
        compute_at(&m, "fp32", logits);
        if (memcmp(logits, fp32, sizeof logits)) fail_msg("\"%s\" in F32 computes something else", parts[p]);
    }
}

static void test_files(void **state) {
    (void)state;
    for (int form = 0; form < 2; form++) {
        maker m;
        begin(&m);
        m.files = 4;
        m.index = form == 1;
        for (int i = 0; i < m.tensors; i++) m.tensor[i].file = i % 4;
        m.extra = form ? "" : "\"__metadata__\":{\"x\":\"odd\"},"; /* other alignments of the tensors */
        compute(&m, logits);
        assert_memory_equal(logits, reference, sizeof logits);
    }
}

static void test_config_spelling(void **state) {
    (void)state;
    maker m;
    begin(&m);
    m.rope_name = "rope_parameters";
    maker_set(&m, "rope.rope_theta", "150000.0");
    maker_set(&m, "rope_theta", NULL);
    maker_set(&m, "layer_types", NULL);
    maker_set(&m, "swiglu_alpha", "1.702");
    maker_set(&m, "experts_per_token", "1");
    maker_set(&m, "rope.attention_factor", "1.3465735902799727");
    compute(&m, logits);
    assert_memory_equal(logits, reference, sizeof logits);
}

static void test_absent_biases_are_zeros(void **state) {
    (void)state;
    float zeros[TOKENS][VOCAB];
    for (int absent = 0; absent < 2; absent++) {
        maker m;
        begin(&m);
        for (int i = 0; i < m.tensors; i++) {
            maker_tensor *t = &m.tensor[i];
            if (!strstr(t->name, "_proj.bias")) continue;
            memset(t->data, 0, t->bytes);
            t->absent = absent;
        }
        if (absent) maker_set(&m, "attention_bias", "false");
        compute(&m, absent ? logits : zeros);
    }
    assert_memory_equal(logits, zeros, sizeof logits);
    assert_memory_not_equal(logits, reference, sizeof logits);
}

static void test_tied_embedding(void **state) {
    (void)state;
    float copied[TOKENS][VOCAB];
    for (int tied = 0; tied < 2; tied++) {
        maker m;
        begin(&m);
        maker_tensor *head = maker_find(&m, "lm_head.weight");
        memcpy(head->data, maker_find(&m, "model.embed_tokens.weight")->data, head->bytes);
        head->absent = tied;
        if (tied) maker_set(&m, "tie_word_embeddings", "true");
        compute(&m, tied ? logits : copied);
    }
    assert_memory_equal(logits, copied, sizeof logits);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_is_worth_comparing),
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_config_spelling),
        cmocka_unit_test(test_absent_biases_are_zeros),
        cmocka_unit_test(test_tied_embedding),
    };
    return cmocka_run_group_tests_name("equivalent checkpoints", tests, compute_reference, NULL);
}
