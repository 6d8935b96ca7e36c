/* Experts in 16 and 32 bits, [experts, in, out]: twins of tests/data/base, whose MXFP4 numbers F16, BF16 and F32 all
 * have, give its goldens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "golden.h"
#include "model/model.h"

static mx_error error;

static void ok(mx_status status) {
    if (status) fail_msg("%s", error.text);
}

static const char *path_of(const char *name) {
    static char paths[4][4096];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 4096, "%s/tests/data/%s", getenv("MXRUN_SOURCE"), name);
    return path;
}

/* ---- a twin ------------------------------------------------------------------------------------------------------ */

static char folder[] = "/tmp/mxrun-experts16-XXXXXX";

static const char *file_of(const char *name) {
    static char paths[4][200];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 200, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *name, const mx_bytes *head, const mx_bytes *data) {
    FILE *f = fopen(file_of(name), "wb");
    assert_non_null(f);
    if (head) assert_int_equal(fwrite(head->data, 1, head->size, f), head->size);
    assert_int_equal(fwrite(data->data, 1, data->size, f), data->size);
    assert_int_equal(fclose(f), 0);
}

static void put_number(mx_bytes *data, mx_dtype as, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t half = as == MX_DTYPE_F16 ? mx_f32_to_f16(x) : (uint16_t)(bits >> 16);
    if (as == MX_DTYPE_F16) assert_true(memcmp(&x, &(float){mx_f16_to_f32(half)}, 4) == 0);
    assert_true(as == MX_DTYPE_F32 ? mx_bytes_add(data, &bits, 4) : mx_bytes_add(data, &half, 2));
}

/* Blocks [experts, out, in / 32, 16] as [experts, in, out] of this type. */
static void put_experts(mx_bytes *data, const mx_tensor *blocks, const mx_tensor *scales, mx_dtype as) {
    const int64_t rows = blocks->shape[1], per_row = blocks->shape[2];
    float *x = malloc((size_t)(rows * per_row * 32) * sizeof *x);
    assert_non_null(x);
    for (int64_t e = 0; e < blocks->shape[0]; e++) {
        for (int64_t b = 0; b < rows * per_row; b++)
            mx_mxfp4_widen(x + 32 * b, blocks->data + (e * rows * per_row + b) * 16,
                           scales->data[e * rows * per_row + b]);
        for (int64_t k = 0; k < 32 * per_row; k++)
            for (int64_t n = 0; n < rows; n++) put_number(data, as, x[n * 32 * per_row + k]);
    }
    free(x);
}

/* base with its experts in this type, in `folder`. */
static void write_twin(mx_dtype as, const char *type) {
    mx_checkpoint *ck;
    mx_bytes data = {0}, head = {0}, config = {0};
    ok(mx_checkpoint_open(path_of("base"), &ck, &error));
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        const size_t length = strlen(t->name), begin = data.size;
        char name[200], shape[100];
        if (mx_ends_with(t->name, "_scales")) continue;
        if (mx_ends_with(t->name, "_blocks")) {
            snprintf(name, sizeof name, "%.*s_scales", (int)length - 7, t->name);
            put_experts(&data, t, mx_checkpoint_find(ck, name), as);
            snprintf(name, sizeof name, "%.*s", (int)length - 7, t->name);
            snprintf(shape, sizeof shape, "%d,%d,%d", (int)t->shape[0], (int)t->shape[2] * 32, (int)t->shape[1]);
        } else {
            snprintf(name, sizeof name, "%s", t->name);
            assert_true(mx_bytes_add(&data, t->data, t->bytes));
            *shape = 0;
            for (int d = 0; d < t->dims; d++)
                snprintf(shape + strlen(shape), 20, "%s%d", d ? "," : "", (int)t->shape[d]);
        }
        mx_bytes_addf(&head, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                      head.size ? "," : "{", name, mx_ends_with(t->name, "_blocks") ? type : t->dtype_name, shape,
                      begin, data.size);
    }
    mx_bytes_addf(&head, "}");
    mx_bytes file = {0};
    const uint64_t size = head.size;
    assert_true(mx_bytes_add(&file, &size, 8) && mx_bytes_add(&file, head.data, head.size));
    write_file("model.safetensors", &file, &data);
    ok(mx_read_file(path_of("base/config.json"), 1 << 20, &config, &error));
    char *quantized = strstr(config.data, "quantization_config");
    if (quantized) *quantized = '-'; /* a key that nobody knows */
    write_file("config.json", NULL, &config);
    mx_bytes_free(&config);
    mx_bytes_free(&file);
    mx_bytes_free(&head);
    mx_bytes_free(&data);
    mx_checkpoint_close(ck);
}

/* ---- goldens ----------------------------------------------------------------------------------------------------- */

/* The golden's rows of logits, in one step in fp32. */
static void check_golden(const mx_weights *w, mx_pool *pool, const golden_case *g, const char *type) {
    enum { TILES = 5 };
    const int layers = w->config.layers, vocab = w->config.vocab;
    mx_precisions precision = {0};
    ok(mx_precisions_parse("fp32", &precision, &error));
    const mx_backend_options options = {.kv_format = MX_F32,
                                        .pages = (int64_t)TILES * layers,
                                        .max_rows = g->count,
                                        .max_wanted = g->row_count,
                                        .precision = &precision};
    mx_backend *b;
    ok(mx_cpu_backend_create(w, pool, &options, &b, &error));
    int32_t table[TILES * 64];
    for (int i = 0; i < TILES * layers; i++) {
        table[i] = i;
        b->ops->page_clear(b, i);
    }
    mx_row *row = calloc((size_t)g->count, sizeof *row);
    float *logits = malloc((size_t)g->row_count * (size_t)vocab * sizeof *logits);
    assert_true(row && logits);
    for (int t = 0; t < g->count; t++) row[t] = (mx_row){g->ids[t], t, 0, false};
    for (int i = 0; i < g->row_count; i++) row[g->rows[i]].wanted = true;
    const mx_sequence_view view = {table, TILES};
    ok(b->ops->step(b, &(mx_batch){.row = row, .rows = g->count, .sequence = &view, .sequences = 1}, &error));
    for (int i = 0; i < g->row_count; i++)
        memcpy(logits + (int64_t)i * vocab, b->ops->logits(b, i), (size_t)vocab * sizeof *logits);
    const double kl = golden_mean_kl(g->logits, logits, g->row_count, vocab);
    if (!(kl < 1e-7)) fail_msg("%s, %s: KL %g", type, g->name, kl);
    free(row);
    free(logits);
    b->ops->destroy(b);
}

static void check(mx_dtype as, mx_format format, const char *type) {
    mx_pool *pool;
    mx_weights *w;
    mx_checkpoint *golden;
    golden_case g;
    write_twin(as, type);
    ok(mx_pool_create(2, &pool, &error));
    ok(mx_weights_open(folder, pool, &w, &error));
    assert_int_equal(w->layer[0].gate_up.matrix.format, format);
    assert_int_equal(w->layer[1].down.matrix.format, format);
    ok(mx_checkpoint_open(path_of("base.golden.safetensors"), &golden, &error));
    int checked = 0;
    for (int i = 0; golden_next(golden, &i, &g);)
        if (g.count <= 64) {
            check_golden(w, pool, &g, type);
            checked++;
        }
    assert_true(checked > 1);
    mx_checkpoint_close(golden);
    mx_weights_close(w);
    mx_pool_destroy(pool);
}

static void test_f16(void **state) {
    (void)state;
    check(MX_DTYPE_F16, MX_F16, "F16");
}

static void test_bf16(void **state) {
    (void)state;
    check(MX_DTYPE_BF16, MX_BF16, "BF16");
}

/* Rounded while they are read are those of BF16 alone: the others are refused with the way out. */
static void test_f32(void **state) {
    (void)state;
    mx_weights *w;
    check(MX_DTYPE_F32, MX_F32, "F32");
    const mx_load_options options = {.way = MX_LOAD_LAZY, .threads = 1, .quantize_experts = MX_ROUND_OCP};
    assert_int_equal(mx_weights_load(folder, &options, NULL, &w, &error), MX_UNSUPPORTED);
    assert_non_null(strstr(error.text, "is F32"));
    assert_non_null(strstr(error.text, "mxrun quantize"));
}

static int open_folder(void **state) {
    (void)state;
    return !mkdtemp(folder);
}

static int close_folder(void **state) {
    (void)state;
    unlink(file_of("model.safetensors"));
    unlink(file_of("config.json"));
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f32),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
