/* How long steps take, as a whole, on a clock of their own: it goes on where rows are computed and where the disk is
 * read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "check_engine.h"
#include "deferred.h"
#include "engine/prefix_store.h"
#include "model/sampler.h"

enum { MANY = 60, LONGEST = 900, STORED = 640 };

static _Atomic double clock_now = 1;
double __wrap_mx_seconds(void);
double __wrap_mx_seconds(void) {
    return clock_now;
}

static double row_seconds, read_seconds;

static void compute_rows(void *user) {
    const fake_backend *b = user;
    clock_now = clock_now + 0.01 + row_seconds * b->last_rows;
}

/* A device that computes beside the host. */
static void wait_until(double seconds) {
    if (seconds > clock_now) clock_now = seconds;
}

static int64_t reads;
const void *__real_mx_prefix_store_read(mx_prefix_store *store, mx_store_part part, mx_store_key key,
                                        const int32_t *token);
const void *__wrap_mx_prefix_store_read(mx_prefix_store *store, mx_store_part part, mx_store_key key,
                                        const int32_t *token);
const void *__wrap_mx_prefix_store_read(mx_prefix_store *store, mx_store_part part, mx_store_key key,
                                        const int32_t *token) {
    clock_now = clock_now + read_seconds;
    reads++;
    return __real_mx_prefix_store_read(store, part, key, token);
}

static mx_config config;
static fake_backend *backend;
static int32_t prompt[MANY][LONGEST];
static answer a[MANY], decoding;
static mx_request r[MANY];

static mx_engine *start_on(const char *folder) {
    config = fake_config("sf", 128, FAKE_MOST);
    mx_engine_parts parts = {.config = &config, .batch_tokens = 512};
    const mx_prefix_store_options options = {.folder = folder,
                                             .most = 1 << 28,
                                             .config = &config,
                                             .page_bytes = MX_TILE * sizeof(uint64_t),
                                             .identity = "fake"};
    assert_int_equal(mx_prefix_store_open(&options, &parts.store, NULL), MX_OK);
    mx_engine *e = fake_engine_with(&parts, 4000, 0, &backend);
    if (fake_engine_runs_ahead()) {
        deferred_device *device = deferred_device_of(fake_engine_backend());
        device->step_seconds = 0.01;
        device->row_seconds = row_seconds;
        device->wait_until = wait_until;
    } else {
        backend->during = compute_rows;
        backend->user = backend;
    }
    return e;
}

static int ascending(const void *x, const void *y) {
    const double p = *(const double *)x, q = *(const double *)y;
    return (p > q) - (p < q);
}

/* One decodes; prompts come whose beginnings are on a slow disk. */
static double p99(const char *folder, uint64_t seed) {
    enum { STEPS = 3000 };
    static double seconds[STEPS];
    static const int32_t token = 1;
    mx_engine *e = start_on(folder);
    mx_request endless = request_for(&token, 1, 3900, &decoding);
    submit(e, &endless);
    int n = 0, next = 0;
    reads = 0;
    while (next < MANY || !mx_engine_idle(e)) {
        if (n % 6 == 5 && next < MANY) {
            fill(prompt[next] + STORED, LONGEST - STORED, seed * MANY + (uint64_t)next);
            r[next] = request_for(prompt[next], LONGEST, 3, &a[next]);
            submit(e, &r[next++]);
        }
        const double begin = clock_now;
        step(e);
        if (n > 20 && n < STEPS && !decoding.ends) seconds[n] = clock_now - begin;
        n++;
        while (collect(e, 8) > 0) continue;
        if (next == MANY && a[MANY - 1].ends) break;
    }
    for (int i = 0; i < MANY; i++) check_answer(&a[i], &config, &r[i], 3, MX_FINISH_LENGTH);
    assert_true(n > 200 && n < STEPS && reads > MANY * 8);
    mx_engine_destroy(e);
    qsort(seconds, (size_t)n, sizeof *seconds, ascending);
    return seconds[(int)(0.99 * n)];
}

/* What is aimed at is three quarters of what a step may take, 250 ms here: reading is within them. */
static void steps_keep_their_time(void **state) {
    (void)state;
    char folder[] = "/tmp/mxrun-time-XXXXXX", command[100];
    assert_non_null(mkdtemp(folder));
    mx_engine *e = start_on(folder);
    for (int i = 0; i < MANY; i++) {
        fill(prompt[i], LONGEST, 1 + (uint64_t)i);
        r[i] = request_for(prompt[i], STORED + 1, 1, &a[i]);
        submit(e, &r[i]);
    }
    run_until_idle(e);
    mx_engine_destroy(e);
    static const double row[] = {1e-3, 3e-3}, reading[] = {0, 0.02, 0.045};
    for (int i = 0; i < 6; i++) {
        row_seconds = row[i / 3];
        read_seconds = reading[i % 3];
        const double longest = p99(folder, 2 + (uint64_t)i);
        print_message("%.0f ms a row, %.0f a read: p99 %.0f ms\n", 1e3 * row_seconds, 1e3 * read_seconds,
                      1e3 * longest);
        assert_true(longest < 0.2);
    }
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_keep_their_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
