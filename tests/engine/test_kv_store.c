/* Cached prefixes in a folder: what a new process finds of what others computed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/log.h"
#include "kv_check.h"
#include "model/sampler.h"

static char folder[64];
static int warnings;

static void count_warning(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)line;
    warnings += level >= MX_LOG_WARNING;
}

static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/mxrun-store-XXXXXX");
    warnings = 0;
    mx_log_set_sink(count_warning, NULL);
    return mkdtemp(folder) == NULL;
}

static int tear_down(void **state) {
    (void)state;
    mx_log_set_sink(NULL, NULL);
    char command[100];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

static mx_prefix_store *open_store(const kv_fixture *f, uint64_t queue) {
    return kv_open_store(f, folder, queue);
}

static void fill(int32_t *tokens, int64_t begin, int64_t end, uint64_t seed) {
    for (int64_t i = begin; i < end; i++) tokens[i] = (int32_t)(mx_sample_uniform(seed, i) * 60);
}

/* A prompt of `prompt` tokens and its answer. Returns what was resumed. */
static int64_t answer(kv_fixture *f, const int32_t *tokens, int64_t prompt, int64_t count) {
    mx_sequence s, *one = &s;
    assert_int_equal(mx_sequence_init(&s, f->kv, KV_MOST, NULL), MX_OK);
    while (!mx_kv_fetch(f->kv, tokens, prompt - 1, 1)) continue;
    kv_check_structure(f, NULL, 0);
    const int64_t resumed = mx_sequence_resume(&s, tokens, prompt - 1);
    kv_grow(f, &s, tokens, prompt, 100);
    mx_sequence_mark(&s, tokens);
    kv_grow(f, &s, tokens, count, 1);
    kv_check_content(f, &s, tokens);
    kv_check_structure(f, &one, 1);
    mx_sequence_end(&s, tokens, true);
    mx_sequence_free(&s);
    return resumed;
}

static const struct {
    const char *pattern;
    int window;
} models[] = {{"sf", 20}, {"fs", 64}, {"fsf", 65}, {"ff", 1}, {"ss", 100}, {"sf", 1}, {"sfsf", 128}, {"sf", 5000}};

static void test_next_process_goes_on(void **state) {
    (void)state;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        kv_fixture f;
        int32_t tokens[KV_MOST], other[KV_MOST];
        fill(tokens, 0, KV_MOST, 1);
        kv_set_up(&f, models[m].pattern, models[m].window, 400, -1);
        kv_renew(&f, open_store(&f, m % 2 ? 1 : 0)); /* the queue holds all, or two tiles */
        assert_int_equal(answer(&f, tokens, 500, 700), 0);
        kv_renew(&f, open_store(&f, 0));
        assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 700), 0);
        assert_int_equal(answer(&f, tokens, 500, 505), 448); /* the same again */
        assert_int_equal(answer(&f, tokens, 900, 901), 640); /* the next turn */
        kv_renew(&f, open_store(&f, 0));
        memcpy(other, tokens, sizeof other);
        fill(other, 510, KV_MOST, 2); /* another answer */
        assert_int_equal(answer(&f, other, 900, 901), 448);
        kv_renew(&f, NULL);
        assert_int_equal(answer(&f, tokens, 500, 505), 0);
        kv_tear_down(&f);
    }
    assert_int_equal(warnings, 0);
}

/* One tile a call, when there is no time. */
static void test_takes_its_time(void **state) {
    (void)state;
    kv_fixture f;
    int32_t tokens[KV_MOST];
    fill(tokens, 0, KV_MOST, 1);
    kv_set_up(&f, "fs", 100, 100, -1);
    kv_renew(&f, open_store(&f, 0));
    answer(&f, tokens, 640, 641);
    kv_renew(&f, open_store(&f, 0));
    int calls = 1;
    assert_false(mx_kv_fetch(f.kv, tokens, 640, -1)); /* only looks */
    assert_int_equal(mx_prefix_store_get_stats(f.kv->store).read, 0);
    for (; !mx_kv_fetch(f.kv, tokens, 640, 0); calls++) kv_check_structure(&f, NULL, 0);
    assert_in_range(calls, 12, 14); /* 10 tiles and 2 windows */
    assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 640), 640);
    kv_renew(&f, NULL);
    assert_true(mx_kv_fetch(f.kv, tokens, 640, 0));
    assert_true(mx_kv_fetch(f.kv, tokens, 640, -1));
    kv_tear_down(&f);
}

/* What nobody drew a token behind, or failed, is not stored. */
static void test_only_what_is_right(void **state) {
    (void)state;
    kv_fixture f;
    int32_t tokens[KV_MOST];
    fill(tokens, 0, KV_MOST, 1);
    kv_set_up(&f, "fs", 100, 100, -1);
    kv_renew(&f, open_store(&f, 0));
    kv_talk(&f, tokens, 300); /* without a mark */
    kv_renew(&f, open_store(&f, 0));
    assert_int_equal(answer(&f, tokens, 301, 310), 0);
    mx_sequence s;
    mx_sequence_init(&s, f.kv, KV_MOST, NULL);
    assert_int_equal(mx_sequence_resume(&s, tokens, 310), 310);
    kv_grow(&f, &s, tokens, 500, 50);
    mx_sequence_end(&s, tokens, false);
    mx_sequence_free(&s);
    kv_renew(&f, open_store(&f, 0));
    assert_int_equal(answer(&f, tokens, 600, 600), 256);
    kv_renew(&f, NULL);
    kv_tear_down(&f);
}

/* Few pages, most of them held by one that runs: as much is brought back as there is room for. */
static void test_short_of_pages(void **state) {
    (void)state;
    for (int64_t held = 0; held <= 700; held += 50) {
        kv_fixture f;
        int32_t tokens[KV_MOST], other[KV_MOST];
        fill(tokens, 0, KV_MOST, 1);
        fill(other, 0, KV_MOST, 2);
        kv_set_up(&f, "fs", 100, 24, -1);
        kv_renew(&f, open_store(&f, 0));
        answer(&f, tokens, 640, 641);
        kv_renew(&f, open_store(&f, 0));
        mx_sequence s, *one = &s;
        mx_sequence_init(&s, f.kv, KV_MOST, NULL);
        kv_grow(&f, &s, other, held, 60);
        while (!mx_kv_fetch(f.kv, tokens, 640, 0)) kv_check_structure(&f, &one, 1);
        kv_check_structure(&f, &one, 1);
        kv_check_content(&f, &s, other);
        const int64_t got = mx_kv_cached_tokens(f.kv, tokens, 640);
        assert_int_equal(got, mx_kv_pages_free(f.kv) + mx_kv_pages_cached(f.kv) >= 12 ? 640 : 0);
        mx_sequence_end(&s, other, true);
        mx_sequence_free(&s);
        kv_renew(&f, NULL);
        kv_tear_down(&f);
    }
}

/* Sliding pages that were dropped come back where the tiles are still there. */
static void test_windows_come_back(void **state) {
    (void)state;
    kv_fixture f;
    int32_t tokens[KV_MOST];
    fill(tokens, 0, KV_MOST, 1);
    kv_set_up(&f, "fs", 100, 100, -1);
    kv_renew(&f, open_store(&f, 0));
    answer(&f, tokens, 300, 640);
    assert_true(mx_prefix_make_room(&f.kv->tree, mx_kv_pages_free(f.kv) + 9)); /* all but one */
    assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 300), 0);
    kv_renew(&f, open_store(&f, 0)); /* the disk has it all now */
    while (!mx_kv_fetch(f.kv, tokens, 640, 1)) continue;
    assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 640), 640);
    assert_int_equal(mx_kv_cached_tokens(f.kv, tokens, 300), 0);
    assert_int_equal(answer(&f, tokens, 300, 301), 256);
    const mx_prefix_store_stats stats = mx_prefix_store_get_stats(f.kv->store);
    assert_int_equal(stats.read, 10 + 2 + 2);
    kv_renew(&f, NULL);
    kv_tear_down(&f);
}

/* A tile that is gone or damaged ends what can be gone on from; it is computed and stored again. */
static void test_holes(void **state) {
    (void)state;
    for (int damage = 0; damage < 2; damage++) {
        kv_fixture f;
        int32_t tokens[KV_MOST];
        fill(tokens, 0, KV_MOST, 1 + (uint64_t)damage);
        kv_set_up(&f, "ff", 1, 100, -1);
        kv_renew(&f, open_store(&f, 0));
        answer(&f, tokens, 641, 641);
        mx_store_key key = f.kv->tree.node[3].key;
        assert_int_equal(f.kv->tree.node[3].tile, 3);
        char path[200];
        snprintf(path, sizeof path, "%s/%016llx%016llx.full", folder, (unsigned long long)key.high,
                 (unsigned long long)key.low);
        kv_renew(&f, open_store(&f, 0));
        assert_int_equal(damage ? truncate(path, 500) : unlink(path), 0);
        assert_int_equal(answer(&f, tokens, 641, 641), 192);
        assert_int_equal(warnings, damage);
        kv_renew(&f, open_store(&f, 0));
        assert_int_equal(answer(&f, tokens, 641, 641), 640);

        /* what was removed and is used is stored again, after a while */
        assert_int_equal(unlink(path), 0);
        answer(&f, tokens, 641, 641);
        mx_prefix_store_stats stats = mx_prefix_store_get_stats(f.kv->store);
        f.kv->refresh = 0;
        answer(&f, tokens, 641, 641);
        kv_renew(&f, NULL);
        assert_int_equal(stats.written, 0);
        assert_int_equal(access(path, F_OK), 0);
        kv_tear_down(&f);
    }
}

/* A backend that cannot be read from one page on: nothing of what it gave is stored, and what was stored before it is
 * right. */
static void test_unreadable(void **state) {
    (void)state;
    for (int in = 1; in <= 22; in += in < 8 ? 1 : 7) {
        kv_fixture f;
        int32_t tokens[KV_MOST];
        fill(tokens, 0, KV_MOST, 1 + (uint64_t)in);
        kv_set_up(&f, "fsf", 100, 200, -1);
        kv_renew(&f, open_store(&f, in % 2)); /* the queue holds two tiles, or all */
        f.backend->fail_read_in = in;
        answer(&f, tokens, 500, 640);
        kv_renew(&f, NULL); /* which stores what is left */
        assert_int_equal(f.backend->fail_read_in, 1);
        assert_in_range(f.backend->failed_reads, 1, 2); /* what was wanted then is not tried again */
        assert_int_equal(warnings, 1);
        warnings = 0;
        f.backend->fail_read_in = 0;
        kv_renew(&f, open_store(&f, 0));
        assert_in_range(answer(&f, tokens, 640, 641), 0, 64 * in); /* checks the content of what was found */
        kv_renew(&f, open_store(&f, 0));
        assert_int_equal(answer(&f, tokens, 640, 641), 576);
        kv_renew(&f, NULL);
        kv_tear_down(&f);
        assert_int_equal(warnings, 0);
    }
}

/* One whose pages cannot be written from one on: as much is used as was brought back whole. */
static void test_unwritable(void **state) {
    (void)state;
    int32_t tokens[KV_MOST];
    kv_fixture f;
    fill(tokens, 0, KV_MOST, 1);
    kv_set_up(&f, "fsf", 100, 200, -1);
    kv_renew(&f, open_store(&f, 0));
    answer(&f, tokens, 640, 641);
    for (int in = 1; in <= 22; in++) {
        warnings = 0;
        kv_renew(&f, open_store(&f, 0));
        f.backend->fail_write_in = in;
        mx_sequence s, *one = &s;
        assert_int_equal(mx_sequence_init(&s, f.kv, KV_MOST, NULL), MX_OK);
        while (!mx_kv_fetch(f.kv, tokens, 640, 1)) continue;
        assert_int_equal(warnings, 1);
        f.backend->fail_write_in = 0;
        kv_check_structure(&f, NULL, 0);
        const int64_t found = mx_sequence_resume(&s, tokens, 640);
        assert_int_equal(found, 0); /* without its window nothing is gone on from */
        kv_grow(&f, &s, tokens, 640, 100);
        kv_check_content(&f, &s, tokens);
        kv_check_structure(&f, &one, 1);
        mx_sequence_end(&s, tokens, true);
        mx_sequence_free(&s);
    }
    kv_renew(&f, NULL);
    kv_tear_down(&f);
}

static ssize_t write_slowly(int file, const void *data, size_t size) {
    usleep(200000);
    return write(file, data, size);
}

/* The end waits for a slow disk once, not for each of its parts. */
static void test_the_end_is_near(void **state) {
    (void)state;
    enum { SLOT = 1408 };
    kv_fixture f;
    int32_t tokens[KV_MOST];
    mx_prefix_store *store;
    fill(tokens, 0, KV_MOST, 1);
    kv_set_up(&f, "ff", 1, 100, -1);
    const mx_prefix_store_options options = {.folder = folder,
                                             .most = 1 << 26,
                                             .config = &f.config,
                                             .page_bytes = f.backend->base.ops->page_bytes(&f.backend->base),
                                             .identity = "",
                                             .queue_bytes = 8 * SLOT,
                                             .patience = 1,
                                             .write = write_slowly};
    assert_int_equal(mx_prefix_store_open(&options, &store, NULL), MX_OK);
    kv_renew(&f, store);
    answer(&f, tokens, KV_MOST - 1, KV_MOST - 1);
    const double begin = mx_seconds();
    kv_renew(&f, NULL);
    const double seconds = mx_seconds() - begin;
    if (seconds < 0.9 || seconds > 1.7) fail_msg("it took %.2f s", seconds);
    kv_tear_down(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_next_process_goes_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_takes_its_time, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_only_what_is_right, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_short_of_pages, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_windows_come_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_holes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unreadable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unwritable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_end_is_near, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
