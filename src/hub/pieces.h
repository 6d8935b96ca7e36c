#ifndef MX_HUB_PIECES_H
#define MX_HUB_PIECES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Which bytes of a file are there: it is cut into pieces of one length, and of each a beginning is there. One thread
 * writes, after the bytes are in the file; others read. */
typedef struct mx_pieces {
    int64_t size;  /* of the file */
    int64_t each;  /* length of all pieces but the last */
    int64_t count; /* of pieces; 0 for an empty file */
    _Atomic int64_t *have;
} mx_pieces;

enum { MX_PIECE_BYTES = 32 << 20, MX_MOST_PIECES = 1 << 20 };

/* None of the file is there. false: no memory, or numbers that are no file's. Free with mx_pieces_free. */
bool mx_pieces_make(mx_pieces *p, int64_t size, int64_t each);
void mx_pieces_free(mx_pieces *p);

static inline int64_t mx_piece_length(const mx_pieces *p, int64_t i) {
    return i + 1 < p->count ? p->each : p->size - i * p->each;
}
static inline int64_t mx_piece_have(const mx_pieces *p, int64_t i) {
    return atomic_load_explicit(&p->have[i], memory_order_acquire);
}
static inline void mx_piece_set(mx_pieces *p, int64_t i, int64_t bytes) {
    atomic_store_explicit(&p->have[i], bytes, memory_order_release);
}
/* All bytes before the one returned are there; it is not before `from`, of which this is known. */
int64_t mx_pieces_prefix(const mx_pieces *p, int64_t from);
int64_t mx_pieces_sum(const mx_pieces *p);

#endif
