#ifndef MX_VOCABULARY_PRIVATE_H
#define MX_VOCABULARY_PRIVATE_H

#include <pthread.h>

#include "grammar/grammar_private.h"

/* The tokens as a tree of their bytes. The children of a node lie side by side, in the order of their bytes; behind
 * them comes what is below the first of them, and so on. Tokens are numbered by their bytes' order: what is below a
 * node is a range of them. */
typedef struct mx_trie_node {
    uint32_t child;       /* the first; none where children is 0 */
    uint32_t first, last; /* its tokens and those below it: id[first .. last) */
    uint16_t children;
    uint8_t byte; /* that leads here */
    uint8_t own;  /* tokens that end here; 255: so many or more */
} mx_trie_node;

/* Bytes in groups, so that 64 bits say which occur below a node: two by two, all of several bytes' characters as one.
 */
static inline uint64_t mx_byte_group(uint8_t byte) {
    return 1ull << (byte < 0x80 ? byte >> 1 : 0);
}

/* What may come in one state of a machine, as far as that can be said without knowing who called the machine. */
typedef struct mx_mask {
    mx_state_key key;
    uint64_t bytes; /* of memory */
    uint64_t looks; /* at nodes, to make it, beside those of `base` */
    mx_state_key base;
    uint64_t base_looks; /* 0: it was made of no other */
    int users;           /* that hold it at the moment, and the cache */
    struct mx_mask *next, *newer, *older;
    uint32_t *bits; /* [words]; NULL: `id` has them */
    uint32_t *id;   /* [ids] */
    uint32_t ids;
    /* Children of nodes where the machine may be complete, by their byte: whoever called it has a say there. */
    uint32_t *leaving;      /* [leaving_from[256]] nodes */
    uint32_t *leaving_from; /* [257], of bytes; NULL: none leave */
    uint16_t *rounds;       /* [as leaving] of a counted machine: done on the way; NULL: it does not matter */
    /* Of a counted machine without regard to its count: ids by how many rounds they take: round_from[n] .. [n + 1] take
     * n of them. `bits` are all of them. */
    uint32_t *round_from; /* [most_rounds + 2] */
    uint32_t most_rounds;
} mx_mask;

typedef struct mx_mask_cache {
    pthread_mutex_t lock;
    mx_mask **table; /* [table_size] */
    size_t table_size, masks;
    uint64_t bytes, most_bytes;
    mx_mask *newest, *oldest;
} mx_mask_cache;

struct mx_vocabulary {
    int32_t vocab;
    uint32_t words;                          /* of a mask */
    uint32_t *all;                           /* [words] every token */
    mx_trie_node *node;                      /* node 0 is the root */
    uint64_t *below;                         /* [nodes]; groups of the bytes below each node */
    uint16_t *depth;                         /* [nodes]; bytes that lead to each */
    uint16_t *deepest;                       /* [nodes]; bytes of the longest token below it or in it */
    uint32_t *short_tokens[MX_ALIKE_LEVELS]; /* [words] those of at most mx_alike_bytes[level] bytes */
    uint32_t nodes;
    uint32_t *id; /* [tokens], in the order of their bytes */
    uint32_t tokens;
    uint32_t longest;    /* bytes of a token */
    uint8_t *byte;       /* of all tokens, by id */
    uint32_t *byte_from; /* [vocab + 1] */
    mx_mask_cache cache;
    atomic_uint_fast64_t looks; /* at nodes, so far, to make masks that the cache did not have */
};

/* The bytes of a token that may be allowed; *size 0: it may not. */
const uint8_t *mx_vocabulary_bytes(const mx_vocabulary *v, int32_t token, size_t *size);
/* The tokens that end in this node: id[first .. end). */
static inline uint32_t mx_trie_own_end(const mx_vocabulary *v, const mx_trie_node *n) {
    if (n->own < 255) return n->first + n->own;
    return n->children ? v->node[n->child].first : n->last;
}

/* A mask that the cache has, held for the caller until mx_mask_release; NULL: it has none. */
mx_mask *mx_mask_find(mx_mask_cache *c, mx_state_key key);
/* Gives the cache a new one, of which it takes its own hold: the one that is held for the caller is returned, which is
 * another where the cache had one by now. */
mx_mask *mx_mask_insert(mx_mask_cache *c, mx_mask *m);
void mx_mask_release(mx_mask_cache *c, mx_mask *m);
bool mx_mask_cache_create(mx_mask_cache *c, uint64_t most_bytes);
void mx_mask_cache_free(mx_mask_cache *c);
void mx_mask_free(mx_mask *m);

#endif
