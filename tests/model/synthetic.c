/* Models of random weights: the same bytes everywhere, and numbers that a step can live with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint_maker.h"
#include "model/synthetic.h"
#include "tests/sanitized.h"
#include "tests/two_nodes.h"

enum { ROWS = 64, LAYERS = 24, EXPERTS = 32 };

/* As deep as gpt-oss-20b, and with as many experts. */
static mx_config small(void) {
    mx_config c;
    mx_error error;
    if (mx_synthetic_config("gpt-oss-20b", 0, &c, &error)) fail_msg("%s", error.text);
    c.hidden = 288;
    c.intermediate = 320;
    c.heads = 8;
    c.kv_heads = 2;
    c.vocab = 1003;
    c.eos[0] = 1000;
    c.eos[1] = 1002;
    return c;
}

static mx_weights *make_on(const mx_config *c, uint64_t seed, int threads, mx_numa numa) {
    mx_pool *pool;
    mx_error error;
    mx_weights *w;
    if (mx_pool_create_on(threads, numa, &pool, &error)) fail_msg("%s", error.text);
    if (mx_synthetic_weights(c, seed, pool, numa, NULL, NULL, &w, &error)) fail_msg("%s", error.text);
    mx_pool_destroy(pool);
    return w;
}

static mx_weights *make(const mx_config *c, uint64_t seed, int threads) {
    return make_on(c, seed, threads, MX_NUMA_OFF);
}

static bool same(const mx_checkpoint *a, const mx_checkpoint *b) {
    assert_int_equal(mx_checkpoint_count(a), mx_checkpoint_count(b));
    for (int i = 0; i < mx_checkpoint_count(a); i++) {
        const mx_tensor *x = mx_checkpoint_at(a, i), *y = mx_checkpoint_at(b, i);
        assert_string_equal(x->name, y->name);
        assert_string_equal(x->dtype_name, y->dtype_name);
        assert_int_equal(x->bytes, y->bytes);
        assert_memory_equal(x->shape, y->shape, sizeof x->shape);
        if (memcmp(x->data, y->data, x->bytes)) return false;
    }
    return true;
}

static void seed_alone_decides(void **state) {
    (void)state;
    mx_config c = small();
    mx_weights *one = make(&c, 7, 1), *three = make(&c, 7, 3), *other = make(&c, 8, 2);
    assert_true(same(one->checkpoint, three->checkpoint));
    assert_false(same(one->checkpoint, other->checkpoint));
    /* No tensor is another's copy. */
    const mx_tensor *k = mx_checkpoint_find(one->checkpoint, "model.layers.3.self_attn.k_proj.weight"),
                    *v = mx_checkpoint_find(one->checkpoint, "model.layers.3.self_attn.v_proj.weight");
    assert_memory_not_equal(k->data, v->data, 64);
    mx_weights_close(one);
    mx_weights_close(three);
    mx_weights_close(other);
}

/* On a made-up machine of two nodes each node's part is touched before it is made. */
static void nodes_get_the_same_bytes(void **state) {
    (void)state;
    two_nodes nodes;
    mx_config c = small();
    c.layers = 2;
    mx_weights *one = make(&c, 7, 1);
    if (!two_nodes_begin(&nodes)) {
        mx_weights_close(one);
        skip();
    }
    mx_weights *spread = make_on(&c, 7, 2, MX_NUMA_SPREAD), *turn = make_on(&c, 7, 2, MX_NUMA_INTERLEAVE);
    two_nodes_end(&nodes);
    assert_true(same(one->checkpoint, spread->checkpoint));
    assert_true(same(one->checkpoint, turn->checkpoint));
    mx_weights_close(one);
    mx_weights_close(spread);
    mx_weights_close(turn);
}

static void shapes_are_the_published_ones(void **state) {
    (void)state;
    mx_config c;
    mx_error error;
    assert_int_equal(mx_synthetic_config("gpt-oss-20b", 0, &c, &error), MX_OK);
    assert_int_equal(mx_synthetic_bytes(&c), 13761264768u); /* total_size of the published index */
    assert_int_equal(mx_synthetic_config("gpt-oss-120b", 0, &c, &error), MX_OK);
    assert_int_equal(mx_synthetic_bytes(&c), 65248815744u);
    assert_int_equal(mx_synthetic_config("gpt-oss-20b", 3, &c, &error), MX_OK);
    assert_int_equal(c.layers, 3);
}

/* One prompt of ROWS tokens through all layers. */
static void activations_are_sane(void **state) {
    (void)state;
    mx_config c = small();
    mx_weights *w = make(&c, 1, 2);
    mx_pool *pool;
    mx_error error;
    mx_backend *backend;
    assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
    const mx_backend_options options = {.kv_format = MX_F16, .pages = LAYERS, .max_rows = ROWS, .max_wanted = 1};
    if (mx_cpu_backend_create(w, pool, &options, &backend, &error)) fail_msg("%s", error.text);
    int32_t table[LAYERS];
    for (int i = 0; i < LAYERS; i++) {
        table[i] = i;
        backend->ops->page_clear(backend, i);
    }
    static mx_row row[ROWS];
    static int32_t experts[LAYERS][ROWS][4];
    const size_t floats = (size_t)ROWS * (size_t)c.hidden;
    float *residual = malloc((LAYERS + 1) * floats * sizeof *residual);
    assert_non_null(residual);
    for (int i = 0; i < ROWS; i++)
        row[i] = (mx_row){.token = i * 7919 % c.vocab, .position = i, .wanted = i == ROWS - 1};
    const mx_sequence_view view = {table, 1};
    const mx_batch batch = {.row = row,
                            .rows = ROWS,
                            .sequence = &view,
                            .sequences = 1,
                            .residual = residual,
                            .experts = &experts[0][0][0]};
    if (backend->ops->step(backend, &batch, &error)) fail_msg("%s", error.text);

    for (int layer = 0; layer <= LAYERS; layer++) {
        double sum = 0;
        for (size_t i = 0; i < floats; i++) sum += pow((double)residual[(size_t)layer * floats + i], 2);
        const double size = sqrt(sum / (double)floats);
        if (!(size > 0.3 && size < 30)) fail_msg("residual before layer %d: root mean square %g", layer, size);
    }
    for (int layer = 0; layer < LAYERS; layer++) {
        int count[EXPERTS] = {0}, used = 0, most = 0;
        for (int i = 0; i < ROWS * 4; i++) count[(&experts[layer][0][0])[i]]++;
        for (int e = 0; e < EXPERTS; e++) {
            used += count[e] > 0;
            most = count[e] > most ? count[e] : most;
        }
        if (used < 24 || most > ROWS * 3 / 4) fail_msg("layer %d: %d experts used, one by %d rows", layer, used, most);
    }
    const float *logits = backend->ops->logits(backend, 0);
    for (int i = 0; i < c.vocab; i++) assert_true(fabsf(logits[i]) < 30);
    free(residual);
    backend->ops->destroy(backend);
    mx_pool_destroy(pool);
    mx_weights_close(w);
}

static void a_saved_model_is_the_one_in_memory(void **state) {
    (void)state;
    char parent[] = "/tmp/mxrun-synthetic-XXXXXX", folder[100], path[200];
    assert_non_null(mkdtemp(parent));
    snprintf(folder, sizeof folder, "%s/above/model", parent);
    mx_config c = small();
    mx_pool *pool;
    mx_error error;
    assert_int_equal(mx_pool_create(2, &pool, &error), MX_OK);
    if (mx_synthetic_save(&c, 7, pool, NULL, NULL, folder, &error)) fail_msg("%s", error.text);
    mx_weights *disk, *memory = make(&c, 7, 2);
    if (mx_weights_open(folder, pool, &disk, &error)) fail_msg("%s", error.text);
    assert_true(same(disk->checkpoint, memory->checkpoint));
    const mx_config *read = &disk->config;
    assert_memory_equal(read->sliding, c.sliding, sizeof c.sliding);
    assert_memory_equal(read->eos, c.eos, sizeof c.eos);
    mx_config a = c, b = *read;
    memset(&a.yarn_attention_factor, 0, sizeof(double));
    assert_true(a.rms_eps == b.rms_eps && a.swiglu_alpha == b.swiglu_alpha && a.swiglu_limit == b.swiglu_limit);
    assert_true(a.yarn == b.yarn && a.yarn_truncate == b.yarn_truncate && a.yarn_factor == b.yarn_factor &&
                a.yarn_original_positions == b.yarn_original_positions && a.rope_theta == b.rope_theta);
    assert_true(a.window == b.window && a.top_k == b.top_k && a.max_positions == b.max_positions);
    assert_true(a.temperature == b.temperature && a.top_p == b.top_p && a.sample_top_k == b.sample_top_k);
    mx_weights_close(disk);
    mx_weights_close(memory);

    /* Nothing is written over. */
    assert_int_equal(mx_synthetic_save(&c, 8, pool, NULL, NULL, folder, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "is there already"));
    /* A run that is stopped leaves nothing behind. */
    const volatile sig_atomic_t stop = 1;
    snprintf(path, sizeof path, "%s/other", parent);
    assert_int_equal(mx_synthetic_save(&c, 7, pool, NULL, &stop, path, &error), MX_CANCELLED);
    maker_remove(folder);
    snprintf(folder, sizeof folder, "%s/above", parent);
    assert_int_equal(rmdir(folder), 0);
    assert_int_equal(rmdir(parent), 0); /* it is empty */
    mx_pool_destroy(pool);
}

static void wrong_inputs_are_refused(void **state) {
    (void)state;
    mx_config c;
    mx_error error;
    assert_int_equal(mx_synthetic_config("gpt-oss-7b", 0, &c, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "gpt-oss-20b, gpt-oss-120b or the path of a config.json"));
    assert_int_equal(mx_synthetic_config("gpt-oss-20b", 25, &c, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "it has 1 to 24"));
    assert_int_equal(mx_synthetic_config("/nowhere/config.json", 0, &c, &error), MX_IO);
    assert_int_equal(mx_synthetic_config("gpt-oss-20b", -1, &c, &error), MX_INVALID_ARGUMENT);
}

static void too_much_memory_is_refused_with_numbers(void **state) {
    (void)state;
    if (SANITIZED) skip(); /* their shadow does not fit below a limit */
    struct rlimit before, less;
    mx_config c;
    mx_error error;
    mx_pool *pool;
    mx_weights *w;
    assert_int_equal(mx_synthetic_config("gpt-oss-120b", 0, &c, &error), MX_OK);
    assert_int_equal(mx_pool_create(1, &pool, &error), MX_OK);
    getrlimit(RLIMIT_AS, &before);
    less = before;
    less.rlim_cur = (rlim_t)2 << 30;
    assert_int_equal(setrlimit(RLIMIT_AS, &less), 0);
    assert_int_equal(mx_synthetic_weights(&c, 1, pool, MX_NUMA_OFF, NULL, NULL, &w, &error), MX_NO_MEMORY);
    assert_null(w);
    assert_non_null(strstr(error.text, "65.2 GB"));
    setrlimit(RLIMIT_AS, &before);
    mx_pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seed_alone_decides),
        cmocka_unit_test(nodes_get_the_same_bytes),
        cmocka_unit_test(shapes_are_the_published_ones),
        cmocka_unit_test(activations_are_sane),
        cmocka_unit_test(a_saved_model_is_the_one_in_memory),
        cmocka_unit_test(wrong_inputs_are_refused),
        cmocka_unit_test(too_much_memory_is_refused_with_numbers),
    };
    return cmocka_run_group_tests_name("synthetic models", tests, NULL, NULL);
}
