#ifndef MX_BPE_H
#define MX_BPE_H

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

/* Memory for merging long pieces, kept from piece to piece. All zeros is the start. */
typedef struct mx_bpe_scratch {
    void *nodes;
    uint64_t *heap;
    size_t node_capacity, heap_capacity;
} mx_bpe_scratch;
void mx_bpe_scratch_free(mx_bpe_scratch *s);

/* Merges the bytes of one piece by rank, leftmost first on ties, and appends the ids. O(n log n). */
mx_status mx_bpe(const mx_vocabulary *v, const char *piece, size_t size, mx_bpe_scratch *scratch, mx_ids *out,
                 mx_error *error);

#endif
