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
#include "base/log.h"

static const double SYNC_SECONDS = 2;
enum { PIECE = 1 << 20 };

/* ---- reading ----------------------------------------------------------------------------------------------------- */
/* "4096-avx2-bf16x2" */
static bool parse_setup(const char *text, mx_api_setup *out) {
    int end = 0;
    long long context;
    const bool read = sscanf(text, "%lld-%23[^-]-%119[^-]%n", &context, out->tier, out->precision, &end) == 3;
    out->context = context;
    return read && !text[end] && context > 0;
}

/* "batch_req_12_0123456789abcdef_4096-avx2-bf16x2" */
static bool parse_key(const mx_json *value, const char *prefix, mx_done *out, mx_api_setup *setup) {
    if (!value || value->type != MX_JSON_STRING || strncmp(value->text, prefix, strlen(prefix)) != 0) return false;
    char *end;
    errno = 0;
    out->line = strtoll(value->text + strlen(prefix), &end, 10);
    if (errno || *end != '_' || out->line < 1 || strspn(end + 1, "0123456789abcdef") != 16) return false;
    out->hash = strtoull(end + 1, &end, 16);
    return *end == '_' && parse_setup(end + 1, setup);
}

bool mx_batch_same_setup(const mx_api_setup *a, const mx_api_setup *b) {
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

static bool add_failed(mx_journal *j, int64_t begin, int64_t end) {
    if (j->failed_count == j->failed_capacity) {
        const int64_t capacity = j->failed_capacity ? 2 * j->failed_capacity : 16;
        struct mx_span *more = realloc(j->failed, (size_t)capacity * sizeof *more);
        if (!more) return false;
        j->failed = more;
        j->failed_capacity = capacity;
    }
    j->failed[j->failed_count++] = (struct mx_span){begin, end};
    return true;
}

/* The record in bytes `begin` to `end` of the file, of which text [size] is the content. */
static mx_status take_record(mx_journal *j, int64_t number, const char *text, size_t size, int64_t begin, int64_t end,
                             mx_error *error) {
    mx_json_document *document;
    mx_done done = {0};
    mx_api_setup setup = {0};
    mx_status status = mx_json_parse(j->path, text, size, &document, error);
    if (status == MX_NO_MEMORY) return status;
    const mx_json *root = status ? NULL : mx_json_root(document);
    const mx_json *request_id = mx_json_get(root, "request_id");
    const bool found = request_id ? parse_key(request_id, "req_", &done, &setup)
                                  : parse_key(mx_json_get(root, "id"), "batch_req_", &done, &setup);
    done.failed = found && !j->keep_failed && says_failed(root);
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
    if (j->count == j->capacity) {
        const int64_t capacity = j->capacity ? 2 * j->capacity : 1024;
        mx_done *more = realloc(j->done, (size_t)capacity * sizeof *more);
        if (!more) return no_memory(j, error);
        j->done = more;
        j->capacity = capacity;
    }
    if (j->count && j->done[j->count - 1].line >= done.line) j->ascending = false;
    j->done[j->count++] = done;
    return done.failed && !add_failed(j, begin, end) ? no_memory(j, error) : MX_OK;
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

/* All lines that end in a newline; j->size is where the last of them ends. */
static mx_status read_records(mx_journal *j, mx_error *error) {
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
            const int64_t begin = j->size;
            j->size = at + (p - piece);
            status = take_record(j, number++, held.data, held.size, begin, j->size, error);
            mx_bytes_clear(&held);
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

/* What the engine did not fail, on the disk, with the owner and the mode that it had. *size: bytes of it. */
static bool copy_rest(const mx_journal *j, int to, int64_t *size) {
    struct stat info, made;
    int64_t at = 0;
    *size = 0;
    for (int64_t i = 0; i <= j->failed_count; i++) {
        const struct mx_span gap = i < j->failed_count ? j->failed[i] : (struct mx_span){j->size, j->size};
        if (!copy_bytes(j->fd, at, gap.begin, to)) return false;
        *size += gap.begin - at;
        at = gap.end;
    }
    if (fstat(j->fd, &info) || fstat(to, &made)) return false;
    const bool owned = made.st_uid == info.st_uid && made.st_gid == info.st_gid;
    return (owned || fchown(to, info.st_uid, info.st_gid) == 0) && fchmod(to, info.st_mode & 07777) == 0 &&
           fsync(to) == 0;
}

/* The name of the new file beside `path`, which a link may lead to. NULL: no memory, or no such file. */
static char *name_beside(const char *path) {
    char *real = realpath(path, NULL), *beside = NULL;
    if (!real || asprintf(&beside, "%s.mxrun-new", real) < 0) beside = NULL;
    free(real);
    return beside;
}

/* With the lock of the output held nobody else makes one. */
static void remove_stale(const char *path) {
    struct stat info;
    char *beside = name_beside(path);
    if (beside && lstat(beside, &info) == 0 && S_ISREG(info.st_mode)) unlink(beside);
    free(beside);
}

/* Whenever it is killed, the name is of the old file or of the new one. A link stays a link. */
static bool write_anew(mx_journal *j) {
    char *path = realpath(j->path, NULL), *beside = name_beside(j->path);
    int64_t size = 0;
    const int fd = path && beside ? open(beside, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600) : -1;
    const bool done =
        fd >= 0 && copy_rest(j, fd, &size) && flock(fd, LOCK_EX | LOCK_NB) == 0 && rename(beside, path) == 0;
    const int problem = errno;
    if (done) {
        sync_folder(path);
        close(j->fd);
        j->fd = fd;
        j->size = size;
    } else if (fd >= 0) {
        unlink(beside);
        close(fd);
    }
    free(path);
    free(beside);
    errno = problem;
    return done;
}

bool mx_journal_take_out(mx_journal *j) {
    if (!j->failed_count) return true;
    const bool done = write_anew(j);
    if (!done)
        mx_log(MX_LOG_WARNING,
               "%s: the records of %lld lines that the engine failed cannot be taken out: %s; they stay, and these "
               "lines are not done again",
               j->path, (long long)j->failed_count, strerror(errno));
    for (int64_t i = 0; i < j->count && !done; i++) j->done[i].failed = false;
    j->failed_count = 0;
    return done;
}

mx_status mx_journal_open(mx_journal *j, const char *path, int input, bool look, bool keep_failed, mx_error *error) {
    const bool to_stdout = !strcmp(path, "-");
    *j = (mx_journal){.path = to_stdout ? "stdout" : path, .fd = -1, .look = look, .ascending = true};
    j->keep_failed = keep_failed;
    struct stat info;
    const bool found = stat(path, &info) == 0;
    const bool pipe = found && !S_ISREG(info.st_mode); /* or a device: nothing can be read back */
    if (look && (to_stdout || !found || pipe)) return MX_OK;
    const int flags = look ? O_RDONLY : pipe ? O_WRONLY | O_APPEND : O_RDWR | O_CREAT | O_APPEND;
    j->fd = to_stdout ? dup(STDOUT_FILENO) : open(path, flags | O_CLOEXEC, 0666);
    if (j->fd < 0) return mx_fail(error, MX_IO, "%s: %s", j->path, strerror(errno));
    mx_status status = take_file(j, input, to_stdout, error);
    if (status || !j->regular) return status;
    status = read_records(j, error);
    if (!status) status = sort_records(j, error);
    if (status || look) return status;
    remove_stale(path);
    sync_folder(path);
    return MX_OK;
}

void mx_journal_close(mx_journal *j) {
    if (j->fd >= 0) close(j->fd);
    free(j->done);
    free(j->failed);
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
