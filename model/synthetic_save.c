#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/files.h"
#include "model/config_text.h"
#include "model/synthetic_private.h"

/* A synthetic model as a folder in the Hugging Face layout, tensor by tensor through one buffer. It grows beside its
 * place under a name of its own and is renamed when it is whole. */

enum { BUFFER = 64 << 20, PATH_ROOM = 4096, SPARE = 16 << 20 };
static const uint64_t SHARD = 5000000000; /* bytes of tensors in a file at most, unless one alone is larger */

typedef struct saving {
    const mx_config *config;
    uint64_t seed;
    mx_pool *pool;
    mx_progress *progress;
    const volatile sig_atomic_t *stop;
    mx_synthetic_tensor *tensor;
    int count;
    int *shard; /* [count] */
    int shards;
    uint64_t total, done; /* bytes of tensors; written of them */
    uint8_t *buffer;
    char folder[PATH_ROOM]; /* the one that grows; "": none yet */
    mx_error *error;
} saving;

/* ---- the texts --------------------------------------------------------------------------------------------------- */

static void shard_name(const saving *s, int shard, char out[64]) {
    snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, s->shards);
}

static bool index_text(mx_bytes *out, const saving *s) {
    char name[64];
    bool ok = mx_bytes_addf(out, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {\n",
                            (unsigned long long)s->total);
    for (int i = 0; i < s->count; i++) {
        shard_name(s, s->shard[i], name);
        ok = ok && mx_bytes_addf(out, "    \"%s\": \"%s\"%s\n", s->tensor[i].name, name, i + 1 < s->count ? "," : "");
    }
    return ok && mx_bytes_add_string(out, "  }\n}\n");
}

/* Length and JSON; the JSON is filled up with spaces so that tensors begin at a multiple of 64. */
static bool header_text(mx_bytes *out, const saving *s, int shard) {
    uint64_t at = 0, length = 0;
    bool ok = mx_bytes_add(out, &length, 8) && mx_bytes_add_string(out, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < s->count; i++) {
        const mx_synthetic_tensor *t = &s->tensor[i];
        if (s->shard[i] != shard) continue;
        ok = ok && mx_bytes_addf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, mx_synthetic_dtype(t->noise));
        for (int d = 0; d < t->dims; d++) ok = ok && mx_bytes_addf(out, "%s%lld", d ? "," : "", (long long)t->shape[d]);
        ok = ok && mx_bytes_addf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                                 (unsigned long long)(at + t->bytes));
        at += t->bytes;
    }
    ok = ok && mx_bytes_add_string(out, "}");
    while (ok && out->size % 64) ok = mx_bytes_add_string(out, " ");
    if (!ok) return false;
    length = out->size - 8;
    for (int i = 0; i < 8; i++) out->data[i] = (char)(length >> (8 * i));
    return true;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static mx_status cannot(const saving *s, const char *what, int problem) {
    return mx_fail(s->error, MX_IO, "%s: cannot write: %s", what, strerror(problem));
}

static mx_status write_all(const saving *s, int fd, const char *path, const void *data, size_t size) {
    const char *from = data;
    while (size) {
        const ssize_t n = write(fd, from, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return cannot(s, path, n < 0 ? errno : EIO);
        from += n;
        size -= (size_t)n;
    }
    return MX_OK;
}

static mx_status write_tensor(saving *s, int fd, const char *path, const mx_synthetic_tensor *t) {
    for (uint64_t at = 0; at < t->bytes; at += BUFFER) {
        const uint64_t left = t->bytes - at, size = left < BUFFER ? left : BUFFER;
        mx_synthetic_fill(s->pool, t, s->seed, at, size, s->buffer);
        mx_status status = write_all(s, fd, path, s->buffer, size);
        if (status) return status;
        s->done += size;
        if (s->progress) mx_progress_update(s->progress, (double)s->done);
        if (s->stop && *s->stop) return mx_fail(s->error, MX_CANCELLED, "interrupted");
    }
    return MX_OK;
}

static void path_of(const saving *s, const char *name, char out[PATH_ROOM + 80]) {
    snprintf(out, PATH_ROOM + 80, "%s/%s", s->folder, name);
}

static mx_status write_shard(saving *s, int shard) {
    char name[64], path[PATH_ROOM + 80];
    mx_bytes header = {0};
    shard_name(s, shard, name);
    path_of(s, name, path);
    if (!header_text(&header, s, shard)) {
        mx_bytes_free(&header);
        return mx_fail(s->error, MX_NO_MEMORY, "no memory for the header of %s", name);
    }
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    mx_status status = fd < 0 ? cannot(s, path, errno) : write_all(s, fd, path, header.data, header.size);
    for (int i = 0; i < s->count && !status; i++)
        if (s->shard[i] == shard) status = write_tensor(s, fd, path, &s->tensor[i]);
    if (!status && fsync(fd) != 0) status = cannot(s, path, errno);
    if (fd >= 0 && close(fd) != 0 && !status) status = cannot(s, path, errno);
    mx_bytes_free(&header);
    return status;
}

static mx_status write_text(saving *s, const char *name, bool ok, mx_bytes *text) {
    char path[PATH_ROOM + 80];
    path_of(s, name, path);
    const int fd = ok ? open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666) : -1;
    mx_status status = MX_OK;
    if (!ok)
        status = mx_fail(s->error, MX_NO_MEMORY, "no memory for %s", name);
    else if (fd < 0)
        status = cannot(s, path, errno);
    if (!status) status = write_all(s, fd, path, text->data, text->size);
    if (!status && fsync(fd) != 0) status = cannot(s, path, errno);
    if (fd >= 0 && close(fd) != 0 && !status) status = cannot(s, path, errno);
    mx_bytes_free(text);
    return status;
}

static mx_status write_files(saving *s) {
    mx_status status = MX_OK;
    for (int i = 0; i < s->shards && !status; i++) status = write_shard(s, i);
    mx_bytes text = {0};
    if (!status) status = write_text(s, "model.safetensors.index.json", index_text(&text, s), &text);
    if (!status) status = write_text(s, "config.json", mx_config_text(&text, s->config, true), &text);
    if (!status) status = write_text(s, "generation_config.json", mx_generation_text(&text, s->config), &text);
    return status;
}

/* Files that this run has made, and the folder. */
static void remove_files(const saving *s) {
    static const char *const texts[] = {"model.safetensors.index.json", "config.json", "generation_config.json"};
    char name[64], path[PATH_ROOM + 80];
    for (int i = 0; i < s->shards; i++) {
        shard_name(s, i, name);
        path_of(s, name, path);
        unlink(path);
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        path_of(s, texts[i], path);
        unlink(path);
    }
    rmdir(s->folder);
}

/* ---- place ------------------------------------------------------------------------------------------------------- */

/* A new folder beside `folder`; what is above it is made. */
static mx_status make_folder(saving *s, const char *folder) {
    struct stat info;
    char *grows = NULL;
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/') n--;
    if (!n || n > PATH_ROOM - 100) return mx_fail(s->error, MX_INVALID_ARGUMENT, "the path of the folder is too long");
    if (stat(folder, &info) == 0 && (!S_ISDIR(info.st_mode) || rmdir(folder) != 0))
        return mx_fail(s->error, MX_INVALID_ARGUMENT,
                       "%s: is there already (%s): give a folder that does not exist or is empty", folder,
                       S_ISDIR(info.st_mode) ? strerror(errno) : "a file");
    if (asprintf(&grows, "%.*s.part-XXXXXX", (int)n, folder) < 0)
        return mx_fail(s->error, MX_NO_MEMORY, "no memory for a path");
    mx_make_folders(grows, 0777);
    if (!mkdtemp(grows)) {
        const int problem = errno;
        free(grows);
        return mx_fail(s->error, MX_IO, "%s: cannot be made: %s", folder, strerror(problem));
    }
    snprintf(s->folder, sizeof s->folder, "%s", grows);
    free(grows);
    const mode_t mask = umask(0); /* mkdtemp's folders are for their owner alone */
    umask(mask);
    chmod(s->folder, 0777 & ~mask);
    return MX_OK;
}

static mx_status check_room(const saving *s, const char *folder) {
    struct statvfs disk;
    const uint64_t needed = s->total + SPARE;
    if (statvfs(s->folder, &disk) != 0) return MX_OK; /* writing will show it */
    const uint64_t room = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (needed <= room) return MX_OK;
    return mx_fail(s->error, MX_IO, "%s: the model takes %.2f GB, the disk has room for %.2f GB", folder,
                   (double)needed / 1e9, (double)room / 1e9);
}

/* The name appears when everything under it is on the disk. */
static mx_status publish(saving *s, const char *folder) {
    const int fd = open(s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    if (rename(s->folder, folder) == 0) return MX_OK;
    return mx_fail(s->error, MX_IO, "%s: cannot be given its name: %s", folder, strerror(errno));
}

/* Tensors in their order, as many to a file as fit. */
static mx_status cut(saving *s) {
    uint64_t in_shard = 0;
    s->shard = calloc((size_t)s->count, sizeof *s->shard);
    if (!s->shard) return mx_fail(s->error, MX_NO_MEMORY, "no memory for %d tensors", s->count);
    s->shards = 1;
    for (int i = 0; i < s->count; i++) {
        if (in_shard && in_shard + s->tensor[i].bytes > SHARD) {
            s->shards++;
            in_shard = 0;
        }
        s->shard[i] = s->shards - 1;
        in_shard += s->tensor[i].bytes;
        s->total += s->tensor[i].bytes;
    }
    return MX_OK;
}

mx_status mx_synthetic_save(const mx_config *c, uint64_t seed, mx_pool *pool, mx_progress *progress,
                            const volatile sig_atomic_t *stop, const char *folder, mx_error *error) {
    saving s = {.config = c, .seed = seed, .pool = pool, .progress = progress, .stop = stop, .error = error};
    mx_arena buffer = {0};
    mx_status status = mx_synthetic_plan(c, &s.tensor, &s.count, error);
    if (!status) status = cut(&s);
    if (!status) status = mx_arena_create(BUFFER, &buffer, error);
    s.buffer = (uint8_t *)buffer.base;
    if (!status) status = make_folder(&s, folder);
    if (!status) status = check_room(&s, folder);
    if (!status) status = write_files(&s);
    if (!status) status = publish(&s, folder);
    if (status && *s.folder) remove_files(&s);
    mx_arena_destroy(&buffer);
    free(s.tensor);
    free(s.shard);
    return status;
}
