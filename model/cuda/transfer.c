/* The way of the weights to the device, in pieces of whole rows: readers copy a piece from the mapped file into pinned
 * memory (this is where the disk is read), from there it travels in one stream, and in another it is laid out. While a
 * piece is laid out the next ones travel, and the ones after them are read. Made-up numbers begin on the device. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "model/cuda/loading.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

enum {
    PIECE = 9 << 20,       /* one expert's gate and up of gpt-oss, two experts' down */
    MADE_PIECE = 32 << 20, /* enough blocks of noise for all multiprocessors */
    IN_FLIGHT = 3,         /* pieces that the device has to do */
    MOST_READERS = 64,
    FEW_READERS = 8, /* what a file in memory needs to be faster than the bus */
    MOST_SLOTS = MOST_READERS + IN_FLIGHT + 1,
    ROWS_STEP = 64,         /* pieces begin at multiples of it where they are long enough */
    POPULATE = 256 << 10,   /* bytes that are worth a request of their own */
    FORGET = 1 << 30,       /* bytes after which the mappings are given back */
    WORTH_TIMING = 1 << 20, /* bytes: shorter copies say nothing about the bus */
    AREA = 256              /* alignment of scales behind data in a piece */
};

/* Rows first .. first + count - 1 of `experts` experts; of several: all rows. */
typedef struct piece {
    int32_t item, expert, experts;
    int64_t first, count;
} piece;

/* How a piece lies in a buffer: rows of all its experts without gaps, then their scales. */
typedef struct image {
    uint64_t row, scale_row;            /* bytes */
    uint64_t data, data_bytes;          /* where rows begin */
    uint64_t area, scales, scale_bytes; /* what is behind them; where scales begin in it */
    uint64_t bytes;                     /* of all of it */
} image;

/* A buffer on both sides. */
typedef struct slot {
    uint8_t *pinned, *staged;
    mx_gpu_event *begin, *copied, *laid;
    uint64_t bytes; /* on their way */
    int64_t filled; /* readers: the piece that is in `pinned`, + 1 */
} slot;

typedef struct transfer {
    const mx_cuda_item *item;
    piece *piece;
    int64_t pieces;
    slot slot[MOST_SLOTS];
    int slots;
    uint64_t room;            /* of a slot, bytes */
    uint8_t *pinned, *staged; /* all slots' */
    mx_gpu_stream *copies, *lays;
    const mx_checkpoint *checkpoint;
    const mx_cuda_load_options *options;
    uint64_t done, total; /* bytes of the files, or made */
    uint64_t timed;       /* bytes whose copies took */
    double timed_ms;
    pthread_t reader[MOST_READERS];
    int readers;
    /* Readers and the calling thread: */
    pthread_mutex_t lock;
    pthread_cond_t change;
    int64_t next, retired; /* the piece that nobody has begun; pieces whose slot is free again, in order */
    uint64_t read, forgotten;
    bool ended;
    mx_status status; /* of the readers */
    mx_error error;
} transfer;

/* ---- pieces -------------------------------------------------------------------------------------------------------
 */

static uint64_t row_bytes(const mx_cuda_item *item) {
    return (uint64_t)mx_columns_bytes(item->from, item->cols);
}

static uint64_t scale_row_bytes(const mx_cuda_item *item) {
    return item->from == MX_MXFP4 ? (uint64_t)item->cols / 32 : 0;
}

/* Of the file. */
static uint64_t source_bytes(const mx_cuda_item *item, int64_t rows) {
    const mx_format format = item->made ? item->from : item->file;
    return (uint64_t)rows * ((uint64_t)mx_columns_bytes(format, item->cols) + scale_row_bytes(item));
}

static uint64_t round_up(uint64_t n, uint64_t step) {
    return (n + step - 1) / step * step;
}

/* Made-up numbers begin where their block of noise does. */
static image image_of(const mx_cuda_item *item, const piece *p) {
    image m = {.row = row_bytes(item), .scale_row = scale_row_bytes(item)};
    const uint64_t before = (uint64_t)(p->expert * item->rows + p->first), rows = (uint64_t)(p->experts * p->count);
    m.data = item->made ? before * m.row % MX_SYNTHETIC_BLOCK : 0;
    m.data_bytes = rows * m.row;
    m.area = round_up(m.data + m.data_bytes, AREA);
    m.scales = m.area + (item->made ? before * m.scale_row % MX_SYNTHETIC_BLOCK : 0);
    m.scale_bytes = rows * m.scale_row;
    m.bytes = round_up(m.scales + m.scale_bytes, AREA);
    return m;
}

/* Cuts an item; `out` NULL: only counts. */
static int64_t cut(const mx_cuda_item *item, int index, uint64_t most, piece *out) {
    const uint64_t row = row_bytes(item) + scale_row_bytes(item), expert = row * (uint64_t)item->rows;
    int64_t n = 0;
    if (expert <= most) {
        const int64_t each = (int64_t)(most / expert);
        for (int64_t e = 0; e < item->experts; e += each, n++)
            if (out)
                out[n] = (piece){index, (int32_t)e, (int32_t)(item->experts - e < each ? item->experts - e : each), 0,
                                 item->rows};
        return n;
    }
    int64_t rows = most > row ? (int64_t)(most / row) : 1;
    if (rows > ROWS_STEP) rows = rows / ROWS_STEP * ROWS_STEP;
    for (int64_t e = 0; e < item->experts; e++)
        for (int64_t at = 0; at < item->rows; at += rows, n++)
            if (out) out[n] = (piece){index, (int32_t)e, 1, at, item->rows - at < rows ? item->rows - at : rows};
    return n;
}

static mx_status cut_all(transfer *t, int items, uint64_t most, mx_error *error) {
    for (int i = 0; i < items; i++) t->pieces += cut(&t->item[i], i, most, NULL);
    t->piece = malloc(((size_t)t->pieces + 1) * sizeof *t->piece);
    if (!t->piece) return mx_fail(error, MX_NO_MEMORY, "no memory for the list of %lld pieces", (long long)t->pieces);
    int64_t n = 0;
    for (int i = 0; i < items; i++) {
        n += cut(&t->item[i], i, most, t->piece + n);
        t->total += source_bytes(&t->item[i], t->item[i].experts * t->item[i].rows);
    }
    for (int64_t i = 0; i < t->pieces; i++) {
        const uint64_t bytes = image_of(&t->item[t->piece[i].item], &t->piece[i]).bytes;
        if (bytes > t->room) t->room = bytes;
    }
    return MX_OK;
}

/* ---- readers ------------------------------------------------------------------------------------------------------
 */

/* One request for many pages instead of a fault for each; where it is not known the faults come. */
static void populate(const uint8_t *from, uint64_t bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)from / page * page;
    if (bytes >= POPULATE) madvise((void *)begin, (uintptr_t)from + bytes - begin, MADV_POPULATE_READ);
}

/* n numbers of F16 or F32 as BF16; the first that is none, or -1. */
static int64_t narrow(uint8_t *out, const uint8_t *from, mx_format file, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float f;
        if (file == MX_F32)
            memcpy(&f, from + 4 * i, 4);
        else
            f = mx_f16_to_f32(mx_load_u16(from + 2 * i));
        const uint16_t v = mx_f32_to_bf16(f);
        if (!(mx_bf16_to_f32(v) == f)) return i;
        memcpy(out + 2 * i, &v, 2);
    }
    return -1;
}

static mx_status refuse(const mx_cuda_item *item, int64_t expert, int64_t row, int64_t col, mx_error *error) {
    char name[MX_CUDA_ITEM_NAME], which[40] = "";
    mx_cuda_item_name(item, name);
    if (item->experts > 1) snprintf(which, sizeof which, "expert %lld, ", (long long)expert);
    return mx_fail(
        error, MX_UNSUPPORTED,
        "%s: %srow %lld, column %lld: a number of %s that is none of BF16: CUDA has kernels for BF16, Q8_0 "
        "and MXFP4, and rounds nothing: take the model in the form in which it is published, or --device cpu",
        name, which, (long long)row, (long long)col, item->file == MX_F32 ? "F32" : "F16");
}

/* A piece from the file to pinned memory. */
static mx_status read_piece(const mx_cuda_item *item, const piece *p, uint8_t *to, mx_error *error) {
    const image m = image_of(item, p);
    const uint64_t row = (uint64_t)mx_columns_bytes(item->file, item->cols), n = (uint64_t)p->count;
    for (int64_t k = 0; k < p->experts; k++) {
        const int64_t e = p->expert + k;
        const uint8_t *from = item->data + e * item->data_stride + p->first * (int64_t)row;
        uint8_t *rows = to + m.data + (uint64_t)k * n * m.row;
        populate(from, n * row);
        if (item->file == item->from) {
            memcpy(rows, from, n * row);
        } else {
            const int64_t bad = narrow(rows, from, item->file, p->count * item->cols);
            if (bad >= 0) return refuse(item, e, p->first + bad / item->cols, bad % item->cols, error);
        }
        if (m.scale_row)
            memcpy(to + m.scales + (uint64_t)k * n * m.scale_row,
                   item->scales + e * item->scale_stride + p->first * (int64_t)m.scale_row, n * m.scale_row);
    }
    return MX_OK;
}

/* With the lock held: a reader that got far enough gives the mappings back, so that a file larger than the memory
 * leaves room for others. */
static bool is_time_to_forget(transfer *t, uint64_t bytes) {
    t->read += bytes;
    if (!t->checkpoint || t->read - t->forgotten < FORGET) return false;
    t->forgotten = t->read;
    return true;
}

static void *read_pieces(void *arg) {
    transfer *t = arg;
    pthread_mutex_lock(&t->lock);
    while (!t->ended && t->next < t->pieces) {
        const int64_t i = t->next++;
        while (!t->ended && i >= t->retired + t->slots) pthread_cond_wait(&t->change, &t->lock);
        if (t->ended) break;
        pthread_mutex_unlock(&t->lock);
        const piece *p = &t->piece[i];
        const mx_cuda_item *item = &t->item[p->item];
        mx_error error;
        const mx_status status = read_piece(item, p, t->slot[i % t->slots].pinned, &error);
        pthread_mutex_lock(&t->lock);
        if (status && !t->status) {
            t->status = status;
            t->error = error;
        }
        if (status) t->ended = true;
        t->slot[i % t->slots].filled = i + 1;
        const bool forget = is_time_to_forget(t, source_bytes(item, p->experts * p->count));
        pthread_cond_broadcast(&t->change);
        if (!forget) continue;
        pthread_mutex_unlock(&t->lock);
        mx_checkpoint_forget(t->checkpoint);
        pthread_mutex_lock(&t->lock);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static mx_status start_readers(transfer *t, int wanted, mx_error *error) {
    while (t->readers < wanted && !pthread_create(&t->reader[t->readers], NULL, read_pieces, t)) t->readers++;
    return t->readers ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no thread to read the weights");
}

static void end_readers(transfer *t) {
    pthread_mutex_lock(&t->lock);
    t->ended = true;
    pthread_cond_broadcast(&t->change);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->readers; i++) pthread_join(t->reader[i], NULL);
    t->readers = 0;
}

/* ---- the device ---------------------------------------------------------------------------------------------------
 */

static mx_status make_slots(transfer *t, int readers, mx_error *error) {
    t->slots = readers + IN_FLIGHT + 1;
    const uint64_t all = (uint64_t)t->slots * t->room;
    mx_status status = mx_gpu_stream_create(&t->copies, error);
    if (!status) status = mx_gpu_stream_create(&t->lays, error);
    if (!status) status = mx_gpu_alloc((void **)&t->staged, all, "weights on their way", error);
    if (!status && readers) status = mx_gpu_alloc_host((void **)&t->pinned, all, "weights on their way", error);
    for (int i = 0; i < t->slots && !status; i++) {
        slot *s = &t->slot[i];
        s->staged = t->staged + (uint64_t)i * t->room;
        if (readers) s->pinned = t->pinned + (uint64_t)i * t->room;
        status = mx_gpu_event_create(&s->begin, error);
        if (!status) status = mx_gpu_event_create(&s->copied, error);
        if (!status) status = mx_gpu_event_create(&s->laid, error);
    }
    return status;
}

/* Waits for what is queued. */
static void free_slots(transfer *t) {
    mx_gpu_stream_destroy(t->copies);
    mx_gpu_stream_destroy(t->lays);
    for (int i = 0; i < t->slots; i++) {
        slot *s = &t->slot[i];
        mx_gpu_event_destroy(s->begin);
        mx_gpu_event_destroy(s->copied);
        mx_gpu_event_destroy(s->laid);
    }
    mx_gpu_free_host(t->pinned);
    mx_gpu_free(t->staged);
}

/* The piece's numbers into `staged`: from pinned memory, or made there. */
static mx_status queue_numbers(transfer *t, const mx_cuda_item *item, const piece *p, slot *s, mx_error *error) {
    const image m = image_of(item, p);
    s->bytes = m.bytes;
    if (item->made) {
        const uint64_t before = (uint64_t)(p->expert * item->rows + p->first), seed = t->options->seed;
        const mx_synthetic_tensor *a = item->made, *b = item->made_scales;
        mx_cuda_synthetic(s->staged, a->noise, mx_synthetic_base(a), mx_synthetic_key(a, seed),
                          before * m.row / MX_SYNTHETIC_BLOCK, m.data + m.data_bytes, t->lays);
        if (b)
            mx_cuda_synthetic(s->staged + m.area, b->noise, mx_synthetic_base(b), mx_synthetic_key(b, seed),
                              before * m.scale_row / MX_SYNTHETIC_BLOCK, m.scales - m.area + m.scale_bytes, t->lays);
        return MX_OK;
    }
    mx_status status = mx_gpu_event_record(s->begin, t->copies, error);
    if (!status) status = mx_gpu_copy(s->staged, s->pinned, m.bytes, t->copies, error);
    if (!status) status = mx_gpu_event_record(s->copied, t->copies, error);
    return status ? status : mx_gpu_event_follow(t->lays, s->copied, error);
}

static void queue_lay(const transfer *t, const mx_cuda_item *item, const piece *p, const slot *s) {
    const image m = image_of(item, p);
    for (int64_t k = 0; k < p->experts; k++) {
        const int64_t e = p->expert + k;
        const uint8_t *rows = s->staged + m.data + (uint64_t)(k * p->count) * m.row;
        uint8_t *to = item->to + e * item->to_stride;
        if (item->values) {
            mx_cuda_lay_bias((float *)(void *)to, rows, item->from, p->first, p->count, item->order, item->head_dim,
                             item->row_base, t->lays);
            continue;
        }
        mx_cuda_lay_rows(
            &(mx_cuda_lay){.from = item->from,
                           .rows = rows,
                           .row_stride = (int64_t)m.row,
                           .scales = m.scale_row ? s->staged + m.scales + (uint64_t)(k * p->count) * m.scale_row : NULL,
                           .scale_stride = (int64_t)m.scale_row,
                           .first = p->first,
                           .count = p->count,
                           .cols = item->cols,
                           .order = item->order,
                           .head_dim = item->head_dim,
                           .row_base = item->row_base,
                           .data = to,
                           .scale_data = item->to_scales ? item->to_scales + e * item->to_scale_stride : NULL},
            t->lays);
    }
}

static mx_status queue_piece(transfer *t, int64_t i, mx_error *error) {
    const piece *p = &t->piece[i];
    slot *s = &t->slot[i % t->slots];
    const mx_cuda_item *item = &t->item[p->item];
    mx_status status = queue_numbers(t, item, p, s, error);
    if (status) return status;
    queue_lay(t, item, p, s);
    status = mx_gpu_check("laying out weights", error);
    return status ? status : mx_gpu_event_record(s->laid, t->lays, error);
}

/* Waits until the piece lies in its place; its slot is free then. */
static mx_status retire(transfer *t, int64_t i, mx_error *error) {
    const piece *p = &t->piece[i];
    const slot *s = &t->slot[i % t->slots];
    const mx_cuda_item *item = &t->item[p->item];
    mx_status status = mx_gpu_event_wait(s->laid, error);
    float ms = 0;
    if (!status && !item->made && s->bytes >= WORTH_TIMING) {
        status = mx_gpu_event_ms(s->begin, s->copied, &ms, error);
        t->timed += s->bytes;
        t->timed_ms += (double)ms;
    }
    if (status) return status;
    t->done += source_bytes(item, p->experts * p->count);
    pthread_mutex_lock(&t->lock);
    t->retired = i + 1;
    pthread_cond_broadcast(&t->change);
    pthread_mutex_unlock(&t->lock);
    if (t->options->progress) t->options->progress(t->options->user, t->done, t->total);
    return MX_OK;
}

/* Waits until piece i is in pinned memory. */
static mx_status await(transfer *t, int64_t i, mx_error *error) {
    mx_status status;
    pthread_mutex_lock(&t->lock);
    while (!t->ended && t->slot[i % t->slots].filled != i + 1) pthread_cond_wait(&t->change, &t->lock);
    if ((status = t->status) && error) *error = t->error;
    pthread_mutex_unlock(&t->lock);
    return status;
}

static mx_status run(transfer *t, mx_error *error) {
    mx_status status = MX_OK;
    for (int64_t i = 0; i < t->pieces && !status; i++) {
        if (i >= IN_FLIGHT) status = retire(t, i - IN_FLIGHT, error);
        if (!status && t->readers) status = await(t, i, error);
        if (!status && t->options->stop && *t->options->stop)
            status = mx_fail(error, MX_CANCELLED, "interrupted while loading");
        if (!status) status = queue_piece(t, i, error);
    }
    for (int64_t i = t->pieces > IN_FLIGHT ? t->pieces - IN_FLIGHT : 0; i < t->pieces && !status; i++)
        status = retire(t, i, error);
    return status;
}

static int readers_of(const mx_cuda_load_options *o) {
    if (o->synthetic) return 0;
    const int cores = mx_cpu_count(), few = cores < FEW_READERS ? cores : FEW_READERS;
    const int wanted = o->readers > 0 ? o->readers : few < 2 ? 2 : few;
    return wanted < MOST_READERS ? wanted : MOST_READERS;
}

mx_status mx_cuda_transfer(const mx_cuda_item *item, int items, void *memory, uint64_t bytes, uint64_t most,
                           const mx_checkpoint *checkpoint, const mx_cuda_load_options *options, mx_cuda_loaded *loaded,
                           mx_error *error) {
    const int readers = readers_of(options);
    if (!most) most = options->synthetic ? MADE_PIECE : PIECE;
    transfer *t = calloc(1, sizeof *t);
    if (!t) return mx_fail(error, MX_NO_MEMORY, "no memory to load weights");
    t->item = item;
    t->checkpoint = checkpoint;
    t->options = options;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->change, NULL);
    mx_status status = cut_all(t, items, most, error);
    if (!status) status = make_slots(t, readers, error);
    if (!status) status = mx_gpu_fill(memory, 0, bytes, t->lays, error);
    if (!status && readers) status = start_readers(t, readers, error);
    if (!status) status = run(t, error);
    end_readers(t);
    free_slots(t);
    if (checkpoint) mx_checkpoint_forget(checkpoint);
    loaded->bytes = t->total;
    loaded->copy_rate = t->timed_ms > 0 ? (double)t->timed / (t->timed_ms / 1e3) : 0;
    pthread_cond_destroy(&t->change);
    pthread_mutex_destroy(&t->lock);
    free(t->piece);
    free(t);
    return status;
}
