/* Experts that were rounded to MXFP4 when a model was loaded, in a file of their own, so that the next start maps them.
 * It is a .safetensors file by another name (what looks for such files beside a model shall not take it for a part of
 * it) whose metadata say of which files and rounding it is, and the hash of its content. It is written under another
 * name, brought to the disk, and renamed: under its name there is all of it or nothing. That other name is always the
 * same, and locked by who writes: what somebody left who was killed is overwritten by the next. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "base/files.h"
#include "base/log.h"
#include "model/checkpoint_private.h"
#include "model/load.h"
#include "model/numerics.h"

enum {
    PIECE = 4 << 20, /* bytes that are hashed, or written, at once */
    PILE = 64 << 20, /* bytes that may wait for the disk behind those that are written */
    HASH = 33
};
static const double SAID = 1e9; /* bytes that take so long to write that it is said before */

/* How far a task of `total` bytes is. */
typedef struct task {
    const mx_load_options *options;
    atomic_ullong done;
    uint64_t total;
} task;

static void go_on(task *c, uint64_t bytes, bool told) {
    const uint64_t done = atomic_fetch_add(&c->done, bytes) + bytes;
    if (told && c->options->progress)
        c->options->progress(c->options->user, done < c->total ? done : c->total, c->total);
}

static void letters(char out[HASH], XXH128_hash_t h) {
    snprintf(out, HASH, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}

/* ---- whose it is ------------------------------------------------------------------------------------------------- */

static void add_text(XXH3_state_t *hash, const char *text) {
    XXH3_128bits_update(hash, text, strlen(text) + 1);
}

/* Of each file its name, size, time and header; how it is rounded, and by which code. false: one cannot be looked at.
 */
static bool make_key(const mx_checkpoint *ck, mx_rounding rounding, char out[HASH]) {
    XXH3_state_t *hash = XXH3_createState();
    bool ok = hash && !XXH3_128bits_reset(hash);
    if (ok) {
        add_text(hash, MX_NUMERICS);
        add_text(hash, mx_rounding_name(rounding));
    }
    for (int i = 0; ok && i < ck->safetensors_count; i++) {
        const mx_mapped *f = &ck->safetensors[i].file;
        const char *slash = strrchr(f->path, '/');
        struct stat info;
        ok = stat(f->path, &info) == 0;
        if (!ok) break;
        const int64_t facts[] = {(int64_t)f->size, (int64_t)info.st_mtim.tv_sec, (int64_t)info.st_mtim.tv_nsec};
        add_text(hash, slash ? slash + 1 : f->path);
        XXH3_128bits_update(hash, facts, sizeof facts);
        XXH3_128bits_update(hash, f->data, mx_checkpoint_header(ck, i));
    }
    if (ok) letters(out, XXH3_128bits_digest(hash));
    XXH3_freeState(hash);
    return ok;
}

/* FOLDER/.mxrun-experts-mxfp4-RULE, and in the user's cache a name with the hash of the folder. "": there is none. */
static void make_names(mx_expert_cache *c, const char *folder) {
    const char *rule = mx_rounding_name(c->rounding), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *real = realpath(folder, NULL), hash[HASH];
    const int most = (int)sizeof *c->file;
    if (snprintf(c->file[0], (size_t)most, "%s/.mxrun-experts-mxfp4-%s", folder, rule) >= most) *c->file[0] = 0;
    letters(hash, XXH3_128bits(real ? real : folder, strlen(real ? real : folder)));
    free(real);
    int n = most;
    if (cache && *cache == '/') /* others are to be ignored */
        n = snprintf(c->file[1], (size_t)most, "%s/mxrun/experts-%s-mxfp4-%s", cache, hash, rule);
    else if (home && *home)
        n = snprintf(c->file[1], (size_t)most, "%s/.cache/mxrun/experts-%s-mxfp4-%s", home, hash, rule);
    if (n >= most) *c->file[1] = 0;
}

/* ---- content ------------------------------------------------------------------------------------------------------
 */

typedef struct content {
    const mx_tensor *const *tensor; /* [count] */
    int64_t *first;                 /* [count + 1] piece of each */
    XXH64_hash_t *hash;             /* [first[count]] */
    int count;
    task *course;
    atomic_bool stopped;
} content;

static int64_t pieces_of(const mx_tensor *t) {
    return (int64_t)((t->bytes + PIECE - 1) / PIECE);
}

static void hash_pieces(void *arg, int64_t begin, int64_t end, int thread) {
    content *c = arg;
    const mx_load_options *options = c->course->options;
    for (int64_t i = begin; i < end; i++) {
        int low = 0, high = c->count;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            *(c->first[middle] <= i ? &low : &high) = middle;
        }
        if (options->stop && *options->stop) atomic_store(&c->stopped, true);
        if (atomic_load(&c->stopped)) return;
        const uint64_t at = (uint64_t)(i - c->first[low]) * PIECE, left = c->tensor[low]->bytes - at;
        const size_t size = left < PIECE ? (size_t)left : PIECE;
        c->hash[i] = XXH3_64bits(c->tensor[low]->data + at, size);
        go_on(c->course, size, thread == 0);
    }
}

/* Of the tensors' bytes, all threads. false: no memory, or interrupted. */
static bool hash_content(const mx_tensor *const *tensor, int count, task *course, char out[HASH]) {
    content c = {.tensor = tensor, .count = count, .course = course};
    mx_pool *pool = NULL;
    int64_t pieces = 0;
    c.first = malloc(((size_t)count + 1) * sizeof *c.first);
    for (int i = 0; c.first && i < count; i++) {
        c.first[i] = pieces;
        pieces += pieces_of(tensor[i]);
    }
    c.hash = malloc((size_t)pieces * sizeof *c.hash + 1);
    const bool ok = c.first && c.hash && !mx_pool_create(course->options->threads, &pool, NULL);
    if (ok) {
        c.first[count] = pieces;
        mx_parallel_for(pool, pieces, 1, hash_pieces, &c);
        letters(out, XXH3_128bits(c.hash, (size_t)pieces * sizeof *c.hash));
    }
    mx_pool_destroy(pool);
    free(c.first);
    free(c.hash);
    return ok && !atomic_load(&c.stopped);
}

static uint64_t bytes_of(const mx_tensor *const *tensor, int count) {
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += tensor[i]->bytes;
    return bytes;
}

/* ---- found --------------------------------------------------------------------------------------------------------
 */

static bool same_tensor(const mx_tensor *a, const mx_tensor *b) {
    if (a->dtype != b->dtype || a->dims != b->dims || a->bytes != b->bytes) return false;
    for (int i = 0; i < a->dims; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

static const mx_tensor *find(const mx_safetensors *st, const char *name) {
    for (int i = 0; i < st->count; i++)
        if (!strcmp(st->tensor[i].name, name)) return &st->tensor[i];
    return NULL;
}

static const mx_json *metadata(const mx_safetensors *st, const char *key) {
    const mx_json *all = mx_json_get(mx_json_root(st->header), "__metadata__");
    return all ? mx_json_get(all, key) : NULL;
}

/* Does the file hold just what is wanted, all of it undamaged? Otherwise `why` says what is wrong with it; "" where it
 * is merely another model's, or none. */
static bool is_right(const mx_expert_cache *c, const mx_checkpoint *ck, const mx_safetensors *st,
                     const mx_load_options *options, char why[100]) {
    *why = 0;
    if (!mx_json_is_string(metadata(st, "key"), c->key)) return false;
    const mx_tensor **tensor = malloc((size_t)c->count * sizeof *tensor + 1);
    bool ok = tensor && st->count == c->count;
    for (int i = 0; ok && i < c->count; i++) {
        tensor[i] = find(st, ck->tensor[c->made[i]].name);
        ok = tensor[i] && same_tensor(tensor[i], &ck->tensor[c->made[i]]);
    }
    if (!ok) snprintf(why, 100, "it holds other tensors than it should");
    /* Read when it is used: then there is nothing to look at but its header. */
    char hash[HASH];
    task course = {.options = options, .total = ok ? bytes_of(tensor, c->count) : 0};
    if (ok && options->way != MX_LOAD_LAZY &&
        !(hash_content(tensor, c->count, &course, hash) && mx_json_is_string(metadata(st, "content"), hash))) {
        ok = false;
        if (!(options->stop && *options->stop)) snprintf(why, 100, "its content is not what was written");
    }
    free(tensor);
    return ok;
}

/* Its tensors are the checkpoint's from now on. false: no memory. */
static bool take(const mx_expert_cache *c, mx_checkpoint *ck, const mx_safetensors *st) {
    mx_safetensors *more = realloc(ck->safetensors, ((size_t)ck->safetensors_count + 1) * sizeof *more);
    if (!more) return false;
    ck->safetensors = more;
    more[ck->safetensors_count++] = *st;
    for (int i = 0; i < c->count; i++) ck->tensor[c->made[i]] = *find(st, ck->tensor[c->made[i]].name);
    return true;
}

static bool list_made(mx_expert_cache *c, const mx_checkpoint *ck) {
    c->made = malloc(((size_t)ck->count + 1) * sizeof *c->made);
    for (int i = 0; c->made && i < ck->count; i++)
        if (ck->tensor[i].recipe && mx_recipe_rounds(ck->tensor[i].recipe)) c->made[c->count++] = i;
    return c->made && c->count;
}

void mx_expert_cache_find(mx_expert_cache *c, mx_checkpoint *ck, const mx_load_options *options) {
    *c = (mx_expert_cache){.rounding = options->quantize_experts};
    if (!options->keep_rounded || options->way == MX_LOAD_LOOK || !ck->safetensors_count) return;
    if (!list_made(c, ck) || !make_key(ck, c->rounding, c->key)) {
        c->count = 0;
        return;
    }
    char *folder = strdup(ck->safetensors[0].file.path), *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) slash[slash == folder] = 0;
    if (folder) make_names(c, slash ? folder : ".");
    free(folder);
    for (int i = 0; i < 2; i++) {
        mx_safetensors st;
        mx_error error;
        char why[100] = "";
        if (!*c->file[i] || access(c->file[i], F_OK)) continue;
        if (mx_safetensors_open(c->file[i], &st, &error))
            snprintf(c->wrong[i], sizeof c->wrong[i], "%s", error.text);
        else if (is_right(c, ck, &st, options, why) && take(c, ck, &st)) {
            snprintf(c->said, sizeof c->said, "; they are taken from %s", c->file[i]);
            c->count = 0; /* nothing is left to be made */
            return;
        } else if (*why)
            snprintf(c->wrong[i], sizeof c->wrong[i], "%s: %s", c->file[i], why);
        mx_safetensors_close(&st);
    }
    for (int i = 0; i < 2; i++)
        if (*c->wrong[i]) mx_log(MX_LOG_WARNING, "%s: experts are rounded anew", c->wrong[i]);
}

/* ---- kept ---------------------------------------------------------------------------------------------------------
 */

static bool make_header(const mx_expert_cache *c, const mx_tensor *const *tensor, const char *hash, mx_bytes *out) {
    uint64_t at = 0;
    bool ok = mx_bytes_addf(out, "{\"__metadata__\":{\"key\":\"%s\",\"content\":\"%s\"}", c->key, hash);
    for (int i = 0; ok && i < c->count; i++) {
        const mx_tensor *t = tensor[i];
        ok = mx_bytes_add_string(out, ",") && mx_bytes_add_json(out, t->name, strlen(t->name)) &&
             mx_bytes_addf(out, ":{\"dtype\":\"%s\",\"shape\":[", t->dtype_name);
        for (int k = 0; ok && k < t->dims; k++) ok = mx_bytes_addf(out, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        ok = ok && mx_bytes_addf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                                 (unsigned long long)(at + t->bytes));
        at += t->bytes;
    }
    ok = ok && mx_bytes_add_string(out, "}");
    while (ok && (out->size + 8) % 64) ok = mx_bytes_add_string(out, " ");
    return ok;
}

/* A file that is written. */
typedef struct output {
    int fd;
    uint64_t size, begun; /* written; of them, on their way to the disk */
    task *course;
} output;

/* The disk begins with what is written, and is never more than two piles behind: the end is no long silence. Where a
 * file system does not do that, fsync does. */
static void hurry(output *o) {
    if (o->size - o->begun < PILE) return;
    sync_file_range(o->fd, (off64_t)o->begun, (off64_t)(o->size - o->begun), SYNC_FILE_RANGE_WRITE);
    if (o->begun)
        sync_file_range(o->fd, 0, (off64_t)o->begun,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    o->begun = o->size;
}

/* errno of what failed; 0: nothing. ECANCELED: interrupted. */
static int write_all(output *o, const uint8_t *data, uint64_t size) {
    const mx_load_options *options = o->course->options;
    while (size) {
        if (options->stop && *options->stop) return ECANCELED;
        const ssize_t n = write(o->fd, data, size < PIECE ? (size_t)size : PIECE);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n ? errno : EIO;
        data += n;
        size -= (uint64_t)n;
        o->size += (uint64_t)n;
        hurry(o);
        go_on(o->course, (uint64_t)n, true);
    }
    return 0;
}

static int write_file(int fd, const char *path, const mx_expert_cache *c, const mx_tensor *const *tensor,
                      const mx_bytes *header, task *course) {
    output o = {.fd = fd, .course = course};
    const uint64_t length = header->size, bytes = bytes_of(tensor, c->count);
    /* Is there room? Where a file system cannot say, writing does. */
    if (ftruncate(fd, 0)) return errno;
    if (fallocate(fd, 0, 0, (off_t)(8 + length + bytes)) && errno != EOPNOTSUPP && errno != ENOSYS) return errno;
    if ((double)bytes >= SAID)
        mx_log(MX_LOG_INFO, "%s: %.1f GB of rounded experts are written for the next start", path, (double)bytes / 1e9);
    int problem = write_all(&o, (const uint8_t *)&length, 8);
    if (!problem) problem = write_all(&o, (const uint8_t *)header->data, length);
    for (int i = 0; i < c->count && !problem; i++) problem = write_all(&o, tensor[i]->data, tensor[i]->bytes);
    if (!problem && fsync(fd)) problem = errno;
    return problem;
}

/* The file at `beside` for us alone: made, or left by who was killed. -1: errno says why; EAGAIN: another process
 * writes it, or has just done so. */
static int lock(const char *beside, mode_t mode) {
    struct stat ours, there;
    const int fd = open(beside, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0) return -1;
    int problem = flock(fd, LOCK_EX | LOCK_NB) || fstat(fd, &ours) ? errno : 0;
    if (!problem && (stat(beside, &there) || ours.st_dev != there.st_dev || ours.st_ino != there.st_ino))
        problem = EAGAIN; /* it was renamed before we had the lock */
    if (!problem) return fd;
    close(fd);
    errno = problem;
    return -1;
}

/* Under `path`, through a file beside it that who may read the model may read. errno of what failed; 0: nothing. */
static int keep_as(char *path, const mx_expert_cache *c, const mx_tensor *const *tensor, const mx_bytes *header,
                   mode_t mode, task *course) {
    char *beside;
    if (asprintf(&beside, "%s.part", path) < 0) return ENOMEM;
    mx_make_folders(path, 0700);
    const int fd = lock(beside, mode);
    int problem = fd < 0 ? errno : write_file(fd, path, c, tensor, header, course);
    if (!problem && rename(beside, path)) problem = errno;
    if (fd >= 0 && problem) unlink(beside);
    if (fd >= 0 && close(fd) && !problem) problem = errno;
    if (!problem) mx_sync_folder(path);
    free(beside);
    return problem;
}

static void say_kept(mx_expert_cache *c, int place) {
    snprintf(c->said, sizeof c->said, "; they are kept in %s for the next start%s", c->file[place],
             *c->wrong[place] ? ", in place of what was there" : "");
}

void mx_expert_cache_keep(mx_expert_cache *c, const mx_checkpoint *ck, const mx_load_options *options) {
    if (!c->count) return;
    char hash[HASH];
    mx_bytes header = {0};
    int problem = ENOMEM;
    struct stat model;
    const mode_t mode = stat(ck->safetensors[0].file.path, &model) ? 0600 : (model.st_mode & 0666) | 0600;
    const mx_tensor **tensor = malloc((size_t)c->count * sizeof *tensor);
    for (int i = 0; tensor && i < c->count; i++) tensor[i] = &ck->tensor[c->made[i]];
    task course = {.options = options, .total = tensor ? 2 * bytes_of(tensor, c->count) : 0};
    if (tensor && hash_content(tensor, c->count, &course, hash) && make_header(c, tensor, hash, &header))
        for (int i = 0; i < 2 && problem && problem != ECANCELED && problem != EAGAIN; i++) {
            if (!*c->file[i]) continue;
            atomic_store(&course.done, course.total / 2);
            problem = keep_as(c->file[i], c, tensor, &header, mode, &course);
            if (!problem) say_kept(c, i);
        }
    free(tensor);
    mx_bytes_free(&header);
    if (problem == EAGAIN)
        snprintf(c->said, sizeof c->said, "; another process keeps them for the next start");
    else if (problem && !(options->stop && *options->stop))
        mx_log(MX_LOG_WARNING, "rounded experts cannot be kept for the next start (%s): each start rounds them",
               strerror(problem));
}

void mx_expert_cache_free(mx_expert_cache *c) {
    free(c->made);
    *c = (mx_expert_cache){0};
}
