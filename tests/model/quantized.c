/* Quantised folders (docs/quantized.md): in every format the model computes what its twin in F32 computes, however its
 * tensors lie in files; and what is wrong with one is said, by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/quantized.h"
#include "quantized_maker.h"

enum { TOKENS = 10 };

typedef struct logits {
    float of[TOKENS][Q_VOCAB];
} logits;

/* ---- log ----------------------------------------------------------------------------------------------------------
 */
static char said[4000];
static mx_log_level heard = MX_LOG_WARNING; /* and what is worse */

static void listen(void *user, mx_log_level level, const char *line) {
    (void)user;
    if (level < heard) return;
    const size_t used = strlen(said);
    snprintf(said + used, sizeof said - used, "%s\n", line);
}

static int set_up(void **state) {
    (void)state;
    mx_log_set_sink(listen, NULL);
    return 0;
}

/* ---- running ------------------------------------------------------------------------------------------------------
 */

static mx_weights *open_folder(const maker *m) {
    mx_error error;
    mx_weights *w;
    if (mx_weights_open(m->folder, NULL, &w, &error)) fail_msg("%s", error.text);
    return w;
}

/* By `kernels`, or where they are NULL those of `tier`, NULL: the best. */
static void compute_by(const mx_weights *w, const mx_kernels *kernels, const char *tier, const char *precision,
                       logits *out) {
    mx_error error;
    mx_precisions precisions;
    mx_pool *pool;
    mx_backend *b;
    assert_int_equal(mx_pool_create(1, &pool, &error), MX_OK);
    assert_int_equal(mx_precisions_parse(precision, &precisions, &error), MX_OK);
    const mx_backend_options options = {.kv_format = MX_F32,
                                        .pages = Q_LAYERS,
                                        .max_rows = TOKENS,
                                        .max_wanted = TOKENS,
                                        .tier = tier,
                                        .kernels = kernels,
                                        .precision = &precisions};
    if (mx_cpu_backend_create(w, pool, &options, &b, &error)) fail_msg("%s", error.text);
    const int32_t table[Q_LAYERS] = {0, 1};
    const mx_sequence_view view = {table, 1};
    mx_row row[TOKENS];
    for (int i = 0; i < Q_LAYERS; i++) b->ops->page_clear(b, i);
    for (int i = 0; i < TOKENS; i++) row[i] = (mx_row){.token = i * 5 % Q_VOCAB, .position = i, .wanted = true};
    const mx_batch batch = {.row = row, .rows = TOKENS, .sequence = &view, .sequences = 1};
    if (b->ops->step(b, &batch, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < TOKENS; i++) memcpy(out->of[i], b->ops->logits(b, i), sizeof out->of[i]);
    b->ops->destroy(b);
    mx_pool_destroy(pool);
}

static void compute_at(const mx_weights *w, const char *tier, const char *precision, logits *out) {
    compute_by(w, NULL, tier, precision, out);
}

static void compute(const mx_weights *w, const char *tier, logits *out) {
    compute_at(w, tier, "fp32", out);
}

/* Opens, runs and removes the folder. */
static void run_and_close(maker *m, logits *out) {
    maker_write(m);
    mx_weights *w = open_folder(m);
    compute(w, "scalar", out);
    mx_weights_close(w);
    maker_close(m);
}

static void check_near(const char *what, const logits *found, const logits *want, double most) {
    double largest = 0, error = 0;
    for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < Q_VOCAB; i++) {
            largest = fmax(largest, fabs((double)want->of[t][i]));
            error = fmax(error, fabs((double)found->of[t][i] - (double)want->of[t][i]));
            if (!isfinite(found->of[t][i])) fail_msg("%s: logit %d of token %d is no number", what, i, t);
        }
    if (!(error <= most * largest)) fail_msg("%s: logits differ by %g of %g", what, error, largest);
    assert_true(largest > 0.1);
}

/* ---- every format -------------------------------------------------------------------------------------------------
 */
static int form_of_all;
static int all_alike(const char *module) {
    (void)module;
    return form_of_all;
}

/* A different form for every module, but for experts' gate and up of one layer. */
static int mixed(const char *module) {
    uint32_t hash = 5;
    const char *experts = strstr(module, ".experts.");
    char name[200];
    snprintf(name, sizeof name, "%.*s%s", experts ? (int)(experts - module) : 199, module,
             !experts                      ? ""
             : strstr(module, "down_proj") ? "down"
                                           : "gate");
    for (const char *p = name; *p; p++) hash = hash * 37 + (unsigned char)*p;
    return (int)(hash >> 4) % Q_FORMS;
}

static void check_name(const mx_matrix *w, bool bf16_safe) {
    char name[MX_WEIGHT_NAME];
    const q_form *f = &q_forms[form_of_all];
    mx_weight_name(name, w);
    assert_string_equal(name, f->name);
    if (bf16_safe != f->bf16_safe || w->bf16_safe != f->bf16_safe) fail_msg("%s: bf16_safe is %d", name, bf16_safe);
    assert_int_equal(w->format, form_of_all == Q_MXFP4 ? MX_MXFP4 : f->format);
}

static void test_every_format(void **state) {
    (void)state;
    for (form_of_all = 0; form_of_all < Q_FORMS; form_of_all++) {
        const q_form *f = &q_forms[form_of_all];
        maker q, twin;
        logits found, want, fast, parts;
        *said = 0;
        q_make(&q, &twin, all_alike, false);
        run_and_close(&twin, &want);
        maker_write(&q);
        mx_weights *w = open_folder(&q);
        compute(w, "scalar", &found);
        compute(w, NULL, &fast);
        compute_at(w, NULL, "bf16x2", &parts);
        check_name(&w->embedding, w->embedding.bf16_safe);
        check_name(&w->lm_head, w->lm_head.bf16_safe);
        for (int i = 0; i < Q_LAYERS; i++) {
            const mx_layer *l = &w->layer[i];
            check_name(&l->q, l->q.bf16_safe);
            check_name(&l->router, l->router.bf16_safe);
            if (f->format != MX_BF16) check_name(&l->gate_up.matrix, l->gate_up.bf16_safe);
            if (f->format != MX_BF16) check_name(&l->down.matrix, l->down.bf16_safe);
        }
        assert_int_equal(mx_checkpoint_made(w->checkpoint), 0); /* all of it lies in the file */
        mx_weights_close(w);
        maker_close(&q);
        if (!f->post && memcmp(&found, &want, sizeof want)) fail_msg("%s: other bits than its twin", f->name);
        check_near(f->name, &found, &want, 1e-5);
        check_near(f->name, &fast, &want, 1e-4);
        check_near(f->name, &parts, &want, 2e-3);
        if (strstr(said, "ignored")) fail_msg("%s: %s", f->name, said);
    }
}

static void test_mixed(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        maker q, twin;
        logits found, want;
        q_make(&q, &twin, mixed, tied);
        run_and_close(&q, &found);
        run_and_close(&twin, &want);
        check_near(tied ? "tied" : "mixed", &found, &want, 1e-5);
    }
}

static int nvfp4_or_int4(const char *module) {
    return strstr(module, "layers.0.") ? Q_NVFP4 : strstr(module, "_proj") ? Q_INT4_ASYM : Q_FP8_CHANNEL;
}

/* The last expert's tensor comes later than at one distance from those before it. */
static void last_of_all(maker *m, maker_tensor *t) {
    const maker_tensor moved = *t;
    memmove(t, t + 1, (size_t)(m->tensor + --m->tensors - t) * sizeof *t);
    m->tensor[m->tensors++] = moved;
}

/* Experts anywhere in several files are put together in memory, to the same bits, however they are loaded. */
static void test_scattered(void **state) {
    (void)state;
    char name[MX_IDENTITY], second[MX_IDENTITY];
    logits found[3];
    mx_error error;
    mx_pool *pool;
    assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
    for (int scattered = 0; scattered < 3; scattered++) { /* in order; all but one; in none, in three files */
        maker q;
        q_make(&q, NULL, nvfp4_or_int4, false);
        if (scattered == 1) last_of_all(&q, q_part(&q, "model.layers.1.mlp.experts.3.up_proj", "weight_packed"));
        if (scattered == 2) q_scatter(&q, 3);
        q.index = scattered == 2;
        maker_write(&q);
        mx_weights *w = open_folder(&q);
        compute(w, "scalar", &found[scattered]);
        assert_int_equal(mx_weights_identity(w, &(mx_identity_options){.pool = pool}, name, &error), MX_OK);
        assert_true((mx_checkpoint_made(w->checkpoint) > 0) == (scattered > 0));
        mx_weights_close(w);
        for (int way = MX_LOAD_MAP; scattered && way <= MX_LOAD_LOOK; way++) {
            if (mx_weights_load(q.folder, &(mx_load_options){.way = (mx_load_way)way}, NULL, &w, &error))
                fail_msg("%s", error.text);
            logits again;
            if (way != MX_LOAD_LOOK) compute(w, "scalar", &again);
            if (way != MX_LOAD_LOOK) assert_memory_equal(&again, found, sizeof again);
            assert_int_equal(mx_weights_identity(w, &(mx_identity_options){.pool = pool}, second, &error), MX_OK);
            if (way != MX_LOAD_LOOK) assert_string_equal(second, name);
            mx_weights_close(w);
        }
        maker_close(&q);
    }
    mx_pool_destroy(pool);
    assert_memory_equal(&found[0], &found[1], sizeof *found);
    assert_memory_equal(&found[0], &found[2], sizeof *found);
}

/* ---- another program's tensors --------------------------------------------------------------------------------------
 */

/* tests/data/compressed_tensors.safetensors: what compressed-tensors packs is what it unpacks it to. */
static void test_compressed_tensors(void **state) {
    (void)state;
    static const struct {
        const char *module, *name;
        double most; /* relative difference */
    } golden[] = {
        {"mxfp4", "MXFP4", 0},
        {"mxfp6", "MXFP6 E2M3", 0},
        {"mxfp8", "MXFP8 E4M3", 0},
        {"nvfp4", "NVFP4", 2e-7},
        {"fp8_channel", "FP8 E4M3 channel", 0},
        {"int4_32", "INT4 of 32", 0},
        {"int4_64", "INT4 of 64", 0},
        {"int4_128", "INT4 of 128", 0},
        {"int4_32_asym", "INT4 of 32 asymmetric", 0},
        {"int4_64_asym", "INT4 of 64 asymmetric", 0},
        {"int4_128_asym", "INT4 of 128 asymmetric", 0},
        {"int8_32", "INT8 of 32", 0},
        {"int8_64", "INT8 of 64", 0},
        {"int8_128", "INT8 of 128", 0},
        {"int8_64_asym", "INT8 of 64 asymmetric", 0},
    };
    enum { ROWS = 16, COLS = 128 };
    const char *root = getenv("MXRUN_SOURCE");
    char path[500];
    mx_checkpoint *ck;
    mx_error error;
    snprintf(path, sizeof path, "%s/tests/data/compressed_tensors.safetensors", root ? root : ".");
    if (mx_checkpoint_open(path, &ck, &error)) fail_msg("%s", error.text);
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        mx_block_tensor b;
        char name[MX_WEIGHT_NAME], want[40];
        assert_true(mx_module_quantized(ck, golden[i].module));
        if (mx_module_read(ck, path, golden[i].module, 0, ROWS, COLS, &b, &error)) fail_msg("%s", error.text);
        if (mx_blocks_finish(&b, 1, true, NULL, &error)) fail_msg("%s", error.text);
        mx_weight_name(name, &b.matrix);
        assert_string_equal(name, golden[i].name);
        assert_int_equal(mx_checkpoint_format(ck, golden[i].module), b.matrix.format);
        snprintf(want, sizeof want, "%s.expected", golden[i].module);
        const mx_tensor *expected = mx_checkpoint_find(ck, want);
        assert_non_null(expected);
        for (int n = 0; n < ROWS; n++) {
            float row[COLS], right[COLS];
            mx_matrix_widen_row(row, &b.matrix, n);
            memcpy(right, expected->data + sizeof right * (size_t)n, sizeof right);
            for (int k = 0; k < COLS; k++)
                if (!(fabs((double)row[k] - (double)right[k]) <= golden[i].most * fabs((double)right[k])))
                    fail_msg("%s: row %d, column %d is %g, expected %g", golden[i].module, n, k, (double)row[k],
                             (double)right[k]);
        }
    }
    mx_checkpoint_close(ck);
}

/* ---- gpt-oss's own experts beside others ---------------------------------------------------------------------------
 */
static int nvfp4(const char *module) {
    (void)module;
    return Q_NVFP4;
}

static int mxfp4_experts(const char *module) {
    return strstr(module, ".experts.") ? Q_MXFP4 : Q_NVFP4;
}

/* down_proj of layer 1 as gpt-oss is published instead of in modules: the same bytes. */
static void test_published_experts_beside_modules(void **state) {
    (void)state;
    static const char stem[] = "model.layers.1.mlp.experts.";
    maker q;
    logits want, found;
    q_make(&q, NULL, mxfp4_experts, false);
    run_and_close(&q, &want);
    q_make(&q, NULL, mxfp4_experts, false);
    maker_tensor *blocks = maker_add(&q, "model.layers.1.mlp.experts.down_proj_blocks", "U8", 4,
                                     (int64_t[]){Q_EXPERTS, Q_HIDDEN, Q_INTERMEDIATE / 32, 16}),
                 *scales = maker_add(&q, "model.layers.1.mlp.experts.down_proj_scales", "U8", 3,
                                     (int64_t[]){Q_EXPERTS, Q_HIDDEN, Q_INTERMEDIATE / 32}),
                 *bias = maker_add(&q, "model.layers.1.mlp.experts.down_proj_bias", "BF16", 2,
                                   (int64_t[]){Q_EXPERTS, Q_HIDDEN});
    for (int i = 0; i < q.tensors; i++) {
        maker_tensor *t = &q.tensor[i];
        if (strncmp(t->name, stem, strlen(stem)) || t->name[strlen(stem) + 1] != '.' || !strstr(t->name, "down_proj"))
            continue;
        maker_tensor *to = strstr(t->name, "packed") ? blocks : strstr(t->name, "scale") ? scales : bias;
        memcpy(to->data + (uint64_t)(t->name[strlen(stem)] - '0') * t->bytes, t->data, t->bytes);
        t->absent = true;
    }
    run_and_close(&q, &found);
    assert_memory_equal(&found, &want, sizeof want);
}

/* ---- what is said --------------------------------------------------------------------------------------------------
 */

static void open_with(maker *m, const char *quantization) {
    *said = 0;
    q_make(m, NULL, nvfp4, false);
    maker_set(m, "quantization_config", quantization);
}

static void test_warnings(void **state) {
    (void)state;
    static const char *const quiet[] = {
        "{\"quant_method\":\"mxfp4\"}",
        "{\"quant_method\":\"modelopt\",\"quant_algo\":\"W4A16\"}",
        "{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"g\":{\"input_activations\":null}}}",
        "{\"quant_method\":\"compressed-tensors\",\"transform_config\":{}}",
    };
    static const char *const loud[] = {
        "{\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\"}",
        "{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\"}",
        "{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"g\":{\"input_activations\":{\"bits\":4}}}}",
        "{\"quant_method\":\"compressed-tensors\",\"kv_cache_scheme\":{\"num_bits\":8}}",
    };
    maker m;
    for (size_t i = 0; i < sizeof quiet / sizeof *quiet; i++) {
        open_with(&m, quiet[i]);
        maker_write(&m);
        mx_weights_close(open_folder(&m));
        maker_close(&m);
        if (*said) fail_msg("%s: %s", quiet[i], said);
    }
    for (size_t i = 0; i < sizeof loud / sizeof *loud + 2; i++) {
        open_with(&m, i < sizeof loud / sizeof *loud ? loud[i] : quiet[0]);
        if (i == sizeof loud / sizeof *loud + 1) {
            maker_add(&m, "model.layers.0.self_attn.k_scale", "F32", 1, (int64_t[]){1});
            maker_add(&m, "model.layers.1.self_attn.v_proj.v_scale", "F32", 1, (int64_t[]){1});
        }
        /* Without a word in config.json: scales of activations are there. */
        for (int e = 0; i == sizeof loud / sizeof *loud && e < Q_EXPERTS; e++) {
            char name[100];
            snprintf(name, sizeof name, "model.layers.0.mlp.experts.%d.up_proj.input_global_scale", e);
            maker_add(&m, name, "F32", 1, (int64_t[]){1});
        }
        maker_write(&m);
        mx_weights_close(open_folder(&m));
        maker_close(&m);
        if (!strstr(said, "quantise activations") || strchr(said, '\n')[1]) fail_msg("case %zu: %s", i, said);
    }
}

static void test_scalar_products_are_told_of(void **state) {
    (void)state;
    mx_error error;
    const mx_kernels *best, *scalar;
    maker m;
    logits unused;
    assert_int_equal(mx_kernels_get(NULL, &best, &error), MX_OK);
    assert_int_equal(mx_kernels_get("scalar", &scalar, &error), MX_OK);
    mx_kernels slow = *best;
    slow.name = "made-up";
    memcpy(slow.product[MX_E3M2], scalar->product[MX_E3M2], sizeof slow.product[MX_E3M2]);
    form_of_all = Q_E3M2;
    *said = 0;
    q_make(&m, NULL, all_alike, false);
    maker_write(&m);
    mx_weights *w = open_folder(&m);
    compute(w, "scalar", &unused);
    assert_string_equal(said, "");
    compute_by(w, &slow, NULL, "fp32", &unused);
    if (!strstr(said, "the made-up kernels have no products of MXFP6 E3M2 weights of their own: scalar code"))
        fail_msg("%s", said);
    mx_weights_close(w);
    maker_close(&m);
}

/* Experts in modules of their own stay what they are, whatever the rounding: said where there is one to be rounded. */
static void test_rounding_leaves_modules(void **state) {
    (void)state;
    static const int forms[] = {Q_NVFP4, Q_BF16};
    for (int i = 0; i < 2; i++) {
        maker m;
        logits want, found;
        form_of_all = forms[i];
        q_make(&m, NULL, all_alike, false);
        maker_write(&m);
        mx_weights *w = open_folder(&m);
        compute(w, NULL, &want);
        mx_weights_close(w);
        for (int rounding = MX_ROUND_OCP; rounding <= MX_ROUND_SEARCH; rounding++) {
            mx_error error;
            *said = 0;
            const mx_load_options options = {.quantize_experts = (mx_rounding)rounding};
            if (mx_weights_load(m.folder, &options, NULL, &w, &error)) fail_msg("%d: %s", rounding, error.text);
            compute(w, NULL, &found);
            assert_memory_equal(&found, &want, sizeof want);
            const char *expect = forms[i] == Q_BF16 ? "experts in modules of their own are not rounded when"
                                                    : "no expert is BF16: there is nothing to round";
            if (!strstr(said, expect) || strchr(said, '\n')[1]) fail_msg("%d: %s", rounding, said);
            mx_weights_close(w);
        }
        maker_close(&m);
    }
}

static int int8_mixture(const char *module) {
    return strstr(module, "layers.0.mlp.experts.") ? Q_MXFP4 : strstr(module, ".experts.") ? Q_NVFP4 : Q_BF16;
}

/* --precision int8 takes bf16 for experts that have no products with INT8. */
static void test_int8_beside_others(void **state) {
    (void)state;
    maker m;
    logits want, found;
    heard = MX_LOG_INFO;
    q_make(&m, NULL, int8_mixture, false);
    maker_write(&m);
    mx_weights *w = open_folder(&m);
    compute(w, NULL, &want);
    *said = 0;
    compute_at(w, NULL, "int8", &found);
    if (!strstr(said, "3 matrices of experts are not MXFP4")) fail_msg("%s", said);
    check_near("int8", &found, &want, 0.05);
    mx_weights_close(w);
    maker_close(&m);
    heard = MX_LOG_WARNING;
}

/* ---- what is wrong -------------------------------------------------------------------------------------------------
 */
#define Q_PROJ "model.layers.1.self_attn.q_proj"
#define UP     "model.layers.1.mlp.experts.2.up_proj"

typedef struct wrong {
    const char *what;
    int form;
    mx_status status;
    const char *expect;
    void (*change)(maker *m);
    const char *config; /* quantization_config; NULL: mxrun's */
} wrong;

static void drop(maker *m, const char *module, const char *part) {
    q_part(m, module, part)->absent = true;
}
static void shape_of(maker *m, const char *module, const char *part, int64_t a, int64_t b) {
    maker_tensor *t = q_part(m, module, part);
    maker_retype(t, t->dtype, 2, (int64_t[]){a, b});
}
static void type_of(maker *m, const char *module, const char *part, const char *dtype) {
    maker_tensor *t = q_part(m, module, part);
    maker_retype(t, dtype, t->dims, (int64_t[]){t->shape[0], t->shape[1]});
}
static void extra(maker *m, const char *module, const char *part, const char *dtype, int64_t a) {
    char name[200];
    snprintf(name, sizeof name, "%s.%s", module, part);
    maker_add(m, name, dtype, 1, &a);
}
static void put_f32(maker *m, const char *module, const char *part, float x) {
    memcpy(q_part(m, module, part)->data, &x, 4);
}

static void no_scale(maker *m) {
    drop(m, Q_PROJ, "weight_scale");
}
static void no_global(maker *m) {
    drop(m, Q_PROJ, "weight_global_scale");
}
static void no_packed(maker *m) {
    drop(m, Q_PROJ, "weight_packed");
}
static void no_expert(maker *m) {
    drop(m, UP, "weight_packed");
}
static void no_last_expert(maker *m) {
    drop(m, "model.layers.1.mlp.experts.3.up_proj", "weight_packed");
}
static void no_expert_scale(maker *m) {
    for (int e = 0; e < Q_EXPERTS; e++) {
        char name[100];
        snprintf(name, sizeof name, "model.layers.1.mlp.experts.%d.up_proj", e);
        drop(m, name, "weight_scale");
    }
}
static void no_expert_bias(maker *m) {
    for (int e = 0; e < Q_EXPERTS; e++) {
        char name[100];
        snprintf(name, sizeof name, "model.layers.0.mlp.experts.%d.down_proj", e);
        drop(m, name, "bias");
    }
}
static void no_up(maker *m) {
    for (int i = 0; i < m->tensors; i++)
        if (strstr(m->tensor[i].name, "layers.0.") && strstr(m->tensor[i].name, "up_proj")) m->tensor[i].absent = true;
}
static void narrow_packed(maker *m) {
    shape_of(m, Q_PROJ, "weight_packed", 128, 63);
}
static void few_rows(maker *m) {
    shape_of(m, Q_PROJ, "weight_packed", 127, 64);
}
static void scales_of_8(maker *m) {
    shape_of(m, Q_PROJ, "weight_scale", 128, 16);
}
static void scales_of_256(maker *m) {
    shape_of(m, Q_PROJ, "weight_scale", 128, 0);
}
static void one_expert_wider(maker *m) {
    shape_of(m, UP, "weight_scale", 128, 16);
}
static void one_expert_other(maker *m) {
    type_of(m, UP, "weight_packed", "I8");
}
static void first_expert_other(maker *m) {
    type_of(m, "model.layers.1.mlp.experts.0.up_proj", "weight_packed", "I8");
}
static void packed_bf16(maker *m) {
    type_of(m, Q_PROJ, "weight_packed", "BF16");
}
static void scale_f32(maker *m) {
    type_of(m, Q_PROJ, "weight_scale", "F32");
}
static void global_bf16(maker *m) {
    type_of(m, Q_PROJ, "weight_global_scale", "BF16");
}
static void two_globals(maker *m) {
    maker_retype(q_part(m, Q_PROJ, "weight_global_scale"), "F32", 1, (int64_t[]){2});
}
static void f64(maker *m) {
    type_of(m, Q_PROJ, "weight", "F64");
}
static void zero_points(maker *m) {
    extra(m, Q_PROJ, "weight_zero_point", "I8", 4);
}
static void act_order(maker *m) {
    extra(m, Q_PROJ, "weight_g_idx", "I32", 128);
}
static void awq(maker *m) {
    extra(m, "model.layers.0.mlp.experts.1.up_proj", "pre_quant_scale", "BF16", 128);
    extra(m, "model.layers.0.mlp.experts.0.up_proj", "pre_quant_scale", "BF16", 128);
    extra(m, "model.layers.0.mlp.experts.2.up_proj", "pre_quant_scale", "BF16", 128);
    extra(m, "model.layers.0.mlp.experts.3.up_proj", "pre_quant_scale", "BF16", 128);
}
static void deepseek(maker *m) {
    drop(m, Q_PROJ, "weight_scale");
    extra(m, Q_PROJ, "weight_scale_inv", "F32", 1);
}
static void scale_beside_bf16(maker *m) {
    extra(m, Q_PROJ, "weight_scale", "F32", 1);
}
static void both_weights(maker *m) {
    extra(m, Q_PROJ, "weight", "BF16", 128);
}
static void zeros_f32(maker *m) {
    type_of(m, Q_PROJ, "weight_zero_point", "F32");
}
static void zeros_narrow(maker *m) {
    shape_of(m, Q_PROJ, "weight_zero_point", 15, 4);
}
static void other_shape(maker *m) {
    q_part(m, UP, "weight_shape")->data[0]++;
}
static void shape_f32(maker *m) {
    type_of(m, Q_PROJ, "weight_shape", "F32");
}
static void nan_e8m0(maker *m) {
    q_part(m, UP, "weight_scale")->data[5 * 4 + 2] = 0xFF;
}
static void nan_e4m3(maker *m) {
    q_part(m, UP, "weight_scale")->data[5 * 8 + 2] = 0x7F;
}
static void negative_e4m3(maker *m) {
    q_part(m, Q_PROJ, "weight_scale")->data[5 * 8 + 2] = 0xB8;
}
static void infinite_bf16(maker *m) {
    memcpy(q_part(m, Q_PROJ, "weight_scale")->data + 2 * (3 * 4 + 1), &(uint16_t){0x7F80}, 2);
}
static void beyond_fp32(maker *m) {
    maker_tensor *t = q_part(m, UP, "weight_scale");
    t->data[5 * 4 + 2] = 254;
    memset(q_part(m, UP, "weight_packed")->data + 5 * 64 + 2 * 16, 0x11, 16);
    q_part(m, UP, "weight_packed")->data[5 * 64 + 2 * 16 + 7] = 0x21 << 1; /* 2 in column 64 + 15 */
}
static void beyond_fp32_sides(maker *m) {
    q_part(m, Q_PROJ, "weight_scale")->data[5 * 8 + 3] = 254; /* of the negative ones of block 1 */
    memset(q_part(m, Q_PROJ, "weight_amxfp4")->data + 5 * 64 + 16, 0x77, 16);
    q_part(m, Q_PROJ, "weight_amxfp4")->data[5 * 64 + 16 + 3] = 0x7F;
}
static void nan_element(maker *m) {
    q_part(m, UP, "weight")->data[127 * 128 + 100] = 0xFF;
}
static void infinite_element(maker *m) {
    q_part(m, Q_PROJ, "weight")->data[9] = 0x7C;
}
static void nan_global(maker *m) {
    put_f32(m, UP, "weight_global_scale", NAN);
}
static void zero_global(maker *m) {
    put_f32(m, Q_PROJ, "weight_global_scale", 0);
}
static void negative_global(maker *m) {
    put_f32(m, Q_PROJ, "weight_scale_2", -1);
}
static void huge_global(maker *m) {
    put_f32(m, Q_PROJ, "weight_scale_2", 3e38f);
}
static void infinite_channel(maker *m) {
    const float x = INFINITY;
    memcpy(q_part(m, Q_PROJ, "weight_scale")->data + 4 * 77, &x, 4);
}
static void gate_and_up_differ(maker *m) {
    for (int e = 0; e < Q_EXPERTS; e++) {
        char name[100];
        snprintf(name, sizeof name, "model.layers.0.mlp.experts.%d.up_proj", e);
        shape_of(m, name, "weight_scale", 128, 2);
    }
}

static const wrong cases[] = {
    {"a method nobody knows", Q_NVFP4, MX_UNSUPPORTED, "quantization_config.quant_method is \"gptq\"", NULL,
     "{\"quant_method\":\"gptq\"}"},
    {"no method", Q_NVFP4, MX_UNSUPPORTED, "quantization_config.quant_method is missing", NULL, "{}"},
    {"no object", Q_NVFP4, MX_INVALID_FILE, "quantization_config is 4, expected an object", NULL, "4"},
    {"transforms", Q_NVFP4, MX_UNSUPPORTED, "quantization_config.transform_config is {", NULL,
     "{\"quant_method\":\"compressed-tensors\",\"transform_config\":{\"config_groups\":{\"u\":1}}}"},
    {"no scales", Q_NVFP4, MX_INVALID_FILE, Q_PROJ ".weight_scale is missing", no_scale, NULL},
    {"no scales of MXFP8", Q_MXFP8, MX_INVALID_FILE, Q_PROJ ".weight_scale is missing", no_scale, NULL},
    {"no scales of INT8", Q_INT8_64, MX_INVALID_FILE, Q_PROJ ".weight_scale is missing", no_scale, NULL},
    {"no global scale", Q_NVFP4, MX_INVALID_FILE, Q_PROJ ".weight_global_scale is missing", no_global, NULL},
    {"no codes", Q_NVFP4, MX_INVALID_FILE, Q_PROJ ".weight is missing", no_packed, NULL},
    {"no expert 2", Q_NVFP4, MX_INVALID_FILE, UP ".weight_packed is missing, but experts up to 3", no_expert, NULL},
    {"no expert 3", Q_NVFP4, MX_INVALID_FILE,
     "experts.up_proj.weight_packed: is U8 [3, 128, 64], expected U8 [4, 128, 64]", no_last_expert, NULL},
    {"no scales of experts", Q_MXFP8, MX_INVALID_FILE, "model.layers.1.mlp.experts.up_proj.weight_scale is missing",
     no_expert_scale, NULL},
    {"no bias of experts", Q_MXFP8, MX_INVALID_FILE, "model.layers.0.mlp.experts.0.down_proj.bias is missing",
     no_expert_bias, NULL},
    {"no up_proj", Q_NVFP4, MX_INVALID_FILE, "model.layers.0.mlp.experts.up_proj.weight is missing", no_up, NULL},
    {"too narrow", Q_NVFP4, MX_INVALID_FILE, "is U8 [128, 63], expected U8 [128, 64] for a matrix of 128 columns",
     narrow_packed, NULL},
    {"too few rows", Q_INT4_32, MX_INVALID_FILE, "is I32 [127, 64], expected I32 [128, 16]", few_rows, NULL},
    {"blocks of 8", Q_MXFP4, MX_INVALID_FILE, "is U8 [128, 16], expected U8 or F8_E8M0 [128, 128 / 32 or 16 or 64]",
     scales_of_8, NULL},
    {"INT8 in blocks of 8", Q_INT8_64, MX_INVALID_FILE, "is BF16 [128, 16], expected BF16 [128, 128 / 32 or 64 or 128]",
     scales_of_8, NULL},
    {"no blocks", Q_MXFP4, MX_INVALID_FILE, "is U8 [128, 0]", scales_of_256, NULL},
    {"AMXFP4 in blocks of 16", Q_AMXFP4, MX_INVALID_FILE, "expected U8 or F8_E8M0 [128, 2 * 128 / 32]", scales_of_8,
     NULL},
    {"an expert of another shape", Q_NVFP4, MX_INVALID_FILE,
     UP ".weight_scale: is F8_E4M3 [128, 16], expected F8_E4M3 [128, 8] like model.layers.1.mlp.experts.0.up_proj",
     one_expert_wider, NULL},
    {"an expert of another type", Q_NVFP4, MX_INVALID_FILE, UP ".weight_packed: is I8 [128, 64], expected U8 [128, 64]",
     one_expert_other, NULL},
    {"the first expert of another type", Q_NVFP4, MX_INVALID_FILE,
     "experts.0.up_proj.weight_packed: is I8 [128, 64], expected U8 [128, 64] like "
     "model.layers.1.mlp.experts.1.up_proj",
     first_expert_other, NULL},
    {"gate and up differ", Q_MXFP4_16, MX_UNSUPPORTED, "gate and up have different types", gate_and_up_differ, NULL},
    {"BF16 packed", Q_NVFP4, MX_INVALID_FILE, "is BF16 [128, 64], expected U8 [128, 64] (FP4) or I32", packed_bf16,
     NULL},
    {"F32 scales of MXFP4", Q_MXFP4, MX_INVALID_FILE, Q_PROJ ".weight_scale: is F32 [128, 4], expected U8 or F8_E8M0",
     scale_f32, NULL},
    {"F32 scales of INT8", Q_INT8_32, MX_INVALID_FILE, Q_PROJ ".weight_scale: is F32 [128, 4], expected BF16",
     scale_f32, NULL},
    {"F32 scales of MXFP8", Q_MXFP8, MX_INVALID_FILE, Q_PROJ ".weight_scale: is F32 [128, 4], expected F32 or BF16 [1]",
     scale_f32, NULL},
    {"BF16 global scale", Q_NVFP4, MX_INVALID_FILE, "weight_global_scale: is BF16 [1], expected F32 [1]", global_bf16,
     NULL},
    {"two global scales", Q_NVFP4, MX_INVALID_FILE, "weight_global_scale: is F32 [2], expected F32 [1]", two_globals,
     NULL},
    {"F64", Q_BF16, MX_INVALID_FILE, Q_PROJ ".weight: is F64 [128, 128], expected BF16", f64, NULL},
    {"zero points of NVFP4", Q_NVFP4, MX_UNSUPPORTED, Q_PROJ ".weight_zero_point (I8) is not supported", zero_points,
     NULL},
    {"act-order", Q_INT4_32, MX_UNSUPPORTED, "act-order", act_order, NULL},
    {"AWQ", Q_MODELOPT, MX_UNSUPPORTED, "experts.up_proj.pre_quant_scale (BF16) is not supported: activations", awq,
     NULL},
    {"FP8 in blocks", Q_FP8, MX_UNSUPPORTED, Q_PROJ ".weight_scale_inv (F32) is not supported: scales for blocks",
     deepseek, NULL},
    {"a scale beside BF16", Q_BF16, MX_UNSUPPORTED, Q_PROJ ".weight (BF16) is not supported", scale_beside_bf16, NULL},
    {"two weights", Q_NVFP4, MX_UNSUPPORTED, Q_PROJ ".weight (BF16) is not supported", both_weights, NULL},
    {"F32 zero points", Q_INT8_ASYM, MX_INVALID_FILE, "weight_zero_point: is F32 [128, 2], expected I8 [128, 2]",
     zeros_f32, NULL},
    {"too few zero points", Q_INT4_ASYM, MX_INVALID_FILE, "weight_zero_point: is I32 [15, 4], expected I32 [16, 4]",
     zeros_narrow, NULL},
    {"another weight_shape", Q_INT4_64, MX_INVALID_FILE, UP ".weight_shape: says [129, 128], expected [128, 128]",
     other_shape, NULL},
    {"weight_shape of F32", Q_INT4_64, MX_INVALID_FILE, "weight_shape: is F32 [2", shape_f32, NULL},
    {"NaN scale", Q_MXFP8, MX_INVALID_FILE, "experts.2.up_proj.weight_scale: the scale of row 5, block 2 is 0xFF (NaN)",
     nan_e8m0, NULL},
    {"NaN scale of MXFP4", Q_MXFP4, MX_INVALID_FILE, UP ".weight_scale: the scale of row 5, block 2 is 0xFF (NaN)",
     nan_e8m0, NULL},
    {"NaN scale of NVFP4", Q_NVFP4, MX_INVALID_FILE, UP ".weight_scale: the scale of row 5, block 2 is 0x7F (NaN)",
     nan_e4m3, NULL},
    {"negative scale", Q_MODELOPT, MX_INVALID_FILE,
     Q_PROJ ".weight_scale: the scale of row 5, block 2 is 0xB8 (negative)", negative_e4m3, NULL},
    {"infinite scale", Q_INT8_32, MX_INVALID_FILE, "the scale of row 3, block 1 is 0x7F80 (infinite)", infinite_bf16,
     NULL},
    {"a weight beyond fp32", Q_MXFP4, MX_INVALID_FILE,
     UP ".weight_packed: the element of row 5, column 79 is beyond fp32 with its scale", beyond_fp32, NULL},
    {"a negative weight beyond fp32", Q_AMXFP4, MX_INVALID_FILE,
     "weight_amxfp4: the element of row 5, column 38 is beyond fp32", beyond_fp32_sides, NULL},
    {"NaN element", Q_FP8, MX_INVALID_FILE, UP ".weight: the element of row 127, column 100 is NaN", nan_element, NULL},
    {"infinite element", Q_MXFP8_E5M2, MX_INVALID_FILE, Q_PROJ ".weight: the element of row 0, column 9 is infinite",
     infinite_element, NULL},
    {"NaN global scale", Q_NVFP4, MX_INVALID_FILE, UP ".weight_global_scale: number 0 is nan, NaN", nan_global, NULL},
    {"global scale 0", Q_NVFP4, MX_INVALID_FILE, "weight_global_scale: number 0 is 0, zero", zero_global, NULL},
    {"negative global scale", Q_MODELOPT, MX_INVALID_FILE, "weight_scale_2: number 0 is -1, negative", negative_global,
     NULL},
    {"huge global scale", Q_MODELOPT, MX_INVALID_FILE, "so that weights are beyond fp32", huge_global, NULL},
    {"infinite scale of a channel", Q_FP8_CHANNEL, MX_INVALID_FILE, "weight_scale: number 77 is inf, infinite",
     infinite_channel, NULL},
};

static void test_wrong(void **state) {
    (void)state;
    int failed = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const wrong *c = &cases[i];
        maker m;
        mx_error error = {.text = ""};
        mx_weights *w = NULL;
        mx_pool *pool;
        form_of_all = c->form;
        q_make(&m, NULL, all_alike, false);
        if (c->change) c->change(&m);
        if (c->config) maker_set(&m, "quantization_config", c->config);
        maker_write(&m);
        assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
        const mx_status status = mx_weights_load(m.folder, &(mx_load_options){.way = MX_LOAD_MAP}, pool, &w, &error);
        const bool right = status == c->status && !w && strstr(error.text, c->expect) && strstr(error.text, m.folder) &&
                           !strchr(error.text, '\n');
        if (!right)
            print_error("%s: \"%s\" (%s), expected \"%s\" (%s)\n", c->what, error.text, mx_status_name(status),
                        c->expect, mx_status_name(c->status));
        failed += !right;
        mx_pool_destroy(pool);
        mx_weights_close(w);
        maker_close(&m);
    }
    assert_int_equal(failed, 0);
}

/* A block whose scale is so large that only its codes, which are small, keep it within fp32. */
static void test_large_scales_of_small_codes(void **state) {
    (void)state;
    maker m;
    form_of_all = Q_MXFP4_16;
    q_make(&m, NULL, all_alike, false);
    q_part(&m, Q_PROJ, "weight_scale")->data[1] = 254;
    memset(q_part(&m, Q_PROJ, "weight_packed")->data + 8, 0x9A, 8); /* +-1, 0.5 */
    q_part(&m, "model.layers.1.self_attn.k_proj", "weight_scale")->data[1] = 1;
    maker_write(&m);
    mx_weights *w = open_folder(&m);
    assert_true(w->layer[0].q.bf16_safe);
    assert_true(w->layer[1].v.bf16_safe);
    assert_true(w->layer[1].q.bf16_safe);  /* though others of its codes would not be */
    assert_false(w->layer[1].k.bf16_safe); /* 0.5 * 2^-126 */
    mx_weights_close(w);
    maker_close(&m);
}

/* Blocks of zeros may have the least scale; elements of the others then decide. In every form of E8M0, experts too. */
static void test_least_scales_of_zeros(void **state) {
    (void)state;
    static const int forms[] = {Q_MXFP4, Q_MXFP4_16, Q_AMXFP4, Q_E2M3, Q_MXFP8, Q_MXFP8_E5M2};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        for (int one = 0; one < 2; one++) {
            maker m;
            form_of_all = forms[i];
            const q_form *f = &q_forms[form_of_all];
            const int64_t bytes = mx_columns_bytes(f->format, f->blocks.columns);
            q_make(&m, NULL, all_alike, false);
            static const char *const modules[] = {Q_PROJ, UP};
            for (int j = 0; j < 2; j++) {
                maker_tensor *t = q_part(&m, modules[j], f->part);
                memset(q_part(&m, modules[j], "weight_scale")->data, 0, f->blocks.sides ? 2 : 1);
                memset(t->data, 0, (size_t)bytes);
                if (one) t->data[bytes - 1] = mx_element_bits(f->format) == 8 ? 0x01 : 0x10; /* the last column */
            }
            maker_write(&m);
            mx_weights *w = open_folder(&m);
            if (w->layer[1].q.bf16_safe == (one == 1) || w->layer[1].up.bf16_safe == (one == 1))
                fail_msg("%s: bf16_safe is %d, of experts %d", f->name, w->layer[1].q.bf16_safe,
                         w->layer[1].up.bf16_safe);
            mx_weights_close(w);
            maker_close(&m);
        }
}

/* Scales of channels in one dimension. */
static void test_channels_in_one_dimension(void **state) {
    (void)state;
    maker m;
    logits want, found;
    form_of_all = Q_FP8_CHANNEL;
    q_make(&m, NULL, all_alike, false);
    run_and_close(&m, &want);
    q_make(&m, NULL, all_alike, false);
    for (int i = 0; i < m.tensors; i++)
        if (strstr(m.tensor[i].name, "weight_scale")) m.tensor[i].dims = 1;
    run_and_close(&m, &found);
    assert_memory_equal(&found, &want, sizeof want);
}

/* Elements are looked at where all bytes are brought in anyway. */
static void test_lazy_leaves_elements_alone(void **state) {
    (void)state;
    maker m;
    mx_error error;
    mx_weights *w;
    form_of_all = Q_FP8;
    q_make(&m, NULL, all_alike, false);
    nan_element(&m);
    maker_write(&m);
    mx_weights_close(open_folder(&m));
    assert_int_equal(mx_weights_load(m.folder, &(mx_load_options){.way = MX_LOAD_READ}, NULL, &w, &error),
                     MX_INVALID_FILE);
    maker_close(&m);
}

/* Integers times powers of two are numbers of BF16. */
static void test_integers_with_powers_of_two(void **state) {
    (void)state;
    maker m;
    form_of_all = Q_INT8_64;
    q_make(&m, NULL, all_alike, false);
    maker_tensor *t = q_part(&m, Q_PROJ, "weight_scale");
    for (uint64_t i = 0; i < t->bytes; i += 2) memcpy(t->data + i, &(uint16_t){(uint16_t)(i % 3 ? 0x3B00 : 0x3A80)}, 2);
    maker_write(&m);
    mx_weights *w = open_folder(&m);
    assert_false(w->layer[0].q.bf16_safe);
    assert_true(w->layer[1].q.bf16_safe);
    mx_weights_close(w);
    maker_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_format),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_scattered),
        cmocka_unit_test(test_compressed_tensors),
        cmocka_unit_test(test_published_experts_beside_modules),
        cmocka_unit_test(test_warnings),
        cmocka_unit_test(test_scalar_products_are_told_of),
        cmocka_unit_test(test_wrong),
        cmocka_unit_test(test_rounding_leaves_modules),
        cmocka_unit_test(test_int8_beside_others),
        cmocka_unit_test(test_least_scales_of_zeros),
        cmocka_unit_test(test_channels_in_one_dimension),
        cmocka_unit_test(test_lazy_leaves_elements_alone),
        cmocka_unit_test(test_large_scales_of_small_codes),
        cmocka_unit_test(test_integers_with_powers_of_two),
    };
    return cmocka_run_group_tests_name("quantised checkpoints", tests, set_up, NULL);
}
