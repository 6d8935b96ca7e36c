#include "support.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

mx_pool *pool;
mx_error error;
static char folder[200];
static mx_bytes logged;

static void keep_line(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)level;
    mx_bytes_addf(&logged, "%s\n", line);
}

int convert_set_up(void **state) {
    (void)state;
    const char *where = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/mxrun-convert-XXXXXX", where && *where ? where : "/tmp");
    mx_log_set_sink(keep_line, NULL);
    return mkdtemp(folder) && !mx_pool_create(2, &pool, &error) ? 0 : -1;
}

static void remove_tree(const char *path) {
    struct stat info;
    if (lstat(path, &info) == 0 && !S_ISDIR(info.st_mode)) {
        unlink(path);
        return;
    }
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char inside[4096];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(inside, sizeof inside, "%.3000s/%s", path, e->d_name);
        remove_tree(inside);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

int convert_tear_down(void **state) {
    (void)state;
    remove_tree(folder);
    mx_pool_destroy(pool);
    mx_bytes_free(&logged);
    return 0;
}

static const char *path_in(const char *where, const char *name) {
    static char paths[32][4096];
    static int next;
    char *path = paths[next++ % 32];
    snprintf(path, 4096, "%.2000s/%.1000s", where, name);
    return path;
}

const char *temporary(const char *name) {
    return path_in(folder, name);
}

const char *checkout(const char *name) {
    return path_in(getenv("MXRUN_SOURCE"), name);
}

const char *shared(const char *name) {
    const char *path = path_in(getenv("MXRUN_SHARED"), name);
    return exists(path) ? path : NULL;
}

/* ---- converting ---------------------------------------------------------------------------------------------------
 */

static mx_status run(const char *in, const char *out, mx_layout to, bool anyway, mx_converted *done) {
    const mx_convert_options options = {.to = to, .pool = pool, .force = anyway, .allow_loss = anyway};
    mx_bytes_clear(&logged);
    error = (mx_error){0};
    return mx_convert(in, out, &options, done, &error);
}

mx_converted convert(const char *in, const char *out, mx_layout to) {
    mx_converted done;
    if (run(in, out, to, false, &done)) fail_msg("%s", error.text);
    assert_true(exists(out));
    return done;
}

mx_converted convert_anyway(const char *in, const char *out, mx_layout to) {
    mx_converted done;
    if (run(in, out, to, true, &done)) fail_msg("%s", error.text);
    assert_true(exists(out));
    return done;
}

void refuse(const char *in, const char *out, mx_layout to, mx_status status, const char *part) {
    mx_converted done;
    char grows[4200];
    const bool there = exists(out);
    const mx_status found = run(in, out, to, false, &done);
    if (found != status || !strstr(error.text, part) || strchr(error.text, '\n'))
        fail_msg("%s: %s; expected %s with \"%s\"", mx_status_name(found), error.text, mx_status_name(status), part);
    snprintf(grows, sizeof grows, "%s.incomplete", out);
    assert_int_equal(exists(out), there);
    assert_false(exists(grows));
}

void expect_logged(const char *part) {
    if (!logged.data || !strstr(logged.data, part))
        fail_msg("log: %s; expected \"%s\"", logged.data ? logged.data : "nothing", part);
}

void expect_nothing_logged(void) {
    if (logged.size) fail_msg("log: %s; expected nothing", logged.data);
}

/* ---- files --------------------------------------------------------------------------------------------------------
 */

bool exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

mx_bytes content(const char *path) {
    mx_bytes bytes = {0};
    if (mx_read_file(path, 1 << 30, &bytes, &error)) fail_msg("%s", error.text);
    return bytes;
}

void write_file(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

void copy_file(const char *from, const char *to) {
    mx_bytes bytes = content(from);
    write_file(to, bytes.data ? bytes.data : "", bytes.size);
    mx_bytes_free(&bytes);
}

/* Calls `each` for every file of `path` with its name; returns how many. */
static int for_files(const char *path, void (*each)(const char *, const char *, const char *), const char *other) {
    DIR *dir = opendir(path);
    int count = 0;
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat info;
        char a[4096], b[4096];
        snprintf(a, sizeof a, "%.3000s/%s", path, e->d_name);
        snprintf(b, sizeof b, "%.3000s/%s", other, e->d_name);
        if (stat(a, &info) != 0 || !S_ISREG(info.st_mode)) continue;
        count++;
        if (each) each(a, b, e->d_name);
    }
    closedir(dir);
    return count;
}

static void copy_one(const char *a, const char *b, const char *name) {
    (void)name;
    copy_file(a, b);
}

void copy_folder(const char *from, const char *to) {
    assert_int_equal(mkdir(to, 0777), 0);
    for_files(from, copy_one, to);
}

static void compare_one(const char *a, const char *b, const char *name) {
    mx_bytes x = content(a), y = content(b);
    if (x.size != y.size || (x.size && memcmp(x.data, y.data, x.size)))
        fail_msg("%s: %zu bytes, %s: %zu bytes, not the same (%s)", a, x.size, b, y.size, name);
    mx_bytes_free(&x);
    mx_bytes_free(&y);
}

void expect_same_folder(const char *a, const char *b) {
    assert_int_equal(for_files(a, compare_one, b), for_files(b, NULL, a));
}

void expect_same_tensors(const char *a, const char *b) {
    mx_checkpoint *x, *y;
    if (mx_checkpoint_open(a, &x, &error) || mx_checkpoint_open(b, &y, &error)) fail_msg("%s", error.text);
    assert_int_equal(mx_checkpoint_count(x), mx_checkpoint_count(y));
    for (int i = 0; i < mx_checkpoint_count(x); i++) {
        const mx_tensor *t = mx_checkpoint_at(x, i), *u = mx_checkpoint_at(y, i);
        assert_string_equal(t->name, u->name);
        if (t->dtype != u->dtype || t->dims != u->dims || memcmp(t->shape, u->shape, sizeof t->shape))
            fail_msg("%s: %s, %s: another type or shape", t->name, t->dtype_name, u->dtype_name);
        uint8_t *p = malloc(t->bytes + 1), *q = malloc(t->bytes + 1);
        mx_tensor_slices(t, 0, t->dims ? t->shape[0] : 1, p);
        mx_tensor_slices(u, 0, t->dims ? t->shape[0] : 1, q);
        if (memcmp(p, q, t->bytes)) fail_msg("%s: other values", t->name);
        free(p);
        free(q);
    }
    mx_checkpoint_close(x);
    mx_checkpoint_close(y);
}
