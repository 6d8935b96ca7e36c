/* Checkpoints that must open: every layout and every spelling that is in use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "checkpoint_maker.h"
#include "model/model.h"

static char warnings[2000];

static void keep_warning(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)level;
    size_t used = strlen(warnings);
    snprintf(warnings + used, sizeof warnings - used, "%s\n", line);
}

/* Writes `m`'s folder and opens it; closes with weights_done. */
static mx_weights *open_made(const maker *m, mx_pool *pool) {
    mx_error error;
    mx_weights *w = NULL;
    maker_write(m);
    warnings[0] = 0;
    mx_log_set_sink(keep_warning, NULL);
    mx_status status = mx_weights_open(m->folder, pool, &w, &error);
    mx_log_set_sink(NULL, NULL);
    if (status) fail_msg("%s", error.text);
    return w;
}

static mx_config config_of(maker *m) {
    mx_config c;
    mx_error error;
    maker_write(m);
    if (mx_config_read(m->folder, &c, &error)) fail_msg("%s", error.text);
    return c;
}

/* ---- configuration ----------------------------------------------------------------------------------------------- */

static void test_config_fields(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    mx_config c = config_of(&m);
    assert_int_equal(c.layers, 2);
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.intermediate, 32);
    assert_int_equal(c.heads, 2);
    assert_int_equal(c.kv_heads, 1);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.experts, 2);
    assert_int_equal(c.top_k, 1);
    assert_int_equal(c.vocab, 16);
    assert_int_equal(c.window, 8);
    assert_int_equal(c.max_positions, 4096);
    assert_true(c.sliding[0] && !c.sliding[1]);
    assert_true(c.rms_eps == 1e-5f && c.swiglu_limit == 7 && c.swiglu_alpha == 1.702f);
    assert_true(c.rope_theta == 150000 && c.yarn && c.yarn_factor == 32 && !c.yarn_truncate);
    assert_int_equal(c.yarn_original_positions, 128);
    assert_true(c.attention_bias && !c.tied_embeddings);
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos[0], 3);
    maker_close(&m);
}

static void test_config_defaults(void **state) {
    (void)state;
    static const char *const optional[] = {"layer_types",    "swiglu_limit",   "eos_token_id",
                                           "rope.beta_fast", "rope.beta_slow", "rope.truncate"};
    maker m;
    maker_open(&m);
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++) maker_set(&m, optional[i], NULL);
    maker_set(&m, "num_hidden_layers", "5");
    maker_set(&m, "swiglu_alpha", "null");
    mx_config c = config_of(&m);
    for (int i = 0; i < 5; i++) assert_int_equal(c.sliding[i], i % 2 == 0);
    assert_true(c.swiglu_limit == 7 && c.swiglu_alpha == 1.702f);
    assert_true(c.yarn_beta_fast == 32 && c.yarn_beta_slow == 1 && c.yarn_truncate);
    assert_int_equal(c.eos_count, 0);
    maker_close(&m);
}

static void test_config_spellings(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    /* newer transformers: rope_parameters with theta inside; it wins over what else is there */
    m.rope_name = "rope_parameters";
    maker_set(&m, "rope.rope_theta", "5e5");
    maker_set(&m, "rope_scaling", "{\"rope_type\":\"linear\",\"factor\":2}");
    maker_set(&m, "experts_per_token", "2");
    maker_set(&m, "num_experts_per_tok", NULL);
    maker_set(&m, "vocab_size", "16.0");
    maker_set(&m, "max_position_embeddings", "1e5");
    maker_set(&m, "eos_token_id", "[3, 4]");
    maker_set(&m, "swiglu_alpha", "1.5");
    maker_set(&m, "rope.attention_factor", "1.25");
    maker_file(&m, "generation_config.json", "{\"eos_token_id\":[4,5]}", 22);
    mx_config c = config_of(&m);
    assert_true(c.rope_theta == 5e5 && c.yarn);
    assert_int_equal(c.top_k, 2);
    assert_int_equal(c.vocab, 16);
    assert_int_equal(c.max_positions, 100000);
    assert_int_equal(c.eos_count, 3);
    assert_int_equal(c.eos[2], 5);
    assert_true(c.swiglu_alpha == 1.5f);
    double inv[16], concentration;
    mx_config_rope(&c, inv, &concentration);
    assert_true(concentration == 1.25);
    maker_close(&m);
}

/* How tokens are chosen where nobody says. */
static void test_sampling_defaults(void **state) {
    (void)state;
    static const struct {
        const char *text;
        float temperature, top_p;
        int top_k;
    } cases[] = {
        {"{}", 1, 1, 0},
        {"{\"do_sample\": true}", 1, 1, 0},
        {"{\"temperature\": 0.6, \"top_p\": 0.95, \"top_k\": 40}", 0.6f, 0.95f, 40},
        {"{\"do_sample\": true, \"temperature\": 0.6, \"top_p\": null}", 0.6f, 1, 0},
        {"{\"do_sample\": false, \"temperature\": 0.6, \"top_p\": 0.9, \"top_k\": 40}", 0, 1, 0},
    };
    maker m;
    maker_open(&m);
    mx_config c = config_of(&m); /* without the file */
    assert_true(c.temperature == 1 && c.top_p == 1 && c.sample_top_k == 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        maker_file(&m, "generation_config.json", cases[i].text, strlen(cases[i].text));
        c = config_of(&m);
        if (c.temperature != cases[i].temperature || c.top_p != cases[i].top_p || c.sample_top_k != cases[i].top_k)
            fail_msg("%s", cases[i].text);
    }
    maker_close(&m);
}

static void test_plain_rope(void **state) {
    (void)state;
    static const char *const keys[] = {"rope.factor", "rope.beta_fast", "rope.beta_slow", "rope.truncate",
                                       "rope.original_max_position_embeddings"};
    for (int form = 0; form < 2; form++) {
        maker m;
        maker_open(&m);
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) maker_set(&m, keys[i], NULL);
        maker_set(&m, "rope.rope_type", form ? "\"default\"" : NULL);
        maker_set(&m, "rope_theta", "10000.0");
        mx_config c = config_of(&m);
        assert_false(c.yarn);
        double inv[16], concentration;
        mx_config_rope(&c, inv, &concentration);
        assert_true(concentration == 1);
        for (int i = 0; i < 16; i++) assert_true(fabs(inv[i] - pow(10000, -i / 16.0)) < 1e-15);
        maker_close(&m);
    }
}

/* The table of the published gpt-oss models. */
static void test_yarn_table(void **state) {
    (void)state;
    mx_config c = {.head_dim = 64,
                   .rope_theta = 150000,
                   .yarn = true,
                   .yarn_factor = 32,
                   .yarn_beta_fast = 32,
                   .yarn_beta_slow = 1,
                   .yarn_original_positions = 4096};
    static const struct {
        int i;
        double value;
    } table[] = {{0, 1},
                 {7, 7.374456821e-2},
                 {9, 3.170569618e-2},
                 {12, 6.794959490e-3},
                 {16, 4.564839192e-4},
                 {17, 1.293187012e-4},
                 {18, 3.830881237e-5},
                 {31, 3.023511428e-7}};
    double inv[32], concentration;
    mx_config_rope(&c, inv, &concentration);
    assert_true(fabs(concentration - 1.3465735902799727) < 1e-15);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        assert_true(fabs(inv[table[i].i] / table[i].value - 1) < 1e-9);
    /* truncated: bounds 8 and 18, so that pair 13 stands in the middle */
    c.yarn_truncate = true;
    mx_config_rope(&c, inv, &concentration);
    assert_true(fabs(inv[13] / (pow(150000, -13 / 32.0) * (0.5 + 0.5 / 32)) - 1) < 1e-12);
}

/* A short original context pushes the lower bound below pair 0, where it is held. Numbers of the float64 oracle. */
static void test_yarn_bounds(void **state) {
    (void)state;
    static const double table[] = {1.0,
                                   0.3611140287883641,
                                   0.11748292149649765,
                                   0.030155963688402038,
                                   0.002152255628001243,
                                   0.0007539134706999197};
    maker m;
    maker_open(&m);
    mx_config c = config_of(&m); /* head_dim 32, 128 original positions: bounds -0.61 and 4.05 */
    double inv[16], concentration;
    mx_config_rope(&c, inv, &concentration);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) assert_true(fabs(inv[i] / table[i] - 1) < 1e-14);
    maker_close(&m);
}

/* ---- layouts ----------------------------------------------------------------------------------------------------- */

static void check_roles(const mx_weights *w, maker *m) {
    const mx_layer *l = &w->layer[1];
    assert_int_equal(l->q.rows, 64);
    assert_int_equal(l->k.rows, 32);
    assert_int_equal(l->gate_up.matrix.rows, 64);
    assert_int_equal(l->gate_up.matrix.cols, 64);
    assert_int_equal(l->down.matrix.rows, 64);
    assert_int_equal(l->down.matrix.cols, 32);
    assert_int_equal(l->down.data_stride, 64 * 16);
    assert_int_equal(l->down.scale_stride, 64);
    const maker_tensor *t = maker_find(m, "model.layers.1.mlp.experts.down_proj_blocks");
    assert_memory_equal(l->down.matrix.data, t->data, t->bytes);
    t = maker_find(m, "model.layers.1.mlp.experts.down_proj_scales");
    assert_memory_equal(l->down.matrix.scales, t->data, t->bytes);
    assert_true(l->sinks[1] == 2.5f); /* set by mark() */
    assert_int_equal((uintptr_t)l->sinks % 64, 0);
}

/* Makes some tensors tell themselves from the others. */
static void mark(maker *m) {
    uint16_t value = 0x4020; /* 2.5 in BF16 */
    memcpy(maker_find(m, "model.layers.1.self_attn.sinks")->data + 2, &value, 2);
    maker_tensor *t = maker_find(m, "model.layers.1.mlp.experts.down_proj_blocks");
    for (uint64_t i = 0; i < t->bytes; i++) t->data[i] = (uint8_t)(i * 7 + 1);
    t = maker_find(m, "model.layers.1.mlp.experts.down_proj_scales");
    for (uint64_t i = 0; i < t->bytes; i++) t->data[i] = (uint8_t)(i % 255);
}

static void test_layouts(void **state) {
    (void)state;
    for (int form = 0; form < 4; form++) { /* one or three files, without and with an index */
        maker m;
        maker_open(&m);
        mark(&m);
        m.index = form & 1;
        if (form & 2) {
            m.files = 3; /* files 0 to 2 "of 00002"; blocks and scales of one tensor end up in different files */
            for (int i = 0; i < m.tensors; i++) m.tensor[i].file = i % 3;
        }
        mx_weights *w = open_made(&m, NULL);
        check_roles(w, &m);
        assert_string_equal(warnings, "");
        assert_int_equal(mx_checkpoint_count(w->checkpoint), m.tensors);
        for (int i = 1; i < m.tensors; i++)
            assert_true(strcmp(mx_checkpoint_at(w->checkpoint, i - 1)->name, mx_checkpoint_at(w->checkpoint, i)->name) <
                        0);
        assert_null(mx_checkpoint_find(w->checkpoint, "model.layers.2.self_attn.sinks"));
        mx_weights_close(w);
        maker_close(&m);
    }
}

/* With an index, files it does not name are not opened. */
static void test_index_leaves_others_alone(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    m.index = true;
    maker_file(&m, "other.safetensors", "nonsense", 8);
    mx_weights_close(open_made(&m, NULL));
    maker_close(&m);
}

static void test_types(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    mark(&m);
    maker_retype(maker_find(&m, "model.layers.0.self_attn.sinks"), "F32", 1, (int64_t[]){2});
    maker_retype(maker_find(&m, "model.layers.0.mlp.router.bias"), "F16", 1, (int64_t[]){2});
    maker_retype(maker_find(&m, "model.layers.0.self_attn.q_proj.weight"), "F32", 2, (int64_t[]){64, 64});
    maker_retype(maker_find(&m, "model.layers.0.mlp.experts.down_proj_bias"), "F32", 2, (int64_t[]){2, 64});
    maker_retype(maker_find(&m, "model.layers.0.mlp.experts.down_proj_scales"), "F8_E8M0", 3, (int64_t[]){2, 64, 1});
    mx_weights *w = open_made(&m, NULL);
    check_roles(w, &m);
    assert_true(w->layer[0].sinks[1] == 1 && w->layer[0].router_bias[1] == 1 && w->layer[0].attn_norm[63] == 1);
    assert_int_equal(w->layer[0].q.format, MX_F32);
    assert_int_equal(w->layer[0].q.row_stride, 256);
    assert_int_equal(w->layer[0].down.bias_format, MX_F32);
    assert_int_equal(w->layer[1].down.bias_format, MX_BF16);
    mx_weights_close(w);
    maker_close(&m);
}

static void test_tied_and_without_biases(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    maker_set(&m, "tie_word_embeddings", "true");
    maker_set(&m, "attention_bias", "false");
    maker_find(&m, "lm_head.weight")->absent = true;
    for (int i = 0; i < m.tensors; i++)
        if (strstr(m.tensor[i].name, "_proj.bias")) m.tensor[i].absent = true;
    mx_weights *w = open_made(&m, NULL);
    assert_ptr_equal(w->lm_head.data, w->embedding.data);
    assert_null(w->layer[1].q_bias);
    assert_null(w->layer[1].o_bias);
    assert_non_null(w->layer[1].router_bias);
    mx_weights_close(w);
    maker_close(&m);
}

static void test_unknown_tensors_are_named_once(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    maker_add(&m, "model.layers.0.extra", "F64", 1, (int64_t[]){3});
    maker_add(&m, "model.layers.0.empty", "I64", 2, (int64_t[]){0, 5});
    maker_add(&m, "scalar", "F32", 0, NULL);
    mx_weights *w = open_made(&m, NULL);
    assert_non_null(strstr(warnings, "3 tensors are no part of gpt-oss"));
    assert_non_null(strstr(warnings, "model.layers.0.empty"));
    assert_ptr_equal(strchr(warnings, '\n'), warnings + strlen(warnings) - 1); /* one line */
    assert_int_equal(mx_checkpoint_find(w->checkpoint, "model.layers.0.empty")->bytes, 0);
    assert_int_equal(mx_checkpoint_find(w->checkpoint, "scalar")->dims, 0);
    mx_weights_close(w);
    maker_close(&m);
}

/* A golden is read by the same code, as a single file. */
static void test_single_file(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    maker_write(&m);
    mx_checkpoint *ck;
    mx_error error;
    assert_int_equal(mx_checkpoint_open(maker_path(&m, "model.safetensors"), &ck, &error), MX_OK);
    assert_int_equal(mx_checkpoint_count(ck), m.tensors);
    mx_checkpoint_close(ck);
    maker_close(&m);
}

/* The first of several bad scale bytes is reported, whatever the number of threads. */
static void test_scales_in_parallel(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    static const char *const names[] = {"model.layers.1.mlp.experts.gate_up_proj_scales",
                                        "model.layers.1.mlp.experts.down_proj_scales"};
    maker_find(&m, names[0])->data[(1 * 64 + 17) * 2 + 1] = 0xFF;
    maker_find(&m, names[1])->data[3] = 0xFF;
    maker_write(&m);
    for (int threads = 0; threads <= 4; threads++) {
        mx_pool *pool = NULL;
        mx_error error;
        mx_weights *w;
        if (threads) assert_int_equal(mx_pool_create(threads, &pool, &error), MX_OK);
        assert_int_equal(mx_weights_open(m.folder, pool, &w, &error), MX_INVALID_FILE);
        assert_null(w);
        assert_non_null(strstr(error.text, names[0]));
        assert_non_null(strstr(error.text, "expert 1, row 17, block 1 is 0xFF"));
        mx_pool_destroy(pool);
    }
    maker_close(&m);
}

/* Scales longer than one piece of the search, the bad byte at the very end. */
static void test_scales_in_pieces(void **state) {
    (void)state;
    maker m;
    maker_open(&m);
    static const char *const layer = "model.layers.0.mlp.experts.gate_up_proj_scales";
    for (int i = 0; i < m.tensors; i++) { /* one layer of 10,000 experts: 1.28 MB of scales */
        maker_tensor *t = &m.tensor[i];
        if (strstr(t->name, "layers.1.")) t->absent = true;
        if (strstr(t->name, "layers.0.mlp.")) {
            int64_t shape[8];
            for (int d = 0; d < t->dims; d++) shape[d] = d ? t->shape[d] : 10000;
            maker_retype(t, t->dtype, t->dims, shape);
        }
    }
    maker_set(&m, "num_hidden_layers", "1");
    maker_set(&m, "layer_types", "[\"full_attention\"]");
    maker_set(&m, "num_local_experts", "10000");
    maker_tensor *scales = maker_find(&m, layer);
    scales->data[scales->bytes - 1] = 0xFF;
    maker_write(&m);
    mx_pool *pool;
    mx_error error;
    mx_weights *w;
    assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
    assert_int_equal(mx_weights_open(m.folder, pool, &w, &error), MX_INVALID_FILE);
    if (!strstr(error.text, "expert 9999, row 63, block 1 is 0xFF")) fail_msg("%s", error.text);
    scales->data[scales->bytes - 1] = 127;
    mx_weights_close(open_made(&m, pool));
    mx_pool_destroy(pool);
    maker_close(&m);
}

/* The largest weights that fp32 holds: 1.5 * 2^127, 3 * 2^126, 6 * 2^125, with either sign. */
static void test_largest_scales(void **state) {
    (void)state;
    static const uint8_t codes[3] = {0x7F, 0xD5, 0x3B}; /* 6, -6; -3, 3; 1.5, -1.5 */
    maker m;
    mx_error error;
    mx_weights *w;
    maker_open(&m);
    maker_tensor *scales = maker_find(&m, "model.layers.0.mlp.experts.down_proj_scales");
    maker_tensor *blocks = maker_find(&m, "model.layers.0.mlp.experts.down_proj_blocks");
    for (int i = 0; i < 3; i++) {
        scales->data[7 + i] = (uint8_t)(252 + i);
        memset(blocks->data + 16 * (7 + i), codes[i], 16);
    }
    maker_write(&m);
    if (mx_weights_open(m.folder, NULL, &w, &error)) fail_msg("%s", error.text);
    mx_weights_close(w);
    maker_close(&m);
}

/* One scale outside 2..252 is enough for its tensor, and only for that. */
static void test_bf16_safe(void **state) {
    (void)state;
    static const struct {
        int scale;
        bool safe;
    } cases[] = {{2, true}, {252, true}, {1, false}, {0, false}, {253, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int threads = 0; threads <= 2; threads++) {
            maker m;
            mx_pool *pool = NULL;
            maker_open(&m);
            maker_tensor *scales = maker_find(&m, "model.layers.1.mlp.experts.gate_up_proj_scales");
            scales->data[scales->bytes - 2] = (uint8_t)cases[i].scale;
            if (threads) assert_int_equal(mx_pool_create(threads, &pool, NULL), MX_OK);
            mx_weights *w = open_made(&m, pool);
            assert_int_equal(w->layer[1].gate_up.bf16_safe, cases[i].safe);
            assert_true(w->layer[0].gate_up.bf16_safe && w->layer[0].down.bf16_safe && w->layer[1].down.bf16_safe);
            mx_weights_close(w);
            mx_pool_destroy(pool);
            maker_close(&m);
        }
}

/* The checkpoints that came with the project. */
static void test_real(void **state) {
    (void)state;
    static const char *const folders[] = {"tests/data/base", "tests/data/mqa", "tests/data/top1",
                                          "tools/stories/checkpoint"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[1000];
        mx_weights *w;
        mx_error error;
        snprintf(path, sizeof path, "%s/%s", getenv("MXRUN_SOURCE"), folders[i]);
        if (mx_weights_open(path, NULL, &w, &error)) fail_msg("%s", error.text);
        mx_weights_close(w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_fields),
        cmocka_unit_test(test_config_defaults),
        cmocka_unit_test(test_config_spellings),
        cmocka_unit_test(test_sampling_defaults),
        cmocka_unit_test(test_plain_rope),
        cmocka_unit_test(test_yarn_table),
        cmocka_unit_test(test_yarn_bounds),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_index_leaves_others_alone),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_tied_and_without_biases),
        cmocka_unit_test(test_unknown_tensors_are_named_once),
        cmocka_unit_test(test_single_file),
        cmocka_unit_test(test_scales_in_parallel),
        cmocka_unit_test(test_scales_in_pieces),
        cmocka_unit_test(test_largest_scales),
        cmocka_unit_test(test_bf16_safe),
        cmocka_unit_test(test_real),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
