/* A checkpoint's files into memory: the mapping filled by many threads at once, or replaced by a copy of its own. */
#include "model/load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/pages.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

enum {
    BLOCK = 2 << 20,  /* bytes of one request: a huge page */
    LEAST_READERS = 4 /* requests that a disk wants to have at once, whatever the number of cores */
};

struct loading {
    const mx_load_options *options;
    mx_safetensors *file;
    int fd;                  /* MX_LOAD_READ */
    uint64_t total, before;  /* bytes of all files; of those before this one */
    atomic_ullong done;      /* of this file */
    atomic_int failed;       /* errno of the first block that cannot be had; -1: the file ended there */
    atomic_ullong failed_at; /* its offset */
    const uint32_t *order;   /* blocks of this file, node by node; NULL: as they lie */
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
    uint8_t *from = (uint8_t *)l->file->map + at;
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
        ssize_t r = pread(l->fd, (uint8_t *)l->file->map + at + got, asked - got, (off_t)(at + got));
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
        const uint64_t at = (uint64_t)(l->order ? l->order[i] : i) * BLOCK, left = l->file->map_size - at;
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

/* ---- NUMA nodes ------------------------------------------------------------------------------------------ */

/* The node whose threads multiply with the byte at `at`, if a file's tensors are matrices or, with three dimensions and
 * more, a matrix of each expert: as run_products cuts them (gpt_oss.c), but by bytes. */
static int node_of(const mx_safetensors *f, const mx_pool *pool, uint64_t at) {
    const uint8_t *byte = (const uint8_t *)f->map + at;
    int low = 0, high = f->count; /* tensors that begin at or before it: [0, low) */
    while (low < high) {
        int middle = (low + high) / 2;
        if (f->tensor[middle].data <= byte)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low) return 0;
    const mx_tensor *t = &f->tensor[low - 1];
    const int64_t unit = (int64_t)t->bytes / (t->dims >= 3 && t->shape[0] ? t->shape[0] : 1);
    const int64_t within = unit ? (byte - t->data) % unit : 0;
    int node = 0;
    while (node + 1 < mx_pool_nodes(pool) && mx_pool_share(pool, node + 1, unit) <= within) node++;
    return node;
}

/* Sorts the file's blocks by the node of their middle; first [nodes + 1]. NULL: no memory. */
static uint32_t *sort_blocks(const mx_safetensors *f, const mx_pool *pool, int64_t blocks, int64_t *first) {
    const int nodes = mx_pool_nodes(pool);
    uint32_t *order = malloc((size_t)blocks * sizeof *order + 1); /* also of an empty file */
    int64_t n = 0;
    for (int node = 0; order && node < nodes; node++) {
        first[node] = n;
        for (int64_t i = 0; i < blocks; i++)
            if (node_of(f, pool, (uint64_t)i * BLOCK + BLOCK / 2) == node) order[n++] = (uint32_t)i;
    }
    first[nodes] = n;
    return order;
}

/* ---- one file -------------------------------------------------------------------------------------------- */

/* Opens the file again, past the page cache where that can be done, and puts empty memory where it was mapped. */
static mx_status make_room(struct loading *l, mx_error *error) {
    mx_safetensors *f = l->file;
    struct stat info;
    l->fd = l->options->without & MX_WITHOUT_DIRECT ? -1 : open(f->path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    /* Some file systems take the flag and refuse the reads. */
    if (l->fd >= 0 && f->map_size) {
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
    if (fstat(l->fd, &info) || (uint64_t)info.st_size != f->map_size)
        return mx_fail(error, MX_IO, "%s: it was %zu bytes long when it was opened and has changed since", f->path,
                       f->map_size);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (f->map_size + page - 1) / page * page;
    void *map =
        mmap(f->map, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (map == MAP_FAILED)
        return mx_fail(error, MX_NO_MEMORY, "%s: %zu bytes of memory cannot be had: %s", f->path, whole,
                       strerror(errno));
    madvise(map, whole, MADV_HUGEPAGE);
    return MX_OK;
}

static mx_status failure(const struct loading *l, mx_error *error) {
    const int reason = atomic_load(&l->failed);
    if (stopped(l)) return mx_fail(error, MX_CANCELLED, "interrupted while loading");
    if (!reason) return MX_OK;
    return mx_fail(error, MX_IO, "%s: cannot be read at byte %llu of %zu: %s", l->file->path,
                   (unsigned long long)atomic_load(&l->failed_at), l->file->map_size,
                   reason < 0 ? "it has been cut off, or the disk fails" : strerror(reason));
}

static mx_status load_file(struct loading *l, mx_pool *pool, mx_error *error) {
    mx_safetensors *f = l->file;
    const bool read = l->options->way == MX_LOAD_READ;
    atomic_store(&l->done, 0);
    l->fd = -1;
    mx_status status = read ? make_room(l, error) : MX_OK;
    if (!status) {
        const int64_t blocks = (int64_t)((f->map_size + BLOCK - 1) / BLOCK);
        int64_t first[MX_POOL_NODES + 1] = {0, blocks};
        const bool sorted = mx_pool_nodes(pool) > 1;
        uint32_t *order = sorted ? sort_blocks(f, pool, blocks, first) : NULL;
        l->order = order;
        if (order)
            mx_parallel_for_nodes(pool, first, 1, false, load_blocks, l);
        else if (!sorted)
            mx_parallel_for(pool, blocks, 1, load_blocks, l);
        status = sorted && !order ? mx_fail(error, MX_NO_MEMORY, "%s: no memory to sort its %lld blocks by memory node",
                                            f->path, (long long)blocks)
                                  : failure(l, error);
        free(order);
    }
    if (l->fd >= 0) close(l->fd);
    if (read && !status) mprotect(f->map, f->map_size, PROT_READ);
    return status;
}

/* ---- all of them ----------------------------------------------------------------------------------------- */

/* Whether all of it may be brought in: false for MX_LOAD_MAP where it is larger than memory. */
static mx_status check_memory(const mx_load_options *o, const char *path, uint64_t total, bool *fits, mx_error *error) {
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
    mx_log(
        MX_LOG_WARNING,
        "the weights' %.1f MiB do not fit into the %.1f MiB of memory that is free: they are read from the disk when "
        "they are used, again and again",
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
        const mx_safetensors *f = mx_checkpoint_file(ck, i);
        mx_pages pages = mx_pages_of(f->map, f->map_size);
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
        const mx_safetensors *f = mx_checkpoint_file((mx_checkpoint *)(uintptr_t)ck, i);
        sum += mx_pages_cached(f->map, f->map_size);
    }
    return sum;
}

mx_status mx_load_checkpoint(mx_checkpoint *ck, const mx_load_options *options, mx_error *error) {
    const int files = mx_checkpoint_files(ck);
    if (options->way == MX_LOAD_LAZY || !files) return MX_OK;
    struct loading l = {.options = options, .slow = (options->without & MX_WITHOUT_POPULATE) != 0};
    for (int i = 0; i < files; i++) l.total += mx_checkpoint_file(ck, i)->map_size;
    bool fits;
    mx_status status = check_memory(options, mx_checkpoint_file(ck, 0)->path, l.total, &fits, error);
    if (status || !fits) return status;

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
    bool slow = false;
    for (int i = 0; i < files && !status; i++) {
        l.file = mx_checkpoint_file(ck, i);
        status = load_file(&l, pool, error);
        l.before += l.file->map_size;
        slow |= atomic_load(&l.slow);
    }
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
