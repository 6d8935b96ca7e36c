/* Makes and writes the tensors of an output, with all threads. A piece is what one thread makes in its buffer and then
 * writes to its place, so that nobody waits for anybody; pieces are handed out in the order of the files. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "convert/output.h"

enum { PIECE = 4 << 20, PILE = 256 << 20 };

typedef struct piece {
    int made;
    int64_t first, count;
} piece;

typedef struct pump {
    const mx_output *o;
    const mx_made *made;
    const mx_convert_options *options;
    piece *piece;
    int64_t pieces;
    mx_arena memory; /* for each thread: a piece, and what it is made from */
    uint64_t piece_bytes, scratch_bytes;
    bool *possible; /* not NULL: only whether it can be made; nothing is written */
    const mx_checkpoint *from;
    atomic_ullong done, forgotten; /* bytes; of them, done when memory was last given back */
    uint64_t total;
    atomic_int failed;  /* 1: somebody writes `problem` */
    atomic_int problem; /* errno; 0: see `wrong` */
    const char *wrong;  /* what is wrong with made[at] */
    int at, source;     /* its from[source] */
} pump;

static int64_t slices_of_piece(const mx_made *m) {
    if (m->stride != m->slice_bytes || m->slice_bytes >= PIECE) return 1;
    return m->slice_bytes ? (int64_t)(PIECE / m->slice_bytes) : 1;
}

static mx_status cut(pump *p, int count) {
    for (int pass = 0; pass < 2; pass++) {
        p->pieces = 0;
        for (int i = 0; i < count; i++) {
            const mx_made *m = &p->made[i];
            const int64_t per = slices_of_piece(m);
            if (!m->slice_bytes || !m->make) continue;
            for (int64_t at = 0; at < m->slices; at += per, p->pieces++)
                if (pass) p->piece[p->pieces] = (piece){i, at, m->slices - at < per ? m->slices - at : per};
            const uint64_t made = (uint64_t)per * m->slice_bytes, from = (uint64_t)per * m->scratch;
            if (made > p->piece_bytes) p->piece_bytes = made;
            if (from > p->scratch_bytes) p->scratch_bytes = from;
            if (!pass) p->total += (uint64_t)m->slices * m->slice_bytes;
        }
        if (!pass) p->piece = malloc((size_t)(p->pieces + 1) * sizeof *p->piece);
        if (!p->piece) return mx_fail(p->o->error, MX_NO_MEMORY, "%s: no memory for its description", p->o->path);
    }
    p->piece_bytes = (p->piece_bytes + 63) / 64 * 64;
    p->scratch_bytes = (p->scratch_bytes + 63) / 64 * 64;
    const uint64_t each = p->piece_bytes + p->scratch_bytes;
    return mx_arena_create((uint64_t)mx_pool_threads(p->options->pool) * each + 64, &p->memory, p->o->error);
}

static void fail(pump *p, int made, int source, int problem, const char *wrong) {
    if (atomic_exchange(&p->failed, 1)) return;
    p->at = made;
    p->source = source;
    p->wrong = wrong;
    atomic_store(&p->problem, problem);
}

bool mx_output_write(const mx_output *o, int file, const void *from, uint64_t size, uint64_t at) {
    const uint64_t begin = at, length = size;
    const uint8_t *data = from;
    const int fd = o->file[file].fd;
    while (size) {
        const ssize_t n = pwrite(fd, data, size, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (!n) errno = EIO;
            return false;
        }
        data += n;
        size -= (uint64_t)n;
        at += (uint64_t)n;
    }
    /* so that the last sync is short */
    if (length >= PIECE / 4) sync_file_range(fd, (off_t)begin, (off_t)length, SYNC_FILE_RANGE_WRITE);
    return true;
}

static void do_pieces(void *arg, int64_t begin, int64_t end, int thread) {
    pump *p = arg;
    uint8_t *out = (uint8_t *)p->memory.base + (uint64_t)thread * (p->piece_bytes + p->scratch_bytes);
    for (int64_t i = begin; i < end; i++) {
        const piece *q = &p->piece[i];
        const mx_made *m = &p->made[q->made];
        if (atomic_load(&p->failed) || (p->options->stop && *p->options->stop)) return;
        int source = 0;
        const char *wrong = m->make(m, q->first, q->count, out, out + p->piece_bytes, &source);
        const uint64_t bytes = (uint64_t)q->count * m->slice_bytes;
        if (p->possible) {
            if (wrong) __atomic_store_n(&p->possible[q->made], false, __ATOMIC_RELAXED);
            continue;
        }
        if (wrong)
            fail(p, q->made, source, 0, wrong);
        else if (!mx_output_write(p->o, m->file, out, bytes, m->at + (uint64_t)q->first * m->stride))
            fail(p, q->made, source, errno, NULL);
        const uint64_t done = atomic_fetch_add(&p->done, bytes) + bytes;
        unsigned long long before = atomic_load(&p->forgotten);
        if (p->from && done > before + PILE && atomic_compare_exchange_strong(&p->forgotten, &before, done))
            mx_checkpoint_forget(p->from);
        if (thread == 0 && p->options->progress) p->options->progress(p->options->user, done, p->total);
    }
}

static mx_status outcome(const pump *p) {
    const mx_output *o = p->o;
    if (p->failed) {
        const mx_made *m = &p->made[p->at];
        if (p->problem)
            return mx_fail(o->error, MX_IO, "%s%s%s: cannot be written: %s", o->grows, o->folder ? "/" : "",
                           o->file[m->file].name, strerror(p->problem));
        return mx_fail(o->error, MX_UNSUPPORTED, "%s: %s: %s", m->from[p->source]->file, m->from[p->source]->name,
                       p->wrong);
    }
    if (p->options->stop && *p->options->stop) return mx_fail(o->error, MX_CANCELLED, "interrupted");
    return MX_OK;
}

static mx_status work(mx_output *o, const mx_made *made, int count, const mx_checkpoint *from,
                      const mx_convert_options *options, bool *possible) {
    pump p = {.o = o, .made = made, .from = from, .options = options, .possible = possible};
    mx_status status = cut(&p, count);
    if (!status) {
        mx_parallel_for(options->pool, p.pieces, 1, do_pieces, &p);
        status = outcome(&p);
    }
    free(p.piece);
    mx_arena_destroy(&p.memory);
    return status;
}

mx_status mx_output_try(mx_output *o, const mx_made *made, int count, const mx_convert_options *options,
                        bool *possible) {
    for (int i = 0; i < count; i++) possible[i] = true;
    return work(o, made, count, NULL, options, possible);
}

mx_status mx_output_fill(mx_output *o, const mx_checkpoint *from, const mx_convert_options *options) {
    return work(o, o->made, o->mades, from, options, NULL);
}
