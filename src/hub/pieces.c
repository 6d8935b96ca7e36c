#include "hub/pieces.h"

#include <stdlib.h>

bool mx_pieces_make(mx_pieces *p, int64_t size, int64_t each) {
    *p = (mx_pieces){0};
    if (size < 0 || each < 1 || size / each >= MX_MOST_PIECES) return false;
    const int64_t count = size / each + (size % each != 0);
    _Atomic int64_t *have = malloc((size_t)(count ? count : 1) * sizeof *have);
    if (!have) return false;
    for (int64_t i = 0; i < count; i++) atomic_init(&have[i], 0);
    *p = (mx_pieces){.size = size, .each = each, .count = count, .have = have};
    return true;
}

void mx_pieces_free(mx_pieces *p) {
    free(p->have);
    *p = (mx_pieces){0};
}

int64_t mx_pieces_prefix(const mx_pieces *p, int64_t from) {
    for (int64_t i = from / p->each; i < p->count; i++) {
        const int64_t have = mx_piece_have(p, i);
        if (have < mx_piece_length(p, i)) return i * p->each + have;
    }
    return p->size;
}

int64_t mx_pieces_sum(const mx_pieces *p) {
    int64_t sum = 0;
    for (int64_t i = 0; i < p->count; i++) sum += mx_piece_have(p, i);
    return sum;
}
