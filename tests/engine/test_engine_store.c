/* Engines one after the other, and two at a time, in front of one folder of prefixes: each request gets what it gets
 * alone, and what another engine computed is not computed again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "check_engine.h"
#include "engine/prefix_store.h"
#include "model/sampler.h"

enum { MANY = 20, LONGEST = 600 };

static char folder[64];
static mx_config config;
static int32_t prompt[MANY][LONGEST];
static answer a[MANY];
static mx_request r[MANY];

static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/mxrun-store-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int tear_down(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

/* A step may ask for no memory, and its test counts for all threads: the store has looked at its folder by now. */
static mx_prefix_store *open_store(void) {
    const mx_prefix_store_options options = {.folder = folder,
                                             .most = 1 << 30,
                                             .config = &config,
                                             .page_bytes = MX_TILE * sizeof(uint64_t),
                                             .identity = "hashes"};
    mx_prefix_store *store;
    assert_int_equal(mx_prefix_store_open(&options, &store, NULL), MX_OK);
    const int32_t token[MX_TILE] = {0};
    void *out = mx_prefix_store_put(store, MX_STORE_FULL, (mx_store_key){0, 0}, token);
    assert_non_null(out);
    mx_prefix_store_commit(store);
    for (mx_prefix_store_stats s = {0}; s.written + s.known == 0; s = mx_prefix_store_get_stats(store)) usleep(100);
    return store;
}

static mx_engine *start(const char *pattern, int64_t pages, int batch, fake_backend **backend) {
    config = fake_config(pattern, 128, FAKE_MOST);
    const mx_engine_parts parts = {.config = &config, .batch_tokens = batch, .store = open_store()};
    return fake_engine_with(&parts, LONGEST + 100, pages, backend);
}

static void make_requests(uint64_t seed) {
    for (int i = 0; i < MANY; i++) {
        const int n = 100 + (int)(mx_sample_uniform(seed, i) * (LONGEST - 100));
        fill(prompt[i], n, seed * 1000 + (uint64_t)i);
        if (i % 3) memcpy(prompt[i], prompt[i - 1], sizeof **prompt * 100);
        r[i] = request_for(prompt[i], n, 1 + i * 3, &a[i]);
        r[i].sampling.temperature = (float)(i % 2);
        r[i].sampling.seed = seed + (uint64_t)i;
    }
}

static void check_all(const fake_backend *backend) {
    for (int i = 0; i < MANY; i++) check_answer(&a[i], &config, &r[i], (int)r[i].max_tokens, MX_FINISH_LENGTH);
    assert_int_equal(backend->empty_reads, 0);
}

static void one_after_the_other(void **state) {
    (void)state;
    static const char *const patterns[] = {"sf", "f", "ffs", "s"};
    for (int p = 0; p < 4; p++) {
        int64_t rows[2] = {0};
        for (int round = 0; round < 4; round++) {
            fake_backend *backend;
            /* from the third on with hardly any pages */
            const mx_config c = fake_config(patterns[p], 128, FAKE_MOST);
            const int64_t pages = round < 2 ? 400 : mx_kv_pages_needed(&c, LONGEST + 100, 64) + 5;
            mx_engine *e = start(patterns[p], pages, 64, &backend);
            make_requests((uint64_t)p);
            for (int i = 0; i < MANY; i++) {
                submit(e, &r[i]);
                step(e);
            }
            run_until_idle(e);
            check_all(backend);
            if (round < 2) rows[round] = backend->rows;
            mx_engine_destroy(e);
        }
        assert_true(rows[1] < rows[0] / 3);
    }
}

static void two_at_a_time(void **state) {
    (void)state;
    fake_backend *first, *second;
    mx_engine *e = start("sf", 0, 64, &first), *f = start("sf", 0, 64, &second);
    make_requests(77);
    for (int i = 0; i < MANY; i++) submit(i % 2 ? e : f, &r[i]);
    for (int i = 0; i < 60; i++) {
        step(e);
        step(f);
    }
    run_until_idle(e);
    run_until_idle(f);
    check_all(first);
    check_all(second);
    make_requests(77);
    for (int i = 0; i < MANY; i++) submit(i % 2 ? f : e, &r[i]); /* the other way round */
    run_until_idle(e);
    run_until_idle(f);
    check_all(first);
    check_all(second);
    mx_engine_destroy(e);
    mx_engine_destroy(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_after_the_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_at_a_time, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
