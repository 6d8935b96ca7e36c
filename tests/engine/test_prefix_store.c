/* The folder of computed tiles: what is kept is found again, and nothing that is damaged is believed. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "engine/prefix_store.h"
#include "fake_model.h"

enum { PAGE = 512, LAYERS = 5, FULL = 3, WINDOW = 2, HEADER = 320 };

static char folder[64];
static mx_config config;
static int warnings;
static char warning[400];

static void count_warning(void *user, mx_log_level level, const char *line) {
    (void)user;
    if (level < MX_LOG_WARNING) return;
    warnings++;
    snprintf(warning, sizeof warning, "%s", line);
}

static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/mxrun-store-XXXXXX");
    config = fake_config("fsfsf", 100, 1000);
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

static mx_prefix_store *open_store(uint64_t most, const char *identity) {
    const mx_prefix_store_options options = {.folder = folder,
                                             .most = most,
                                             .config = &config,
                                             .page_bytes = PAGE,
                                             .identity = identity,
                                             .queue_bytes = 1 << 20};
    mx_prefix_store *store;
    mx_error error;
    if (mx_prefix_store_open(&options, &store, &error)) fail_msg("%s", error.text);
    return store;
}

/* The tile number i of a chain, and what its pages hold. */
static void tile(int i, int32_t token[MX_TILE]) {
    for (int k = 0; k < MX_TILE; k++) token[k] = i * 1000 + k;
}

static mx_store_key key_of(const mx_prefix_store *store, int i) {
    mx_store_key key = mx_prefix_store_root(store);
    for (int k = 0; k <= i; k++) {
        int32_t token[MX_TILE];
        tile(k, token);
        key = mx_prefix_store_next(key, token);
    }
    return key;
}

static void content(int i, mx_store_part part, unsigned char *out) {
    for (int k = 0; k < (part ? WINDOW : FULL) * PAGE; k++)
        out[k] = (unsigned char)(k * 7 + k / 256 + i * 13 + (int)part);
}

static void put(mx_prefix_store *store, int i, mx_store_part part) {
    int32_t token[MX_TILE];
    tile(i, token);
    void *out;
    while (!(out = mx_prefix_store_put(store, part, key_of(store, i), token)))
        if (!mx_prefix_store_wait(store, 10)) return;
    content(i, part, out);
    mx_prefix_store_commit(store);
}

static bool found(mx_prefix_store *store, int i, mx_store_part part) {
    int32_t token[MX_TILE];
    tile(i, token);
    const void *pages = mx_prefix_store_read(store, part, key_of(store, i), token);
    if (!pages) return false;
    unsigned char expected[FULL * PAGE];
    content(i, part, expected);
    assert_memory_equal(pages, expected, (size_t)(part ? WINDOW : FULL) * PAGE);
    return true;
}

static void path_of(char out[200], const mx_prefix_store *store, int i, const char *ending) {
    const mx_store_key key = key_of(store, i);
    snprintf(out, 200, "%s/%016llx%016llx.%s", folder, (unsigned long long)key.high, (unsigned long long)key.low,
             ending);
}

/* Files in the folder, and their bytes. */
static int files(uint64_t *bytes) {
    int count = 0;
    *bytes = 0;
    DIR *directory = opendir(folder);
    for (struct dirent *e; (e = readdir(directory));) {
        struct stat info;
        if (e->d_type != DT_REG || fstatat(dirfd(directory), e->d_name, &info, 0)) continue;
        count++;
        *bytes += (uint64_t)info.st_size;
    }
    closedir(directory);
    return count;
}

static void test_found_again(void **state) {
    (void)state;
    mx_prefix_store *store = open_store(1 << 20, "a model");
    for (int i = 0; i < 5; i++) {
        assert_false(mx_prefix_store_has(store, MX_STORE_FULL, key_of(store, i)));
        put(store, i, MX_STORE_FULL);
        if (i % 2) put(store, i, MX_STORE_WINDOW);
    }
    mx_prefix_store_close(store);

    store = open_store(1 << 20, "a model");
    for (int i = 0; i < 5; i++) {
        assert_true(mx_prefix_store_has(store, MX_STORE_FULL, key_of(store, i)));
        assert_int_equal(mx_prefix_store_has(store, MX_STORE_WINDOW, key_of(store, i)), i % 2);
        assert_true(found(store, i, MX_STORE_FULL));
        assert_int_equal(found(store, i, MX_STORE_WINDOW), i % 2);
    }
    put(store, 3, MX_STORE_FULL); /* is there already */
    mx_prefix_store_close(store);
    uint64_t bytes;
    assert_int_equal(files(&bytes), 7);
    assert_int_equal(bytes, 5 * (HEADER + FULL * PAGE) + 2 * (HEADER + WINDOW * PAGE));

    store = open_store(1 << 20, "another model");
    for (int i = 0; i < 5; i++) assert_false(found(store, i, MX_STORE_FULL));
    mx_prefix_store_close(store);
    config.sliding[4] = true;
    config.sliding[3] = false;
    store = open_store(1 << 20, "a model");
    for (int i = 0; i < 5; i++) assert_false(found(store, i, MX_STORE_FULL));
    mx_prefix_store_close(store);
    assert_int_equal(warnings, 0);
}

/* ---- damage -------------------------------------------------------------------------------------------------------
 */
static void test_damaged_files_go(void **state) {
    (void)state;
    enum { SIZE = HEADER + FULL * PAGE };
    mx_prefix_store *store = open_store(1 << 20, "a model");
    int damaged = 0;
    for (int how = 0; how < 60; how++) {
        char path[200], other[200];
        put(store, 1, MX_STORE_FULL);
        put(store, 2, MX_STORE_FULL);
        mx_prefix_store_close(store);
        store = open_store(1 << 20, "a model");
        path_of(path, store, 1, "full");
        path_of(other, store, 2, "full");
        if (how < 20) { /* cut, at 0 too */
            assert_int_equal(truncate(path, SIZE * how / 20), 0);
        } else if (how == 20) { /* longer than it says */
            assert_int_equal(truncate(path, SIZE + 1), 0);
        } else if (how == 21) { /* another one's */
            assert_int_equal(rename(other, path), 0);
        } else if (how == 22) { /* not ours at all */
            FILE *f = fopen(path, "w");
            fputs("a list of things to buy\n", f);
            fclose(f);
        } else { /* a bit */
            const int at = how < 45 ? HEADER * (how - 23) / 22 : HEADER + (SIZE - HEADER) * (how - 45) / 15;
            int file = open(path, O_RDWR);
            unsigned char byte;
            assert_int_equal(pread(file, &byte, 1, at), 1);
            byte ^= (unsigned char)(1 << how % 8);
            assert_int_equal(pwrite(file, &byte, 1, at), 1);
            close(file);
        }
        warnings = 0;
        assert_false(found(store, 1, MX_STORE_FULL));
        assert_int_equal(warnings, 1);
        assert_non_null(strstr(warning, folder));
        assert_int_not_equal(access(path, F_OK), 0);
        assert_false(found(store, 1, MX_STORE_FULL));
        assert_int_equal(mx_prefix_store_get_stats(store).damaged, 1);
        if (how != 21) assert_true(found(store, 2, MX_STORE_FULL));
        damaged++;
    }
    put(store, 1, MX_STORE_FULL);
    put(store, 2, MX_STORE_FULL);
    mx_prefix_store_close(store);
    store = open_store(1 << 20, "a model");
    for (int i = 1; i < 3; i++) { /* two damaged files, one warning */
        char path[200];
        path_of(path, store, i, "full");
        assert_int_equal(truncate(path, 100), 0);
        warnings = i == 1 ? 0 : warnings;
        assert_false(found(store, i, MX_STORE_FULL));
    }
    assert_int_equal(warnings, 1);
    mx_prefix_store_close(store);
}

/* ---- size ---------------------------------------------------------------------------------------------------------
 */
static void set_age(const mx_prefix_store *store, int i, time_t seconds) {
    char path[200];
    path_of(path, store, i, "full");
    const struct timespec at = {time(NULL) - seconds, 0};
    const struct timespec times[2] = {at, at};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void test_stays_below_its_bound(void **state) {
    (void)state;
    enum { FILES = 10, MOST = FILES * (HEADER + FULL * PAGE) };
    char mine[100];
    snprintf(mine, sizeof mine, "%s/letter.txt", folder);
    FILE *f = fopen(mine, "w"); /* not ours: neither counted nor removed */
    assert_non_null(f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(truncate(mine, 100000), 0);

    mx_prefix_store *store = open_store(MOST, "a model");
    for (int i = 0; i < FILES; i++) put(store, i, MX_STORE_FULL);
    mx_prefix_store_close(store);
    store = open_store(MOST, "a model");
    for (int i = 0; i < FILES; i++) set_age(store, i, 1000 - i * 10);
    assert_true(found(store, 0, MX_STORE_FULL)); /* used now */
    put(store, 2, MX_STORE_FULL);                /* likewise */
    for (int i = FILES; i < FILES + 3; i++) put(store, i, MX_STORE_FULL);
    mx_prefix_store_close(store);
    store = open_store(MOST, "a model");
    uint64_t bytes;
    files(&bytes);
    assert_true(bytes <= MOST + 100000);
    assert_int_equal(access(mine, F_OK), 0);
    for (int i = 0; i < FILES + 3; i++) assert_int_equal(found(store, i, MX_STORE_FULL), i != 1 && i != 3 && i != 4);
    mx_prefix_store_close(store);

    store = open_store(MOST / 2, "a model"); /* a smaller bound holds from the start */
    mx_prefix_store_close(store);
    files(&bytes);
    assert_true(bytes <= MOST / 2 + 100000);

    mx_error error;
    const mx_prefix_store_options small = {
        .folder = folder, .most = 500, .config = &config, .page_bytes = PAGE, .identity = ""};
    assert_int_equal(mx_prefix_store_open(&small, &store, &error), MX_INVALID_ARGUMENT);
}

/* ---- a full disk --------------------------------------------------------------------------------------------------
 */
static int64_t space; /* bytes that the disk takes, -1: it is broken */

static ssize_t write_until_full(int file, const void *data, size_t size) {
    if (space < 0) {
        errno = EIO;
        return -1;
    }
    uint64_t bytes;
    files(&bytes);
    if ((int64_t)bytes >= space) {
        errno = ENOSPC;
        return -1;
    }
    if (size > (uint64_t)space - bytes) size = (size_t)space - bytes;
    return write(file, data, size > 700 ? 700 : size);
}

static void test_full_disk(void **state) {
    (void)state;
    mx_prefix_store_options options = {.folder = folder,
                                       .most = 1 << 30,
                                       .config = &config,
                                       .page_bytes = PAGE,
                                       .identity = "a model",
                                       .write = write_until_full};
    mx_prefix_store *store;
    space = 10 * (HEADER + FULL * PAGE) + 100;
    assert_int_equal(mx_prefix_store_open(&options, &store, NULL), MX_OK);
    for (int i = 0; i < 30; i++) put(store, i, MX_STORE_FULL);
    mx_prefix_store_close(store);
    assert_int_equal(warnings, 0); /* older ones made room */
    store = open_store(1 << 30, "a model");
    assert_true(found(store, 29, MX_STORE_FULL));
    int count = 0;
    for (int i = 0; i < 30; i++) count += found(store, i, MX_STORE_FULL);
    assert_in_range(count, 8, 10);
    mx_prefix_store_close(store);

    space = -1;
    assert_int_equal(mx_prefix_store_open(&options, &store, NULL), MX_OK);
    for (int i = 30; i < 40; i++) put(store, i, MX_STORE_FULL);
    mx_prefix_store_close(store);
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(warning, strerror(EIO)));
    uint64_t bytes;
    assert_int_equal(files(&bytes), count); /* no half a file */

    char none[100];
    snprintf(none, sizeof none, "%s/letter.txt", folder);
    assert_int_equal(creat(none, 0600) < 0, 0);
    mx_error error;
    options.folder = none;
    assert_int_equal(mx_prefix_store_open(&options, &store, &error), MX_IO);
    assert_non_null(strstr(error.text, none));
    snprintf(none, sizeof none, "%s/a/b/c", folder);
    assert_int_equal(mx_prefix_store_open(&options, &store, &error), MX_OK); /* makes it */
    mx_prefix_store_close(store);
    assert_int_equal(rmdir(none), 0);
}

/* ---- processes ----------------------------------------------------------------------------------------------------
 */
static void live_in_child(int seed) {
    mx_prefix_store *store = open_store(60 * (HEADER + FULL * PAGE), "a model");
    for (int i = 0;; i++) {
        put(store, (i * 7 + seed) % 100, MX_STORE_FULL);
        found(store, (i * 3 + seed) % 100, MX_STORE_FULL);
    }
}

/* Several processes in one folder, each killed at some moment: what is there is whole, and the bound about holds. */
static void test_processes_and_kills(void **state) {
    (void)state;
    for (int round = 0; round < 15; round++) {
        pid_t child[3];
        for (int c = 0; c < 3; c++) {
            child[c] = fork();
            if (child[c] == 0) {
                live_in_child(round * 31 + c * 7);
                _exit(1);
            }
        }
        for (int c = 0; c < 3; c++) {
            usleep(3000 + (useconds_t)(round * 1777 + c * 937) % 9000);
            kill(child[c], SIGKILL);
            int status;
            waitpid(child[c], &status, 0);
            assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        }
    }
    mx_prefix_store *store = open_store(60 * (HEADER + FULL * PAGE), "a model");
    int count = 0;
    for (int i = 0; i < 100; i++) count += found(store, i, MX_STORE_FULL);
    assert_in_range(count, 20, 65);
    assert_int_equal(mx_prefix_store_get_stats(store).damaged, 0);
    assert_int_equal(warnings, 0);
    mx_prefix_store_close(store);

    /* what they left unfinished goes when it is old */
    char left[100];
    snprintf(left, sizeof left, "%s/.mxkv-0123456789abcdef", folder);
    assert_int_equal(creat(left, 0600) < 0, 0);
    mx_prefix_store_close(open_store(1 << 20, "a model"));
    assert_int_equal(access(left, F_OK), 0);
    const struct timespec times[2] = {{time(NULL) - 5000, 0}, {time(NULL) - 5000, 0}};
    assert_int_equal(utimensat(AT_FDCWD, left, times, 0), 0);
    mx_prefix_store_close(open_store(1 << 20, "a model"));
    assert_int_not_equal(access(left, F_OK), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_found_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged_files_go, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stays_below_its_bound, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_processes_and_kills, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
