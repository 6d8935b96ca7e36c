/* How fast the disk reads on which models lie, or would lie. Nothing is written: a large file that is there is read,
 * past the page cache. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/threads.h"
#include "plan/machine.h"
#include "plan/model.h"

/* As model/load.c reads: so many requests at once, of so many bytes. */
enum { READERS = 4, BLOCK = 2 << 20 };
static const double SECONDS = 0.4;
static const double LARGE = 64e6; /* bytes of a file with which it is worth while */

/* ---- a large file ------------------------------------------------------------------------------------------------ */

static void keep_larger(const char *path, double *most, char *out, size_t size) {
    struct stat info;
    if (stat(path, &info) || !S_ISREG(info.st_mode) || (double)info.st_size <= *most) return;
    *most = (double)info.st_size;
    snprintf(out, size, "%s", path);
}

/* The largest file among the blobs of a Hugging Face cache: CACHE/models--ORG--NAME/blobs/HASH. */
static double find_in_cache(const char *cache, char *out, size_t size) {
    enum { MOST = 20000 }; /* entries that are looked at */
    double most = 0;
    int seen = 0;
    DIR *folder = opendir(cache);
    for (struct dirent *model; folder && seen < MOST && (model = readdir(folder)); seen++) {
        char path[MX_PLAN_NAME + 600];
        if (strncmp(model->d_name, "models--", 8) != 0) continue;
        const int n = snprintf(path, sizeof path, "%s/%s/blobs", cache, model->d_name);
        DIR *blobs = n < 0 || (size_t)n >= sizeof path ? NULL : opendir(path);
        for (struct dirent *blob; blobs && seen < MOST && (blob = readdir(blobs)); seen++) {
            snprintf(path + n, sizeof path - (size_t)n, "/%s", blob->d_name);
            keep_larger(path, &most, out, size);
        }
        if (blobs) closedir(blobs);
    }
    if (folder) closedir(folder);
    return most;
}

/* ---- reading it -------------------------------------------------------------------------------------------------- */

struct reading {
    int fd;
    int64_t blocks;
    uint8_t *memory; /* READERS blocks */
    double end;
    atomic_llong next, bytes;
    atomic_int failed;
};

/* Blocks far apart, so that none is in what the disk has read ahead. */
static void read_blocks(void *arg, int64_t begin, int64_t end, int thread) {
    struct reading *r = arg;
    (void)thread;
    for (int64_t reader = begin; reader < end; reader++)
        while (mx_seconds() < r->end && !atomic_load(&r->failed)) {
            const int64_t i = atomic_fetch_add(&r->next, 1);
            if (i >= r->blocks) return;
            const int64_t stride = 7919, block = r->blocks % stride ? i * stride % r->blocks : i;
            const ssize_t n = pread(r->fd, r->memory + reader * BLOCK, BLOCK, (off_t)block * BLOCK);
            if (n <= 0)
                atomic_store(&r->failed, n < 0 ? errno : EIO);
            else
                atomic_fetch_add(&r->bytes, n);
        }
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void measure(const char *path, double size, mx_plan_machine *out) {
    struct reading r = {.fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT), .blocks = (int64_t)(size / BLOCK)};
    mx_pool *pool = NULL;
    const int refused = r.fd < 0 ? errno : 0;
    r.memory = mmap(NULL, (size_t)READERS * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (refused == EINVAL) {
        snprintf(out->disk_note, sizeof out->disk_note, "not measured: this file system has no direct reads");
    } else if (refused) {
        snprintf(out->disk_note, sizeof out->disk_note, "not measured: %.80s: %s", base_name(path), strerror(refused));
    } else if (r.memory == MAP_FAILED || mx_pool_create(READERS, &pool, NULL)) {
        snprintf(out->disk_note, sizeof out->disk_note, "not measured: no memory or threads to read with");
    } else {
        memset(r.memory, 0, (size_t)READERS * BLOCK);
        const double start = mx_seconds();
        r.end = start + SECONDS;
        mx_parallel_for(pool, READERS, 1, read_blocks, &r);
        const double seconds = mx_seconds() - start, bytes = (double)atomic_load(&r.bytes);
        if (atomic_load(&r.failed) || !(bytes > 0)) {
            snprintf(out->disk_note, sizeof out->disk_note, "not measured: direct reads fail: %s",
                     strerror(atomic_load(&r.failed)));
        } else {
            out->disk = bytes / seconds;
            snprintf(out->disk_note, sizeof out->disk_note, "%.0f MB of %.80s, past the page cache", bytes / 1e6,
                     base_name(path));
        }
    }
    mx_pool_destroy(pool);
    if (r.memory != MAP_FAILED) munmap(r.memory, (size_t)READERS * BLOCK);
    if (r.fd >= 0) close(r.fd);
}

/* Of the folder, or of the nearest one above it that is there. */
static double free_space(const char *folder) {
    struct statvfs disk;
    char path[4096];
    snprintf(path, sizeof path, "%s", folder);
    while (*path && statvfs(path, &disk)) {
        char *slash = strrchr(path, '/');
        if (!slash || (slash == path && !path[1])) return 0;
        slash[slash == path] = 0;
    }
    return *path ? (double)disk.f_bavail * (double)disk.f_frsize : 0;
}

void mx_plan_look_at_disk(const char *model, const char *cache, mx_plan_machine *out) {
    char file[MX_PLAN_NAME + 600] = "";
    struct stat info;
    snprintf(out->folder, sizeof out->folder, "%s", model ? model : cache ? cache : "");
    out->disk = 0;
    out->disk_free = free_space(out->folder);
    if (model)
        mx_plan_largest_file(model, file, sizeof file);
    else
        find_in_cache(out->folder, file, sizeof file);
    if (*file && !stat(file, &info) && (double)info.st_size >= LARGE)
        measure(file, (double)info.st_size, out);
    else
        snprintf(out->disk_note, sizeof out->disk_note, "not measured: no file of 64 MB or more is there yet");
}
