#include "hub/incoming.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "base/cpu.h"
#include "base/files.h"
#include "hub/http.h"

enum { WAKE_BYTES = 512 << 10, TRIES_OF_HASH = 2, MOST_RESTARTS = 5 };

static mx_status io(const mx_incoming *f, int problem, mx_error *error) {
    const bool full = problem == ENOSPC || problem == EDQUOT;
    return mx_fail(error, full ? MX_NO_SPACE : MX_IO, "%s: %s: %s%s", f->d->name, f->d->incomplete, strerror(problem),
                   full ? "; what has come is kept: make room and begin again" : "");
}

static mx_status no_memory(const mx_incoming *f, mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "%s: no memory to download it", f->d->name);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */
static bool is_complete(const mx_download *d, int64_t size) {
    struct stat info;
    return size >= 0 && stat(d->complete, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == size;
}

static void take_complete(mx_incoming *f) {
    f->phase = MX_THERE;
    f->d->size = f->d->had = f->d->done = f->begun ? f->pieces.size : f->d->size;
    f->d->finished = true;
}

static mx_status make_folders(const mx_incoming *f, mx_error *error) {
    char *a = strdup(f->d->incomplete), *b = strdup(f->d->complete);
    const bool done = a && b;
    if (a) mx_make_folders(a, 0777);
    if (b) mx_make_folders(b, 0777);
    free(a);
    free(b);
    return done ? MX_OK : no_memory(f, error);
}

/* The file that has the name when it is locked is the one that is open: another run may have given it its final name
 * in between. */
static mx_status open_locked(mx_incoming *f, mx_error *error) {
    for (int tries = 0; tries < 100; tries++) {
        struct stat mine, named;
        const int fd = open(f->d->incomplete, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
        if (fd < 0) return io(f, errno, error);
        const bool locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
        const int problem = errno;
        if (!locked) {
            close(fd);
            if (problem != EWOULDBLOCK) return io(f, problem, error);
            return mx_fail(error, MX_INVALID_STATE, "%s: another process is downloading it (%s is locked): let it end",
                           f->d->name, f->d->incomplete);
        }
        if (!fstat(fd, &mine) && !stat(f->d->incomplete, &named) && mine.st_ino == named.st_ino &&
            mine.st_dev == named.st_dev) {
            f->fd = fd;
            if (S_ISREG(mine.st_mode)) return MX_OK;
            return mx_fail(error, MX_INVALID_FILE, "%s: %s is no regular file", f->d->name, f->d->incomplete);
        }
        close(fd);
    }
    return mx_fail(error, MX_INVALID_STATE, "%s: others keep replacing %s", f->d->name, f->d->incomplete);
}

/* Is what an earlier run left of the version that is wanted, and is the incomplete file, of `bytes`, as long as it must
 * be? */
static bool fits(const mx_download *d, int64_t bytes, const mx_pieces *p, const char *etag) {
    if (bytes != p->size) return false;
    if (d->size >= 0 && d->size != p->size) return false;
    if (*d->etag && strcmp(d->etag, etag) != 0) return false;
    if (*d->sha256 && mx_is_sha256(etag) && strcmp(d->sha256, etag) != 0) return false;
    return *etag || *d->sha256;
}

/* pieces, state file and hasher are there from here on. `safe` as of mx_resume_read, taken over. */
static mx_status set_up(mx_incoming *f, int64_t *safe, mx_error *error) {
    f->begun = true;
    f->cursor = 0;
    free(f->task);
    f->task = calloc((size_t)f->pieces.count + 1, sizeof *f->task);
    free(f->resume.safe);
    f->resume.safe = safe;
    if (!f->task) return no_memory(f, error);
    f->task[0] = f->probe;
    f->d->size = f->pieces.size;
    f->d->done = mx_pieces_sum(&f->pieces);
    mx_status status = mx_resume_write(&f->resume, f->state_path, &f->pieces, f->etag, f->source, error);
    if (!status) status = mx_hasher_start(&f->pieces, f->fd, f->d->name, f->wake, f->wake_user, &f->hasher, error);
    if (!status) mx_keeper_add(f->keeper, f);
    return status;
}

mx_status mx_incoming_open(mx_incoming *f, mx_error *error) {
    mx_download *d = f->d;
    if (is_complete(d, d->size)) {
        take_complete(f);
        return MX_OK;
    }
    mx_status status = make_folders(f, error);
    if (!status && asprintf(&f->state_path, "%s.state", d->incomplete) < 0) {
        f->state_path = NULL;
        status = no_memory(f, error);
    }
    if (!status) status = open_locked(f, error);
    if (status) return status;
    f->phase = MX_COMING;
    f->etag_given = *d->etag;
    memcpy(f->etag, d->etag, sizeof f->etag);
    if (is_complete(d, d->size)) { /* another process was quicker */
        unlink(d->incomplete);
        unlink(f->state_path);
        take_complete(f);
        return MX_OK;
    }
    int64_t *safe;
    char etag[MX_ETAG_TEXT], source[MX_ETAG_TEXT];
    if (mx_resume_read(f->state_path, &f->pieces, &safe, etag, source)) {
        struct stat info;
        if (!fstat(f->fd, &info) && fits(d, info.st_size, &f->pieces, etag)) {
            memcpy(f->etag, etag, sizeof etag);
            memcpy(f->source, source, sizeof source);
            status = set_up(f, safe, error);
            d->had = d->done;
            return status;
        }
        mx_pieces_free(&f->pieces);
        free(safe);
    }
    return d->size == 0 ? mx_incoming_begin(f, 0, error) : MX_OK;
}

void mx_download_look(mx_download *d) {
    char *path, etag[MX_ETAG_TEXT], source[MX_ETAG_TEXT];
    struct stat info;
    mx_pieces pieces;
    int64_t *safe;
    d->had = 0;
    if (lstat(d->incomplete, &info) || !S_ISREG(info.st_mode)) return;
    if (asprintf(&path, "%s.state", d->incomplete) < 0) return;
    if (mx_resume_read(path, &pieces, &safe, etag, source)) {
        if (fits(d, info.st_size, &pieces, etag)) d->had = mx_pieces_sum(&pieces);
        mx_pieces_free(&pieces);
        free(safe);
    }
    free(path);
}

/* ---- room on the disk -------------------------------------------------------------------------------------------- */
/* Of the nearest folder above `path` that exists. */
static bool look_at_disk(const char *path, struct statvfs *out, dev_t *device) {
    char *folder = strdup(path);
    bool found = false;
    while (folder && !found) {
        struct stat info;
        char *slash = strrchr(folder, '/');
        if (slash) *(slash == folder ? slash + 1 : slash) = 0;
        const char *name = slash ? folder : ".";
        found = stat(name, &info) == 0 && statvfs(name, out) == 0;
        *device = found ? info.st_dev : 0;
        if (!slash || slash == folder) break;
    }
    free(folder);
    return found;
}

/* Bytes that the file still needs. */
static int64_t missing(const mx_download *d) {
    struct stat info;
    if (d->size < 0 || is_complete(d, d->size)) return 0;
    const int64_t has = stat(d->incomplete, &info) == 0 ? (int64_t)info.st_blocks * 512 : 0;
    return has < d->size ? d->size - has : 0;
}

mx_status mx_download_room(const mx_download *file, int count, mx_error *error) {
    for (int i = 0; i < count; i++) {
        struct statvfs disk, other_disk;
        dev_t device, other;
        int64_t needed = 0;
        if (!look_at_disk(file[i].incomplete, &disk, &device)) continue;
        for (int j = 0; j < count; j++)
            if (look_at_disk(file[j].incomplete, &other_disk, &other) && other == device) needed += missing(&file[j]);
        const double free_bytes = (double)disk.f_bavail * (double)disk.f_frsize;
        if ((double)needed > free_bytes)
            return mx_fail(error, MX_NO_SPACE,
                           "%s: the disk has %.2f GB free, and the download needs %.2f GB more: make room or choose "
                           "another place",
                           file[i].incomplete, free_bytes / 1e9, (double)needed / 1e9);
    }
    return MX_OK;
}

/* All blocks at once, where the file system can, so that the disk cannot get full in the middle. One in memory would
 * fill them with zeros first, which takes as long as the download from near. */
static mx_status allocate(const mx_incoming *f, int64_t size, mx_error *error) {
    struct statfs kind;
    if (ftruncate(f->fd, 0)) return io(f, errno, error);
    if (size == 0) return MX_OK;
    const bool memory = fstatfs(f->fd, &kind) == 0 && kind.f_type == TMPFS_MAGIC;
    int problem;
    do problem = memory ? EOPNOTSUPP : fallocate(f->fd, 0, 0, size) ? errno : 0;
    while (problem == EINTR);
    if (problem == EOPNOTSUPP || problem == ENOSYS) problem = ftruncate(f->fd, size) ? errno : 0;
    if (problem == ENOSPC) {
        struct statvfs disk;
        const bool known = fstatvfs(f->fd, &disk) == 0;
        if (ftruncate(f->fd, 0)) problem = errno;
        return mx_fail(error, MX_NO_SPACE,
                       "%s: the disk has no room for %.2f GB (%.2f GB are free): make room or choose "
                       "another place",
                       f->d->name, (double)size / 1e9,
                       known ? (double)disk.f_bavail * (double)disk.f_frsize / 1e9 : 0.0);
    }
    return problem ? io(f, problem, error) : MX_OK;
}

/* The old state goes before other bytes come, even if the power fails: it must never speak of them. */
static mx_status forget(const mx_incoming *f, mx_error *error) {
    if (unlink(f->state_path)) return errno == ENOENT ? MX_OK : io(f, errno, error);
    return mx_sync_folder(f->state_path) ? MX_OK : io(f, errno, error);
}

mx_status mx_incoming_begin(mx_incoming *f, int64_t size, mx_error *error) {
    if (f->d->size < 0 && is_complete(f->d, size)) {
        unlink(f->d->incomplete);
        unlink(f->state_path);
        f->d->size = size;
        take_complete(f);
        return MX_OK;
    }
    if (!mx_pieces_make(&f->pieces, size, f->options->piece > 0 ? f->options->piece : MX_PIECE_BYTES))
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory for a file of %lld bytes", f->d->name, (long long)size);
    mx_status status = forget(f, error);
    if (!status) status = allocate(f, size, error);
    if (!status) return set_up(f, NULL, error);
    mx_pieces_free(&f->pieces);
    return status;
}

/* ---- while it comes ---------------------------------------------------------------------------------------------- */
/* Nobody but this thread has anything of the file any more. */
static void take_down(mx_incoming *f) {
    mx_keeper_remove(f->keeper, f);
    mx_hasher_stop(f->hasher);
    f->hasher = NULL;
    mx_resume_close(&f->resume, false);
    mx_pieces_free(&f->pieces);
    f->begun = false;
}

mx_status mx_incoming_restart(mx_incoming *f, const char *etag, mx_error *error) {
    char version[MX_ETAG_TEXT];
    snprintf(version, sizeof version, "%s", etag);
    if (f->begun) take_down(f);
    memcpy(f->etag, version, sizeof version);
    *f->source = *f->other = *f->other_source = 0;
    f->source_weak = f->linked = f->answered = f->mixed = false;
    free(f->direct);
    f->direct = NULL;
    f->probe = (mx_piece_task){0};
    f->d->done = f->d->had = 0;
    f->d->size = f->given_size;
    if (++f->restarts > MOST_RESTARTS)
        return mx_fail(error, MX_INVALID_FILE, "%s: keeps changing on the server: ask for one revision of it",
                       f->d->name);
    const mx_status status = forget(f, error);
    return status ? status : ftruncate(f->fd, 0) ? io(f, errno, error) : MX_OK;
}

static mx_status write_at(const mx_incoming *f, int64_t at, const char *data, int64_t size, mx_error *error) {
    while (size) {
        const ssize_t n = pwrite(f->fd, data, (size_t)size, at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return io(f, n < 0 ? errno : EIO, error);
        data += n;
        at += n;
        size -= n;
    }
    return MX_OK;
}

mx_status mx_incoming_store(mx_incoming *f, int64_t at, const char *data, int64_t size, mx_error *error) {
    mx_pieces *p = &f->pieces;
    while (size) {
        const int64_t i = at / p->each, begin = i * p->each, end = begin + mx_piece_length(p, i);
        const int64_t have = begin + mx_piece_have(p, i), part = size < end - at ? size : end - at;
        if (at > have) return mx_fail(error, MX_INVALID_STATE, "%s: a gap before byte %lld", f->d->name, (long long)at);
        if (at + part > have) {
            const int64_t skip = have - at;
            const mx_status status = write_at(f, have, data + skip, part - skip, error);
            if (status) return status;
            mx_piece_set(p, i, at + part - begin);
            f->d->done += part - skip;
            f->unsaid += part - skip;
            if (f->unsaid >= WAKE_BYTES || at + part == end) {
                f->unsaid = 0;
                mx_hasher_wake(f->hasher);
            }
        }
        at += part;
        data += part;
        size -= part;
    }
    return MX_OK;
}

mx_status mx_incoming_check(mx_incoming *f, bool *again, mx_error *error) {
    char hash[MX_SHA256_TEXT];
    mx_status status;
    *again = false;
    if (!mx_hasher_ended(f->hasher, hash, &status, error)) return MX_OK;
    if (status) return status;
    const char *wanted = *f->d->sha256 ? f->d->sha256 : mx_is_sha256(f->etag) ? f->etag : NULL;
    if (!wanted || !strcmp(hash, wanted)) {
        memcpy(f->d->sha256, hash, sizeof hash);
        f->phase = MX_PUBLISHING;
        mx_keeper_publish(f->keeper, f);
        return MX_OK;
    }
    f->wrong_hashes += !f->mixed;
    if (f->wrong_hashes < TRIES_OF_HASH) {
        *again = true;
        mx_fail(error, MX_INVALID_FILE, "%s: came with SHA-256 %s, not %s: thrown away, fetched once more", f->d->name,
                hash, wanted);
        return MX_OK;
    }
    char expected[MX_SHA256_TEXT];
    memcpy(expected, wanted, sizeof expected);
    take_down(f);
    unlink(f->state_path);
    unlink(f->d->incomplete);
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: came twice with a wrong SHA-256, and was thrown away: %s, expected %s; the server's copy is "
                   "damaged or another version",
                   f->d->name, hash, expected);
}

void mx_incoming_close(mx_incoming *f) {
    if (f->begun) take_down(f);
    if (f->fd >= 0) {
        struct stat info;
        if (f->phase == MX_COMING && !fstat(f->fd, &info) && info.st_size == 0) unlink(f->d->incomplete);
        close(f->fd);
    }
    f->fd = -1;
    free(f->task);
    free(f->direct);
    free(f->state_path);
    f->task = NULL;
    f->direct = f->state_path = NULL;
}
