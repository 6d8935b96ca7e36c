#include "tokenizer/bpe.h"

#include <stdlib.h>

/* Both ways below do the same: as long as some neighbours have a merge, take the one of lowest rank, the leftmost
 * of these, and put its result in their place. */

#define SHORT_PIECE 64
#define NO_RANK     UINT32_MAX

static inline uint32_t lookup(const mx_vocabulary *v, uint32_t left, uint32_t right, uint32_t *result) {
    const mx_merge_slot *m = mx_vocabulary_merge(v, left, right);
    if (!m) return NO_RANK;
    *result = m->result;
    return m->rank;
}

/* Quadratic, but in a few cache lines. */
static bool merge_short(const mx_vocabulary *v, const char *piece, size_t size, mx_ids *out) {
    uint32_t id[SHORT_PIECE], rank[SHORT_PIECE], result[SHORT_PIECE] = {0};
    size_t n = size;
    for (size_t i = 0; i < n; i++) id[i] = v->header->byte_id[(unsigned char)piece[i]];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = lookup(v, id[i], id[i + 1], &result[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == NO_RANK) break;
        id[best] = result[best];
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof *id);
        if (best + 1 < n) {
            memmove(rank + best + 1, rank + best + 2, (n - best - 2) * sizeof *rank);
            memmove(result + best + 1, result + best + 2, (n - best - 2) * sizeof *result);
            rank[best] = lookup(v, id[best], id[best + 1], &result[best]);
        }
        if (best > 0) rank[best - 1] = lookup(v, id[best - 1], id[best], &result[best - 1]);
    }
    for (size_t i = 0; i < n; i++)
        if (!mx_ids_add(out, (int32_t)id[i])) return false;
    return true;
}

/* A token of a long piece; nodes stand at the position of their first byte. */
typedef struct node {
    uint32_t previous, next; /* positions; END at either side */
    uint32_t id;             /* MX_NO_ID: swallowed by the one before */
    uint32_t rank, result;   /* of the merge with `next` */
} node;

#define END UINT32_MAX

static inline void sift_down(uint64_t *heap, size_t count, size_t i) {
    uint64_t key = heap[i];
    for (size_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[i] = heap[child];
    }
    heap[i] = key;
}

static inline void heap_push(uint64_t *heap, size_t *count, uint64_t key) {
    size_t i = (*count)++;
    for (; i > 0 && heap[(i - 1) / 2] > key; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

static bool reserve(mx_bpe_scratch *s, size_t size) {
    if (s->node_capacity >= size) return true;
    /* each merge pops one key and pushes at most two: the heap never holds more than 2 keys a byte */
    node *nodes = malloc(size * sizeof *nodes);
    uint64_t *heap = malloc(2 * size * sizeof *heap);
    if (!nodes || !heap) {
        free(nodes);
        free(heap);
        return false;
    }
    mx_bpe_scratch_free(s);
    *s = (mx_bpe_scratch){nodes, heap, size, 2 * size};
    return true;
}

void mx_bpe_scratch_free(mx_bpe_scratch *s) {
    free(s->nodes);
    free(s->heap);
    *s = (mx_bpe_scratch){0};
}

/* Looks up the merge of node i with its next and queues it: keys are rank, then position. */
static inline void queue_pair(const mx_vocabulary *v, node *nodes, uint32_t i, uint64_t *heap, size_t *count) {
    nodes[i].rank = NO_RANK;
    if (nodes[i].next == END) return;
    nodes[i].rank = lookup(v, nodes[i].id, nodes[nodes[i].next].id, &nodes[i].result);
    if (nodes[i].rank != NO_RANK) heap_push(heap, count, (uint64_t)nodes[i].rank << 32 | i);
}

static bool merge_long(const mx_vocabulary *v, const char *piece, size_t size, mx_bpe_scratch *scratch, mx_ids *out) {
    if (!reserve(scratch, size)) return false;
    node *nodes = scratch->nodes;
    uint64_t *heap = scratch->heap;
    size_t count = 0;
    uint32_t n = (uint32_t)size;
    for (uint32_t i = 0; i < n; i++) {
        nodes[i].previous = i ? i - 1 : END;
        nodes[i].next = i + 1 < n ? i + 1 : END;
        nodes[i].id = v->header->byte_id[(unsigned char)piece[i]];
    }
    for (uint32_t i = 0; i < n; i++) {
        nodes[i].rank = NO_RANK;
        if (i + 1 < n) nodes[i].rank = lookup(v, nodes[i].id, nodes[i + 1].id, &nodes[i].result);
        if (nodes[i].rank != NO_RANK) heap[count++] = (uint64_t)nodes[i].rank << 32 | i;
    }
    for (size_t i = count / 2; i-- > 0;) sift_down(heap, count, i);
    while (count) {
        uint64_t key = heap[0];
        heap[0] = heap[--count];
        if (count) sift_down(heap, count, 0);
        uint32_t i = (uint32_t)key;
        /* a key is stale when its node is gone or has another neighbour since */
        if (nodes[i].id == MX_NO_ID || nodes[i].rank != key >> 32) continue;
        uint32_t gone = nodes[i].next, after = nodes[gone].next;
        nodes[i].id = nodes[i].result;
        nodes[i].next = after;
        nodes[gone].id = MX_NO_ID;
        if (after != END) nodes[after].previous = i;
        queue_pair(v, nodes, i, heap, &count);
        if (nodes[i].previous != END) queue_pair(v, nodes, nodes[i].previous, heap, &count);
    }
    for (uint32_t i = 0; i != END; i = nodes[i].next)
        if (!mx_ids_add(out, (int32_t)nodes[i].id)) return false;
    return true;
}

mx_status mx_bpe(const mx_vocabulary *v, const char *piece, size_t size, mx_bpe_scratch *scratch, mx_ids *out,
                 mx_error *error) {
    if (size >= UINT32_MAX)
        return mx_fail(error, MX_UNSUPPORTED, "a run of %zu bytes without a break cannot be tokenized; at most 4 GB",
                       size);
    bool ok = size <= SHORT_PIECE ? merge_short(v, piece, size, out) : merge_long(v, piece, size, scratch, out);
    return ok ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory to tokenize a run of %zu bytes", size);
}
