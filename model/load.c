/* A checkpoint's files into memory: the mapping filled by many threads at once, or replaced by a copy of its own. */
#include "model/load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/pages.h"
#include "model/checkpoint_private.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

enum {
    BLOCK = 2 << 20,  /* bytes of one request: a huge page */
    LEAST_READERS = 4 /* requests that a disk wants to have at once, whatever the number of cores */
};

struct loading {
    const mx_load_options *options;
    mx_checkpoint *checkpoint;
    mx_mapped *file;
    int fd;                  /* MX_LOAD_READ */
    uint64_t total, before;  /* bytes of all; of what came before this file */
    atomic_ullong done;      /* of this file */
    atomic_int failed;       /* errno of the first block that cannot be had; -1: the file ended there */
    atomic_ullong failed_at; /* its offset */
    const uint32_t *order;   /* blocks of this file that hold tensors, node by node */
    atomic_bool slow;        /* no direct reads, or no MADV_POPULATE_READ: the second best way is in use */
};

static void fail_at(struct loading *l, uint64_t at, int reason) {
    int none = 0;
    if (atomic_compare_exchange_strong(&l->failed, &none, reason)) atomic_store(&l->failed_at, at);
}

/* ---- one block ------------------------------------------------------------------------------------------- */

/* Older kernels: a byte of every page. */
static void touch(const volatile uint8_t *from, size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < n; i += page) (void)from[i];
}

static void populate(struct loading *l, uint64_t at, size_t n) {
    uint8_t *from = (uint8_t *)l->file->data + at;
    if (!atomic_load_explicit(&l->slow, memory_order_relaxed)) {
        if (!madvise(from, n, MADV_POPULATE_READ)) return;
        if (errno != EINVAL) {
            fail_at(l, at, errno == EFAULT ? -1 : errno);
            return;
        }
        atomic_store(&l->slow, true);
    }
    touch(from, n);
}

/* Direct reads want whole sectors: the last one may be asked for beyond the end of the file, the memory is there. */
static void read_block(struct loading *l, uint64_t at, size_t n) {
    const bool direct = !atomic_load_explicit(&l->slow, memory_order_relaxed);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), asked = direct ? (n + page - 1) / page * page : n;
    for (size_t got = 0; got < n;) {
        ssize_t r = pread(l->fd, (uint8_t *)l->file->data + at + got, asked - got, (off_t)(at + got));
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) {
            fail_at(l, at + got, r ? errno : -1);
            return;
        }
        got += (size_t)r;
    }
    if (!direct) posix_fadvise(l->fd, (off_t)at, (off_t)n, POSIX_FADV_DONTNEED); /* no second copy */
}

/* Asked by the caller's thread alone, which is in every file to the end; the others see `failed`. */
static bool stopped(const struct loading *l) {
    return l->options->stop && *l->options->stop;
}

static void load_blocks(void *arg, int64_t begin, int64_t end, int thread) {
    struct loading *l = arg;
    for (int64_t i = begin; i < end && !atomic_load(&l->failed); i++) {
        const uint64_t at = (uint64_t)l->order[i] * BLOCK, left = l->file->size - at;
        const size_t n = left < BLOCK ? (size_t)left : BLOCK;
        if (thread == 0 && stopped(l)) {
            fail_at(l, at, ECANCELED);
            return;
        }
        if (l->options->way == MX_LOAD_READ)
            read_block(l, at, n);
        else
            populate(l, at, n);
        const uint64_t done = l->before + atomic_fetch_add(&l->done, n) + n;
        if (thread == 0 && l->options->progress) l->options->progress(l->options->user, done, l->total);
    }
}

/* ---- which blocks ------------------------------------------------------------------------------------------ */

/* The tensors that lie in a file as they are used, by their bytes. */
typedef struct direct {
    const mx_tensor **tensor;
    int count;
} direct;

static int by_data(const void *a, const void *b) {
    const mx_tensor *x = *(const mx_tensor *const *)a, *y = *(const mx_tensor *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

/* NULL: no memory. */
static const mx_tensor **find_direct(const mx_checkpoint *ck, const mx_mapped *f, int *count) {
    const mx_tensor **list = malloc(((size_t)ck->count + 1) * sizeof *list);
    *count = 0;
    for (int i = 0; list && i < ck->count; i++) {
        const mx_tensor *t = &ck->tensor[i];
        if (t->bytes && t->data >= f->data && t->data < f->data + f->size) list[(*count)++] = t;
    }
    if (list) qsort(list, (size_t)*count, sizeof *list, by_data);
    return list;
}

/* Where the last slice ends. */
static const uint8_t *end_of(const mx_tensor *t) {
    if (!t->dims || !t->shape[0]) return t->data + t->bytes;
    return t->data + (uint64_t)(t->shape[0] - 1) * t->slice_stride + mx_tensor_slice_bytes(t);
}

/* The node whose threads multiply with the byte at `at`, if tensors are matrices or, with three dimensions and more, a
 * matrix of each expert: as run_products cuts them (gpt_oss.c), but by bytes. */
static int node_of(const direct *d, const mx_pool *pool, const uint8_t *byte) {
    int low = 0, high = d->count; /* tensors that begin at or before it: [0, low) */
    while (low < high) {
        int middle = (low + high) / 2;
        if (d->tensor[middle]->data <= byte)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low) return 0;
    const mx_tensor *t = d->tensor[low - 1];
    /* Experts of several tensors in turn (model.bin): the one whose part it is. */
    for (int i = low - 1; i >= 0 && d->tensor[i]->slice_stride == t->slice_stride && t->slice_stride; i--)
        if ((uint64_t)(byte - d->tensor[i]->data) % t->slice_stride < mx_tensor_slice_bytes(d->tensor[i])) {
            t = d->tensor[i];
            break;
        }
    const int64_t unit = t->dims >= 3 && t->shape[0] ? (int64_t)t->slice_stride : (int64_t)t->bytes;
    const int64_t within = unit ? (byte - t->data) % unit : 0;
    const int64_t matrix = t->dims >= 3 ? (int64_t)mx_tensor_slice_bytes(t) : unit;
    int node = 0;
    while (node + 1 < mx_pool_nodes(pool) && mx_pool_share(pool, node + 1, matrix) <= within) node++;
    return node;
}

/* The blocks of a file that hold tensors or the header, sorted by the node of their middle. */
typedef struct blocks {
    uint32_t *order;
    int64_t first[MX_POOL_NODES + 1];
    uint64_t bytes;
} blocks;

static mx_status choose_blocks(mx_checkpoint *ck, int index, const mx_pool *pool, blocks *out, mx_error *error) {
    const mx_mapped *f = mx_checkpoint_file(ck, index);
    const int nodes = mx_pool_nodes(pool);
    const int64_t count = (int64_t)((f->size + BLOCK - 1) / BLOCK);
    direct d;
    d.tensor = find_direct(ck, f, &d.count);
    uint32_t *order = malloc((size_t)count * sizeof *order + 1);
    bool *wanted = calloc((size_t)count + 1, sizeof *wanted);
    int64_t n = 0;
    const bool ok = d.tensor && order && wanted;
    /* The header, too: keys and names are looked at later. */
    for (uint64_t at = 0; ok && at < mx_checkpoint_header(ck, index); at += BLOCK) wanted[at / BLOCK] = true;
    for (int i = 0; ok && i < d.count; i++)
        for (int64_t b = (d.tensor[i]->data - f->data) / BLOCK; b <= (end_of(d.tensor[i]) - 1 - f->data) / BLOCK; b++)
            wanted[b] = true;
    for (int node = 0; ok && node < nodes; node++) {
        out->first[node] = n;
        for (int64_t i = 0; i < count; i++) {
            const uint64_t middle = (uint64_t)i * BLOCK + BLOCK / 2;
            if (wanted[i] && (nodes == 1 || node_of(&d, pool, f->data + middle) == node)) order[n++] = (uint32_t)i;
        }
    }
    out->first[nodes] = n;
    out->bytes = (uint64_t)n * BLOCK;
    if (ok && count && wanted[count - 1]) out->bytes -= (uint64_t)count * BLOCK - f->size;
    out->order = order;
    free(d.tensor);
    free(wanted);
    return ok ? MX_OK : mx_fail(error, MX_NO_MEMORY, "%s: no memory to sort its blocks", f->path);
}

/* ---- one file -------------------------------------------------------------------------------------------- */

/* Opens the file again, past the page cache where that can be done, and puts empty memory where it was mapped. */
static mx_status make_room(struct loading *l, mx_error *error) {
    mx_mapped *f = l->file;
    struct stat info;
    l->fd = l->options->without & MX_WITHOUT_DIRECT ? -1 : open(f->path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    /* Some file systems take the flag and refuse the reads. */
    if (l->fd >= 0 && f->size) {
        void *sector = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (sector == MAP_FAILED || pread(l->fd, sector, 4096, 0) < 0) {
            close(l->fd);
            l->fd = -1;
        }
        if (sector != MAP_FAILED) munmap(sector, 4096);
    }
    atomic_store(&l->slow, l->fd < 0);
    if (l->fd < 0) l->fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (l->fd < 0) return mx_fail(error, MX_IO, "%s: %s", f->path, strerror(errno));
    if (fstat(l->fd, &info) || (uint64_t)info.st_size != f->size)
        return mx_fail(error, MX_IO, "%s: it was %zu bytes long when it was opened and has changed since", f->path,
                       f->size);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (f->size + page - 1) / page * page;
    void *map =
        mmap(f->data, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (map == MAP_FAILED)
        return mx_fail(error, MX_NO_MEMORY, "%s: %zu bytes of memory cannot be had: %s", f->path, whole,
                       strerror(errno));
    l->checkpoint->copied = true;
    madvise(map, whole, MADV_HUGEPAGE);
    return MX_OK;
}

static mx_status failure(const struct loading *l, mx_error *error) {
    const int reason = atomic_load(&l->failed);
    if (stopped(l)) return mx_fail(error, MX_CANCELLED, "interrupted while loading");
    if (!reason) return MX_OK;
    return mx_fail(error, MX_IO, "%s: cannot be read at byte %llu of %zu: %s", l->file->path,
                   (unsigned long long)atomic_load(&l->failed_at), l->file->size,
                   reason < 0 ? "it has been cut off, or the disk fails" : strerror(reason));
}

static mx_status load_file(struct loading *l, const blocks *b, mx_pool *pool, mx_error *error) {
    mx_mapped *f = l->file;
    const bool read = l->options->way == MX_LOAD_READ;
    atomic_store(&l->done, 0);
    l->fd = -1;
    mx_status status = read ? make_room(l, error) : MX_OK;
    if (!status) {
        l->order = b->order;
        if (mx_pool_nodes(pool) > 1)
            mx_parallel_for_nodes(pool, b->first, 1, false, load_blocks, l);
        else
            mx_parallel_for(pool, b->first[1], 1, load_blocks, l);
        status = failure(l, error);
    }
    if (l->fd >= 0) close(l->fd);
    if (read && !status) mprotect(f->data, f->size, PROT_READ);
    return status;
}

/* ---- tensors that are made ---------------------------------------------------------------------------------- */

/* Pieces of about 1 MiB, so that threads have enough of them. */
typedef struct making {
    struct loading *l;
    mx_tensor **tensor;
    int64_t *first; /* piece of each tensor, and their number */
    int count;
} making;

enum { PIECE = 1 << 20 };

static int64_t slices_of_piece(const mx_tensor *t) {
    const uint64_t bytes = mx_tensor_slice_bytes(t);
    return bytes && bytes < PIECE ? (int64_t)(PIECE / bytes) : 1;
}

/* Whole pages of a source: brought in by one request, or given back to the page cache. */
static void advise(const uint8_t *from, uint64_t bytes, bool before) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)from, end = begin + bytes;
    begin = before ? begin / page * page : (begin + page - 1) / page * page;
    end = before ? (end + page - 1) / page * page : end / page * page;
    if (begin < end) madvise((void *)begin, end - begin, before ? MADV_POPULATE_READ : MADV_DONTNEED);
}

static void advise_sources(const mx_recipe *r, int64_t first, int64_t count, bool before) {
    for (int64_t i = first; i < first + count; i++) {
        advise(r->each ? r->each[i] : r->from + (uint64_t)i * r->from_stride, r->from_bytes, before);
        if (r->also) advise(r->also + (uint64_t)i * r->also_stride, r->also_bytes, before);
    }
}

static uint8_t *place_of(const mx_tensor *t, int64_t slice) {
    return (uint8_t *)(uintptr_t)t->data + (uint64_t)slice * t->slice_stride;
}

static void make_slices(const mx_tensor *t, int64_t first, int64_t count) {
    const mx_recipe *r = t->recipe;
    if (r->make_both && r->scales)
        r->make_both(r, first, count, place_of(t, first), place_of(r->scales, first));
    else
        r->make(r, first, count, place_of(t, first));
}

/* Scales that are made with their blocks. */
static bool is_taken_along(const mx_checkpoint *ck, const mx_tensor *t) {
    char name[MX_TENSOR_NAME];
    const int stem = (int)strlen(t->name) - (int)strlen("_scales");
    snprintf(name, sizeof name, "%.*s_blocks", stem > 0 ? stem : 0, t->name);
    const mx_tensor *other = mx_checkpoint_find(ck, name);
    return other && other->recipe && other->recipe->scales == t;
}

static void make_pieces(void *arg, int64_t begin, int64_t end, int thread) {
    making *m = arg;
    struct loading *l = m->l;
    for (int64_t piece = begin; piece < end && !atomic_load(&l->failed); piece++) {
        int low = 0, high = m->count - 1;
        while (low < high) {
            const int middle = (low + high + 1) / 2;
            if (m->first[middle] <= piece)
                low = middle;
            else
                high = middle - 1;
        }
        const mx_tensor *t = m->tensor[low];
        const int64_t each = slices_of_piece(t), first = (piece - m->first[low]) * each, left = t->shape[0] - first;
        const int64_t count = left < each ? left : each;
        if (thread == 0 && stopped(l)) {
            fail_at(l, 0, ECANCELED);
            return;
        }
        uint64_t bytes = (uint64_t)count * mx_tensor_slice_bytes(t);
        if (bytes >= PIECE / 2) advise_sources(t->recipe, first, count, true);
        make_slices(t, first, count);
        if (bytes >= PIECE / 2) advise_sources(t->recipe, first, count, false);
        if (t->recipe->scales) bytes += (uint64_t)count * mx_tensor_slice_bytes(t->recipe->scales);
        const uint64_t done = atomic_fetch_add(&l->done, bytes) + bytes;
        if (thread == 0 && l->options->progress) l->options->progress(l->options->user, done, l->total);
    }
}

static uint64_t made_bytes(const mx_checkpoint *ck) {
    uint64_t sum = 0;
    for (int i = 0; i < ck->count; i++)
        if (ck->tensor[i].recipe) sum += ck->tensor[i].bytes;
    return sum;
}

static void place(mx_pool *pool, const mx_tensor *t) {
    mx_tensor_place(pool, t);
    if (t->recipe->scales) mx_tensor_place(pool, t->recipe->scales);
}

/* Fills the memory of all tensors with a recipe; from then on they have none. */
static mx_status make_all(struct loading *l, mx_pool *pool, mx_error *error) {
    mx_checkpoint *ck = l->checkpoint;
    making m = {.l = l};
    m.tensor = malloc(((size_t)ck->count + 1) * sizeof *m.tensor);
    m.first = malloc(((size_t)ck->count + 1) * sizeof *m.first);
    mx_status status = m.tensor && m.first ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory to load a model");
    int64_t pieces = 0;
    for (int i = 0; i < ck->count && !status; i++) {
        mx_tensor *t = &ck->tensor[i];
        if (!t->recipe || !t->shape[0] || is_taken_along(ck, t)) continue;
        if (mx_pool_nodes(pool) > 1) place(pool, t);
        m.first[m.count] = pieces;
        m.tensor[m.count++] = t;
        pieces += (t->shape[0] + slices_of_piece(t) - 1) / slices_of_piece(t);
    }
    if (!status && pieces) {
        atomic_store(&l->done, 0);
        l->file = mx_checkpoint_file(ck, 0);
        mx_parallel_for(pool, pieces, 1, make_pieces, &m);
        status = failure(l, error);
    }
    for (int i = 0; i < ck->count && !status; i++) ck->tensor[i].recipe = NULL;
    free(m.tensor);
    free(m.first);
    return status;
}

/* ---- all of them ----------------------------------------------------------------------------------------- */

/* Whether all of it may be brought in: false for MX_LOAD_MAP where it is larger than memory. `made`: bytes of it that
 * are no mapping, but memory of this process. */
static mx_status check_memory(const mx_load_options *o, const char *path, uint64_t total, uint64_t made, bool *fits,
                              mx_error *error) {
    const bool without = o->without & MX_WITHOUT_MEMORY;
    const uint64_t available = without ? 0 : mx_memory_available();
    const double mib = 0x1p-20;
    *fits = !without && mx_memory_beside(total) > 0;
    if (*fits) return MX_OK;
    if (o->way == MX_LOAD_READ)
        return mx_fail(error, MX_NO_MEMORY,
                       "%s: a copy of the weights needs %.1f MiB, %.1f MiB of memory is free: end other programs, or "
                       "map them (--load map), which lets the kernel keep what fits",
                       path, (double)total * mib, (double)available * mib);
    if (made && (o->without & MX_WITHOUT_ROOM || mx_memory_beside(made) <= 0))
        return mx_fail(
            error, MX_NO_MEMORY,
            "%s: %.1f MiB of its weights must be rearranged in memory, %.1f MiB of memory is free: end other "
            "programs, or convert the model once (mxrun convert --to hf), then it is used as it lies on the "
            "disk",
            path, (double)made * mib, (double)available * mib);
    if (o->way == MX_LOAD_MAP && !o->told)
        mx_log(MX_LOG_WARNING,
               "the weights' %.1f MiB do not fit into the %.1f MiB of memory that is free: they are read from the disk "
               "when they are used, again and again",
               (double)total * mib, (double)available * mib);
    return MX_OK;
}

static void report(mx_checkpoint *ck, const struct loading *l, bool slow, double seconds) {
    const bool read = l->options->way == MX_LOAD_READ;
    if (slow && read)
        mx_log(MX_LOG_INFO, "%s: no direct reads on this file system: the weights went through the page cache",
               l->file->path);
    if (!mx_log_wanted(MX_LOG_DEBUG)) return;
    mx_pages sum = {0};
    for (int i = 0; i < mx_checkpoint_files(ck); i++) {
        const mx_mapped *f = mx_checkpoint_file(ck, i);
        mx_pages pages = mx_pages_of(f->data, f->size);
        sum.resident += pages.resident;
        sum.huge += pages.huge;
    }
    mx_log(MX_LOG_DEBUG, "weights: %.2f GB %s in %.3f s (%.2f GB/s), %.2f GB in memory, %.2f GB of it in huge pages%s",
           (double)l->total / 1e9, read ? "read" : "mapped", seconds, (double)l->total / 1e9 / seconds,
           (double)sum.resident / 1e9, (double)sum.huge / 1e9,
           slow && !read ? "; this kernel has no MADV_POPULATE_READ" : "");
}

uint64_t mx_checkpoint_cached(const mx_checkpoint *ck) {
    uint64_t sum = 0;
    for (int i = 0; i < mx_checkpoint_files(ck); i++) {
        const mx_mapped *f = mx_checkpoint_file((mx_checkpoint *)(uintptr_t)ck, i);
        sum += mx_pages_cached(f->data, f->size);
    }
    return sum;
}

mx_status mx_load_checkpoint(mx_checkpoint *ck, const mx_load_options *options, mx_error *error) {
    static const mx_load_options lazy = {.way = MX_LOAD_LAZY};
    const int files = mx_checkpoint_files(ck);
    const uint64_t made = made_bytes(ck);
    if (!options) options = &lazy;
    if (!files || (options->way == MX_LOAD_LAZY && !made)) return MX_OK;
    struct loading l = {.options = options, .checkpoint = ck, .slow = (options->without & MX_WITHOUT_POPULATE) != 0};
    for (int i = 0; i < ck->count; i++) l.total += ck->tensor[i].bytes;
    bool fits;
    mx_status status = check_memory(options, mx_checkpoint_file(ck, 0)->path, l.total, made, &fits, error);
    if (status || (!fits && !made)) return status;
    fits = fits && options->way != MX_LOAD_LAZY;

    const int threads = options->threads ? options->threads : mx_cpu_count();
    const bool interleave = options->numa == MX_NUMA_INTERLEAVE && mx_numa_nodes() > 1;
    const bool interleaved = interleave && mx_numa_interleave_thread(true); /* its workers too */
    mx_pool *pool;
    status = mx_pool_create_on(threads < LEAST_READERS ? LEAST_READERS : threads, options->numa, &pool, error);
    if (status) {
        if (interleaved) mx_numa_interleave_thread(false);
        return status;
    }
    const double start = mx_seconds();
    mx_pool_enter(pool);
    blocks *file = calloc((size_t)files, sizeof *file);
    if (!file) status = mx_fail(error, MX_NO_MEMORY, "no memory to load a model of %d files", files);
    l.total = made;
    for (int i = 0; fits && i < files && !status; i++) {
        status = choose_blocks(ck, i, pool, &file[i], error);
        l.total += file[i].bytes;
    }
    bool slow = false;
    if (made && !status) status = make_all(&l, pool, error);
    l.before = made;
    for (int i = 0; fits && i < files && !status; i++) {
        l.file = mx_checkpoint_file(ck, i);
        status = load_file(&l, &file[i], pool, error);
        l.before += file[i].bytes;
        slow |= atomic_load(&l.slow);
    }
    for (int i = 0; file && i < files; i++) free(file[i].order);
    free(file);
    if (interleaved) mx_numa_interleave_thread(false);
    mx_pool_leave(pool);
    if (!status && mx_pool_nodes(pool) > 1)
        mx_log(MX_LOG_INFO, "%d memory nodes: each has its part of the weights%s", mx_pool_nodes(pool),
               options->way == MX_LOAD_MAP
                   ? "; what the page cache held before stays where it is (--load read places it anew)"
                   : "");
    if (!status && interleaved)
        mx_log(MX_LOG_INFO, "%d memory nodes: pages of the weights come from all in turn", mx_numa_nodes());
    else if (!status && interleave)
        mx_log(MX_LOG_WARNING,
               "%d memory nodes: the weights cannot be taken from all in turn, the system refuses: they lie where the "
               "kernel puts them",
               mx_numa_nodes());
    mx_pool_destroy(pool);
    if (!status) report(ck, &l, slow, mx_seconds() - start);
    return status;
}
