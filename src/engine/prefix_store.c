#include "engine/prefix_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/files.h"
#include "base/log.h"

enum { VERSION = 1, PATIENCE = 10, STALE = 600 /* of a file half written */ };
static const uint64_t QUEUE_BYTES = (uint64_t)64 << 20;

/* ---- a file -------------------------------------------------------------------------------------------------------
 */
/* Before the pages. In the machine's byte order, which the keys depend on. */
typedef struct header {
    char magic[8];
    uint32_t version, part;
    mx_store_key key;
    uint64_t pages, page_bytes;
    uint64_t content; /* XXH3 of the pages */
    int32_t token[MX_TILE];
    uint64_t check; /* XXH3 of all before it */
} header;

static const char MAGIC[8] = "mxkvtile";
static const char *const endings[] = {[MX_STORE_FULL] = "full", [MX_STORE_WINDOW] = "window"};

enum { NAME = 48 };

static void name_of(char out[NAME], mx_store_part part, mx_store_key key) {
    snprintf(out, NAME, "%016llx%016llx.%s", (unsigned long long)key.high, (unsigned long long)key.low, endings[part]);
}

static bool is_tile(const char *name) {
    return strspn(name, "0123456789abcdef") == 32 && name[32] == '.' &&
           (!strcmp(name + 33, endings[0]) || !strcmp(name + 33, endings[1]));
}

/* Names of files that are being written: no other store, here or elsewhere, writes one of the same name. */
static const char UNFINISHED[] = ".mxkv-";

struct mx_prefix_store {
    char *folder;
    int directory;
    uint64_t most;
    uint64_t page_bytes;
    int64_t pages[2]; /* of a file, by its part */
    mx_store_key root;
    ssize_t (*write)(int file, const void *data, size_t size);
    uint64_t token; /* of this store, in the names of unfinished files */
    mx_arena memory;
    char *buffer; /* what was read; aligned as an arena is */
    bool warned;  /* of a damaged file */
    double patience, ends;

    /* the files to write: slots [slots], of which `waiting` from `first` on are filled */
    char *slot;
    size_t slot_bytes; /* header and pages */
    int slots;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    int first, waiting;
    bool closing, abandon, refused;
    mx_prefix_store_stats stats;
    uint64_t since; /* bytes written since the folder was looked at */
    pthread_t writer;
};

static size_t payload_bytes(const mx_prefix_store *s, mx_store_part part) {
    return (size_t)s->pages[part] * s->page_bytes;
}

static uint64_t check_of(const header *h) {
    return XXH3_64bits(h, offsetof(header, check));
}

/* ---- keys ---------------------------------------------------------------------------------------------------------
 */
static mx_store_key to_key(XXH128_hash_t hash) {
    return (mx_store_key){hash.low64, hash.high64};
}

static mx_store_key root_of(const mx_prefix_store_options *o) {
    struct {
        uint32_t version, tile;
        int64_t page_bytes, layers;
        XXH128_hash_t sliding, identity;
    } what;
    memset(&what, 0, sizeof what);
    what.version = VERSION;
    what.tile = MX_TILE;
    what.page_bytes = o->page_bytes;
    what.layers = o->config->layers;
    what.sliding = XXH3_128bits(o->config->sliding, sizeof *o->config->sliding * (size_t)o->config->layers);
    what.identity = XXH3_128bits(o->identity, strlen(o->identity));
    return to_key(XXH3_128bits(&what, sizeof what));
}

mx_store_key mx_prefix_store_root(const mx_prefix_store *store) {
    return store->root;
}

mx_store_key mx_prefix_store_next(mx_store_key parent, const int32_t token[MX_TILE]) {
    struct {
        mx_store_key parent;
        int32_t token[MX_TILE];
    } what = {.parent = parent};
    memcpy(what.token, token, sizeof what.token);
    return to_key(XXH3_128bits(&what, sizeof what));
}

/* ---- the bound ----------------------------------------------------------------------------------------------------
 */
typedef struct found {
    char name[NAME];
    struct timespec used;
    uint64_t bytes;
} found;

static int by_use(const void *a, const void *b) {
    const struct timespec *x = &((const found *)a)->used, *y = &((const found *)b)->used;
    if (x->tv_sec != y->tv_sec) return x->tv_sec < y->tv_sec ? -1 : 1;
    return (x->tv_nsec > y->tv_nsec) - (x->tv_nsec < y->tv_nsec);
}

/* Notes a file of ours; removes what a process left that was killed while it wrote. Other files are not touched. */
static bool look_at(mx_prefix_store *s, const char *name, found **list, size_t *count, size_t *room) {
    const bool unfinished = !strncmp(name, UNFINISHED, sizeof UNFINISHED - 1);
    struct stat info;
    if ((!unfinished && !is_tile(name)) || fstatat(s->directory, name, &info, AT_SYMLINK_NOFOLLOW) ||
        !S_ISREG(info.st_mode))
        return true;
    if (unfinished) {
        if (time(NULL) - info.st_mtime > STALE) unlinkat(s->directory, name, 0);
        return true;
    }
    if (*count == *room) {
        *room = *room ? *room * 2 : 256;
        found *larger = realloc(*list, *room * sizeof **list);
        if (!larger) return false;
        *list = larger;
    }
    found *f = &(*list)[(*count)++];
    memcpy(f->name, name, strlen(name) + 1); /* is_tile: it fits */
    f->used = info.st_mtim;
    f->bytes = (uint64_t)info.st_size;
    return true;
}

/* Looks at the whole folder and removes the longest unused files while there are more than `most` bytes. */
static void trim(mx_prefix_store *s, uint64_t most) {
    found *list = NULL;
    size_t count = 0, room = 0;
    int again = openat(s->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = again >= 0 ? fdopendir(again) : NULL;
    if (!directory) {
        if (again >= 0) close(again);
        return;
    }
    for (struct dirent *e; (e = readdir(directory));)
        if (!look_at(s, e->d_name, &list, &count, &room)) break;
    closedir(directory);
    uint64_t total = 0;
    int64_t removed = 0;
    for (size_t i = 0; i < count; i++) total += list[i].bytes;
    if (total > most) qsort(list, count, sizeof *list, by_use);
    for (size_t i = 0; i < count && total > most; i++) {
        if (unlinkat(s->directory, list[i].name, 0) && errno != ENOENT) continue;
        total -= list[i].bytes;
        removed++;
    }
    free(list);
    pthread_mutex_lock(&s->lock);
    s->stats.bytes = total;
    s->stats.removed += removed;
    s->since = 0;
    pthread_mutex_unlock(&s->lock);
}

/* Room for one more file. Others may write here too, so the folder is looked at every now and then. */
static void make_room(mx_prefix_store *s, uint64_t bytes) {
    pthread_mutex_lock(&s->lock);
    const bool enough = s->stats.bytes + bytes <= s->most && s->since <= s->most / 32;
    pthread_mutex_unlock(&s->lock);
    if (enough) return;
    trim(s, s->most - bytes);
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */
static bool write_all(mx_prefix_store *s, int file, const char *data, size_t size) {
    while (size > 0) {
        ssize_t n = s->write(file, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (n == 0) errno = ENOSPC;
            return false;
        }
        data += n;
        size -= (size_t)n;
    }
    return true;
}

/* false: errno says why, and nothing is left. */
static bool write_file(mx_prefix_store *s, const char *name, const char *data, size_t size) {
    char unfinished[NAME];
    snprintf(unfinished, sizeof unfinished, "%s%016llx", UNFINISHED, (unsigned long long)s->token);
    int file = openat(s->directory, unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) return false;
    bool good = write_all(s, file, data, size);
    int why = errno;
    if (close(file) && good) {
        good = false;
        why = errno;
    }
    if (good && renameat(s->directory, unfinished, s->directory, name)) {
        good = false;
        why = errno;
    }
    if (!good) unlinkat(s->directory, unfinished, 0);
    errno = why;
    return good;
}

static void store_slot(mx_prefix_store *s, char *slot) {
    header *h = (header *)slot;
    const size_t payload = payload_bytes(s, h->part), size = sizeof *h + payload;
    char name[NAME];
    name_of(name, h->part, h->key);
    if (utimensat(s->directory, name, NULL, AT_SYMLINK_NOFOLLOW) == 0) {
        pthread_mutex_lock(&s->lock);
        s->stats.known++;
        pthread_mutex_unlock(&s->lock);
        return;
    }
    h->content = XXH3_64bits(slot + sizeof *h, payload);
    h->check = check_of(h);
    make_room(s, size);
    bool good = write_file(s, name, slot, size);
    if (!good && (errno == ENOSPC || errno == EDQUOT)) { /* the disk is smaller than the bound: an eighth of it less */
        trim(s, s->stats.bytes - s->stats.bytes / 8);
        good = write_file(s, name, slot, size);
    }
    const int why = errno;
    pthread_mutex_lock(&s->lock);
    s->refused = !good;
    if (good) {
        s->stats.written++;
        s->stats.bytes += size;
        s->since += size;
    }
    pthread_mutex_unlock(&s->lock);
    if (!good)
        mx_log(MX_LOG_WARNING, "prefix cache %s: %s; nothing more is kept there by this run", s->folder, strerror(why));
}

static void *write_slots(void *argument) {
    mx_prefix_store *s = argument;
    trim(s, s->most);
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (s->waiting == 0 && !s->closing) pthread_cond_wait(&s->changed, &s->lock);
        if (s->waiting == 0 || s->abandon) break;
        char *slot = s->slot + (size_t)s->first * s->slot_bytes;
        const bool refused = s->refused;
        pthread_mutex_unlock(&s->lock);
        if (!refused) store_slot(s, slot);
        pthread_mutex_lock(&s->lock);
        s->first = (s->first + 1) % s->slots;
        s->waiting--;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void *mx_prefix_store_put(mx_prefix_store *s, mx_store_part part, mx_store_key key, const int32_t token[MX_TILE]) {
    pthread_mutex_lock(&s->lock);
    const int at = s->waiting < s->slots && !s->refused ? (s->first + s->waiting) % s->slots : -1;
    pthread_mutex_unlock(&s->lock);
    if (at < 0) return NULL;
    header *h = (header *)(s->slot + (size_t)at * s->slot_bytes);
    *h = (header){
        .version = VERSION, .part = part, .key = key, .pages = (uint64_t)s->pages[part], .page_bytes = s->page_bytes};
    memcpy(h->magic, MAGIC, sizeof h->magic);
    memcpy(h->token, token, sizeof h->token);
    return h + 1;
}

void mx_prefix_store_commit(mx_prefix_store *s) {
    pthread_mutex_lock(&s->lock);
    s->waiting++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static struct timespec in_seconds(double seconds) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const int64_t ns = t.tv_nsec + (int64_t)(seconds * 1e9);
    return (struct timespec){t.tv_sec + ns / 1000000000, ns % 1000000000};
}

bool mx_prefix_store_wait(mx_prefix_store *s, double seconds) {
    if (seconds <= 0) return false;
    const struct timespec until = in_seconds(seconds);
    pthread_mutex_lock(&s->lock);
    while (s->waiting == s->slots && !s->refused && pthread_cond_timedwait(&s->changed, &s->lock, &until) == 0)
        continue;
    const bool room = s->waiting < s->slots && !s->refused;
    pthread_mutex_unlock(&s->lock);
    return room;
}

/* ---- reading ------------------------------------------------------------------------------------------------------
 */
bool mx_prefix_store_has(const mx_prefix_store *s, mx_store_part part, mx_store_key key) {
    char name[NAME];
    name_of(name, part, key);
    return faccessat(s->directory, name, R_OK, 0) == 0;
}

/* Up to `size` bytes: what there is. -1: errno says why. */
static ssize_t read_all(int file, char *out, size_t size) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = read(file, out + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/* What is wrong with a file that was read into the buffer; NULL: nothing. */
static const char *wrong_with(const mx_prefix_store *s, mx_store_part part, mx_store_key key, ssize_t size) {
    const header *h = (const header *)s->buffer;
    const size_t payload = payload_bytes(s, part);
    if (size < (ssize_t)sizeof *h || memcmp(h->magic, MAGIC, sizeof h->magic)) return "not a file of this kind";
    if (h->version != VERSION || h->check != check_of(h)) return "its header does not match its checksum";
    if (h->part != (uint32_t)part || h->key.low != key.low || h->key.high != key.high ||
        h->pages != (uint64_t)s->pages[part] || h->page_bytes != s->page_bytes)
        return "it belongs to another name";
    if (size != (ssize_t)(sizeof *h + payload)) return "its length is wrong";
    if (h->content != XXH3_64bits(s->buffer + sizeof *h, payload)) return "its pages do not match their checksum";
    return NULL;
}

static void remove_damaged(mx_prefix_store *s, const char *name, const char *why) {
    unlinkat(s->directory, name, 0);
    pthread_mutex_lock(&s->lock);
    s->stats.damaged++;
    pthread_mutex_unlock(&s->lock);
    if (!s->warned)
        mx_log(MX_LOG_WARNING, "prefix cache %s: %s was removed (%s); what it held is computed again", s->folder, name,
               why);
    s->warned = true;
}

const void *mx_prefix_store_read(mx_prefix_store *s, mx_store_part part, mx_store_key key,
                                 const int32_t token[MX_TILE]) {
    char name[NAME];
    name_of(name, part, key);
    int file = openat(s->directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0) return NULL;
    /* one byte more than it should have, to see that it ends there */
    const ssize_t size = read_all(file, s->buffer, sizeof(header) + payload_bytes(s, part) + 1);
    if (size < 0) {
        close(file);
        return NULL;
    }
    const char *why = wrong_with(s, part, key, size);
    if (!why) futimens(file, NULL);
    close(file);
    if (why) {
        remove_damaged(s, name, why);
        return NULL;
    }
    if (memcmp(((const header *)s->buffer)->token, token, sizeof(int32_t) * MX_TILE)) return NULL; /* equal hashes */
    pthread_mutex_lock(&s->lock);
    s->stats.read++;
    pthread_mutex_unlock(&s->lock);
    return s->buffer + sizeof(header);
}

mx_prefix_store_stats mx_prefix_store_get_stats(mx_prefix_store *s) {
    pthread_mutex_lock(&s->lock);
    mx_prefix_store_stats stats = s->stats;
    pthread_mutex_unlock(&s->lock);
    return stats;
}

/* ---- opening and closing ------------------------------------------------------------------------------------------
 */
static mx_status open_folder(mx_prefix_store *s, mx_error *error) {
    const size_t length = strlen(s->folder);
    char *inside = malloc(length + 3);
    if (!inside) return mx_fail(error, MX_NO_MEMORY, "no memory for a prefix cache");
    snprintf(inside, length + 3, "%s/.", s->folder);
    mx_make_folders(inside, 0777);
    free(inside);
    s->directory = open(s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->directory < 0 || faccessat(s->directory, ".", R_OK | W_OK | X_OK, 0))
        return mx_fail(error, MX_IO, "prefix cache %s: %s; expected a folder that can be written", s->folder,
                       strerror(errno));
    return MX_OK;
}

static mx_status take_memory(mx_prefix_store *s, uint64_t queue, mx_error *error) {
    const size_t full = payload_bytes(s, MX_STORE_FULL), window = payload_bytes(s, MX_STORE_WINDOW);
    s->slot_bytes = (sizeof(header) + (full > window ? full : window) + 64) / 64 * 64; /* and a byte more */
    const uint64_t slots = queue / s->slot_bytes;
    s->slots = slots < 2 ? 2 : slots > 1024 ? 1024 : (int)slots;
    mx_status status = mx_arena_create((size_t)(s->slots + 1) * s->slot_bytes, &s->memory, error);
    if (status) return status;
    s->buffer = mx_arena_take(&s->memory, s->slot_bytes);
    s->slot = mx_arena_take(&s->memory, (size_t)s->slots * s->slot_bytes);
    return MX_OK;
}

/* No signal is delivered to the thread that writes. */
static bool start_writer(mx_prefix_store *s) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&s->writer, NULL, write_slots, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return !failed;
}

static void release(mx_prefix_store *s) {
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    if (s->directory >= 0) close(s->directory);
    mx_arena_destroy(&s->memory);
    free(s->folder);
    free(s);
}

mx_status mx_prefix_store_open(const mx_prefix_store_options *o, mx_prefix_store **out, mx_error *error) {
    mx_prefix_store *s = calloc(1, sizeof *s);
    if (!s) return mx_fail(error, MX_NO_MEMORY, "no memory for a prefix cache");
    s->directory = -1;
    s->most = o->most;
    s->page_bytes = (uint64_t)o->page_bytes;
    s->write = o->write ? o->write : write;
    s->patience = o->patience > 0 ? o->patience : PATIENCE;
    for (int l = 0; l < o->config->layers; l++) s->pages[o->config->sliding[l] ? MX_STORE_WINDOW : MX_STORE_FULL]++;
    s->root = root_of(o);
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);

    mx_status status = MX_OK;
    s->folder = strdup(o->folder);
    if (!s->folder) status = mx_fail(error, MX_NO_MEMORY, "no memory for a prefix cache");
    if (!status) status = take_memory(s, o->queue_bytes ? o->queue_bytes : QUEUE_BYTES, error);
    if (!status && s->most < s->slot_bytes)
        status =
            mx_fail(error, MX_INVALID_ARGUMENT, "prefix cache %s: at most %.1f MiB; one tile of %d tokens takes %.1f",
                    s->folder, (double)s->most * 0x1p-20, MX_TILE, (double)s->slot_bytes * 0x1p-20);
    if (!status) status = open_folder(s, error);
    if (!status && getrandom(&s->token, sizeof s->token, 0) != sizeof s->token)
        status = mx_fail(error, MX_IO, "prefix cache %s: no random number", s->folder);
    if (!status && !start_writer(s))
        status = mx_fail(error, MX_NO_MEMORY, "prefix cache %s: no thread that writes", s->folder);
    if (status) {
        release(s);
        return status;
    }
    *out = s;
    return MX_OK;
}

double mx_prefix_store_ends(mx_prefix_store *s) {
    if (s->ends <= 0) s->ends = mx_seconds() + s->patience;
    return s->ends;
}

void mx_prefix_store_close(mx_prefix_store *s) {
    if (!s) return;
    const double left = mx_prefix_store_ends(s) - mx_seconds();
    const struct timespec until = in_seconds(left > 0 ? left : 0);
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    while (s->waiting > 0 && pthread_cond_timedwait(&s->changed, &s->lock, &until) == 0) continue;
    s->abandon = true;
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->writer, NULL);
    release(s);
}
