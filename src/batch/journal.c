#include "batch/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/json.h"

static const double SYNC_SECONDS = 2;
enum { PIECE = 1 << 20 };

/* ---- reading ----------------------------------------------------------------------------------------------------- */
/* "4096-avx2-bf16x2" */
static bool parse_setup(const char *text, mx_batch_setup *out) {
    int end = 0;
    long long context;
    const bool read = sscanf(text, "%lld-%23[^-]-%119[^-]%n", &context, out->tier, out->precision, &end) == 3;
    out->context = context;
    return read && !text[end] && context > 0;
}

/* "batch_req_12_0123456789abcdef_4096-avx2-bf16x2" */
static bool parse_key(const mx_json *value, const char *prefix, mx_done *out, mx_batch_setup *setup) {
    if (!value || value->type != MX_JSON_STRING || strncmp(value->text, prefix, strlen(prefix)) != 0) return false;
    char *end;
    errno = 0;
    out->line = strtoll(value->text + strlen(prefix), &end, 10);
    if (errno || *end != '_' || out->line < 1 || strspn(end + 1, "0123456789abcdef") != 16) return false;
    out->hash = strtoull(end + 1, &end, 16);
    return *end == '_' && parse_setup(end + 1, setup);
}

bool mx_batch_same_setup(const mx_batch_setup *a, const mx_batch_setup *b) {
    return a->context == b->context && !strcmp(a->tier, b->tier) && !strcmp(a->precision, b->precision);
}

static mx_status no_memory(const mx_journal *j, mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "%s: no memory to read it", j->path);
}

/* The record says that the engine failed: {"error": {"type": "server_error", ...}} in either form. */
static bool says_failed(const mx_json *root) {
    const mx_json *body = mx_json_get(mx_json_get(root, "response"), "body");
    const mx_json *type = mx_json_get(mx_json_get(body ? body : root, "error"), "type");
    return type && type->type == MX_JSON_STRING && !strcmp(type->text, "server_error");
}

/* *failed: it is not taken, because its line is to be done again. NULL: then it is. */
static mx_status take_record(mx_journal *j, int64_t number, const char *text, size_t size, bool *failed,
                             mx_error *error) {
    mx_json_document *document;
    mx_done done;
    mx_batch_setup setup = {0};
    mx_status status = mx_json_parse(j->path, text, size, &document, error);
    if (status == MX_NO_MEMORY) return status;
    const mx_json *root = status ? NULL : mx_json_root(document);
    const mx_json *request_id = mx_json_get(root, "request_id");
    const bool found = request_id ? parse_key(request_id, "req_", &done, &setup)
                                  : parse_key(mx_json_get(root, "id"), "batch_req_", &done, &setup);
    if (failed) *failed = found && says_failed(root);
    if (!status) mx_json_free(document);
    if (!found)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: line %lld is no record of mxrun batch: choose another output, or, if the file was damaged, "
                       "delete the line and it is computed again",
                       j->path, (long long)number);
    if (!j->setup.context) j->setup = setup;
    if (!mx_batch_same_setup(&j->setup, &setup))
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: line %lld was computed otherwise (%lld-%s-%s) than those before it (%lld-%s-%s): choose "
                       "another output",
                       j->path, (long long)number, (long long)setup.context, setup.tier, setup.precision,
                       (long long)j->setup.context, j->setup.tier, j->setup.precision);
    if (failed && *failed) return MX_OK;
    if (j->count == j->capacity) {
        const int64_t capacity = j->capacity ? 2 * j->capacity : 1024;
        mx_done *more = realloc(j->done, (size_t)capacity * sizeof *more);
        if (!more) return no_memory(j, error);
        j->done = more;
        j->capacity = capacity;
    }
    if (j->count && j->done[j->count - 1].line >= done.line) j->ascending = false;
    j->done[j->count++] = done;
    return MX_OK;
}

/* What is behind the last newline is cut off when it can only be ours. */
static mx_status cut_tail(const mx_journal *j, const mx_bytes *tail, mx_error *error) {
    static const char *const beginnings[] = {"{\"id\":\"batch_req_", "{\"request_id\":\"req_"};
    bool ours = tail->size == 0 || j->setup.context > 0;
    for (int i = 0; i < 2 && !ours; i++) {
        const size_t size = strlen(beginnings[i]);
        ours = !memcmp(tail->data, beginnings[i], tail->size < size ? tail->size : size);
    }
    if (j->look) return MX_OK;
    if (!ours)
        return mx_fail(error, MX_INVALID_FILE, "%s: this is no output of mxrun batch: choose another one", j->path);
    if (tail->size && ftruncate(j->fd, j->size))
        return mx_fail(error, MX_IO, "%s: its torn last line cannot be cut off: %s", j->path, strerror(errno));
    return MX_OK;
}

/* Bytes of the file that are to go: whole lines. */
typedef struct gaps {
    struct gap {
        int64_t begin, end;
    } * item; /* [count] */
    int64_t count, capacity;
} gaps;

static bool add_gap(gaps *g, int64_t begin, int64_t end) {
    if (g->count == g->capacity) {
        const int64_t capacity = g->capacity ? 2 * g->capacity : 16;
        struct gap *more = realloc(g->item, (size_t)capacity * sizeof *more);
        if (!more) return false;
        g->item = more;
        g->capacity = capacity;
    }
    g->item[g->count++] = (struct gap){begin, end};
    return true;
}

/* All lines that end in a newline; j->size is where the last of them ends. `failed` gets those that say so, unless it
 * is NULL: then they are like all others. */
static mx_status read_records(mx_journal *j, gaps *failed, mx_error *error) {
    mx_bytes held = {0}; /* the beginning of a line */
    char *piece = malloc(PIECE);
    mx_status status = piece ? MX_OK : no_memory(j, error);
    int64_t at = 0;
    for (int64_t number = 1; !status;) {
        const ssize_t n = pread(j->fd, piece, PIECE, at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) status = mx_fail(error, MX_IO, "%s: %s", j->path, strerror(errno));
        if (n <= 0) break;
        for (const char *p = piece, *end = piece + n; p < end && !status;) {
            const char *newline = memchr(p, '\n', (size_t)(end - p));
            const size_t size = (size_t)((newline ? newline : end) - p);
            if (!mx_bytes_add(&held, p, size)) status = no_memory(j, error);
            p += size + 1;
            if (!newline || status) continue;
            bool gap;
            status = take_record(j, number++, held.data, held.size, failed ? &gap : NULL, error);
            mx_bytes_clear(&held);
            const int64_t begin = j->size;
            j->size = at + (p - piece);
            if (!status && failed && gap && !add_gap(failed, begin, j->size)) status = no_memory(j, error);
        }
        at += n;
    }
    if (!status) status = cut_tail(j, &held, error);
    mx_bytes_free(&held);
    free(piece);
    return status;
}

static int by_line(const void *a, const void *b) {
    const mx_done *x = a, *y = b;
    return (x->line > y->line) - (x->line < y->line);
}

static mx_status sort_records(mx_journal *j, mx_error *error) {
    if (!j->ascending) qsort(j->done, (size_t)j->count, sizeof *j->done, by_line);
    for (int64_t i = 1; i < j->count; i++)
        if (j->done[i].line == j->done[i - 1].line)
            return mx_fail(error, MX_INVALID_FILE,
                           "%s: two records of line %lld: it was not written by one run, choose another output",
                           j->path, (long long)j->done[i].line);
    return MX_OK;
}

const mx_done *mx_journal_find(const mx_journal *j, int64_t line) {
    const mx_done key = {.line = line};
    return j->count ? bsearch(&key, j->done, (size_t)j->count, sizeof *j->done, by_line) : NULL;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */
/* A new name outlives a power failure only when its folder is on the disk. */
static void sync_folder(const char *path) {
    char *folder = strdup(path), *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) slash[slash == folder] = 0;
    const int fd = folder ? open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(folder);
}

static mx_status take_file(mx_journal *j, int input, bool to_stdout, mx_error *error) {
    struct stat mine, other;
    if (fstat(j->fd, &mine)) return mx_fail(error, MX_IO, "%s: %s", j->path, strerror(errno));
    if (!S_ISREG(mine.st_mode)) return MX_OK;
    if (fstat(input, &other) == 0 && mine.st_dev == other.st_dev && mine.st_ino == other.st_ino)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: input and output are the same file", j->path);
    if (to_stdout) return MX_OK; /* what a file that the shell has opened holds is the shell's affair */
    j->regular = true;
    const bool locked = j->look || flock(j->fd, LOCK_EX | LOCK_NB) == 0;
    const int problem = errno;
    /* Another run may have put a new file there meanwhile, of which it has the lock. */
    const bool same = stat(j->path, &other) == 0 && mine.st_dev == other.st_dev && mine.st_ino == other.st_ino;
    if (locked && (j->look || same)) return MX_OK;
    if (locked || problem == EWOULDBLOCK)
        return mx_fail(error, MX_INVALID_STATE,
                       "%s: another mxrun is writing to it: let it end, or give each shard an output of its own",
                       j->path);
    return mx_fail(error, MX_IO, "%s: cannot be locked: %s", j->path, strerror(problem));
}

/* ---- lines that the engine failed -------------------------------------------------------------------------------- */
static bool write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        const ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

static bool copy_bytes(int from, int64_t begin, int64_t end, int to) {
    char piece[1 << 16];
    while (begin < end) {
        const int64_t left = end - begin, most = left < (int64_t)sizeof piece ? left : (int64_t)sizeof piece;
        const ssize_t n = pread(from, piece, (size_t)most, begin);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO; /* somebody cut it */
        if (n <= 0 || !write_all(to, piece, (size_t)n)) return false;
        begin += n;
    }
    return true;
}

/* What is not in a gap, on the disk. */
static bool copy_rest(const mx_journal *j, const gaps *g, int to) {
    struct stat info;
    int64_t at = 0;
    for (int64_t i = 0; i < g->count; i++) {
        if (!copy_bytes(j->fd, at, g->item[i].begin, to)) return false;
        at = g->item[i].end;
    }
    return copy_bytes(j->fd, at, j->size, to) && fstat(j->fd, &info) == 0 && fchmod(to, info.st_mode & 07777) == 0 &&
           fsync(to) == 0;
}

/* Whenever it is killed, the name is of the old file or of the new one. A link stays a link. */
static mx_status take_out(mx_journal *j, const gaps *g, mx_error *error) {
    char *path = realpath(j->path, NULL), *beside = NULL;
    if (!path || asprintf(&beside, "%s.XXXXXX", path) < 0) beside = NULL;
    const int fd = beside ? mkostemp(beside, O_CLOEXEC | O_APPEND) : -1;
    const bool done = fd >= 0 && copy_rest(j, g, fd) && flock(fd, LOCK_EX | LOCK_NB) == 0 && rename(beside, path) == 0;
    const int problem = errno;
    if (done) {
        for (int64_t i = 0; i < g->count; i++) j->size -= g->item[i].end - g->item[i].begin;
        close(j->fd);
        j->fd = fd;
    } else if (fd >= 0) {
        unlink(beside);
        close(fd);
    }
    free(path);
    free(beside);
    if (done) return MX_OK;
    return mx_fail(error, MX_IO,
                   "%s: the records of %lld lines that the engine failed cannot be taken out: %s; make its folder "
                   "writable, or choose another output",
                   j->path, (long long)g->count, strerror(problem));
}

static mx_status read_file(mx_journal *j, bool keep_failed, mx_error *error) {
    gaps failed = {0};
    mx_status status = read_records(j, keep_failed ? NULL : &failed, error);
    if (!status) status = sort_records(j, error);
    j->failed = failed.count;
    if (!status && failed.count && !j->look) status = take_out(j, &failed, error);
    free(failed.item);
    return status;
}

mx_status mx_journal_open(mx_journal *j, const char *path, int input, bool look, bool keep_failed, mx_error *error) {
    const bool to_stdout = !strcmp(path, "-");
    *j = (mx_journal){.path = to_stdout ? "stdout" : path, .fd = -1, .look = look, .ascending = true};
    struct stat info;
    const bool found = stat(path, &info) == 0;
    const bool pipe = found && !S_ISREG(info.st_mode); /* or a device: nothing can be read back */
    if (look && (to_stdout || !found || pipe)) return MX_OK;
    const int flags = look ? O_RDONLY : pipe ? O_WRONLY | O_APPEND : O_RDWR | O_CREAT | O_APPEND;
    j->fd = to_stdout ? dup(STDOUT_FILENO) : open(path, flags | O_CLOEXEC, 0666);
    if (j->fd < 0) return mx_fail(error, MX_IO, "%s: %s", j->path, strerror(errno));
    mx_status status = take_file(j, input, to_stdout, error);
    if (status || !j->regular) return status;
    status = read_file(j, keep_failed, error);
    if (!status && !look) sync_folder(path);
    return status;
}

void mx_journal_close(mx_journal *j) {
    if (j->fd >= 0) close(j->fd);
    free(j->done);
    *j = (mx_journal){.fd = -1};
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */
mx_status mx_journal_write(mx_journal *j, const mx_bytes *record, mx_error *error) {
    for (size_t at = 0; at < record->size;) {
        const ssize_t n = write(j->fd, record->data + at, record->size - at);
        if (n >= 0) {
            at += (size_t)n;
            continue;
        }
        if (errno == EINTR) continue;
        const int problem = errno;
        if (j->regular && ftruncate(j->fd, j->size)) j->regular = false; /* the next run cuts it */
        return mx_fail(error, MX_IO, "cannot write to %s: %s", j->path, strerror(problem));
    }
    j->size += (int64_t)record->size;
    if (j->dirty <= 0) j->dirty = mx_seconds();
    return MX_OK;
}

mx_status mx_journal_sync(mx_journal *j, double next, mx_error *error) {
    if (j->dirty <= 0 || !j->regular) return MX_OK;
    if (mx_seconds() + next - j->dirty < SYNC_SECONDS) return MX_OK;
    j->dirty = 0;
    if (fdatasync(j->fd)) return mx_fail(error, MX_IO, "cannot write to %s: %s", j->path, strerror(errno));
    return MX_OK;
}
