#ifndef MX_MASK_PRIVATE_H
#define MX_MASK_PRIVATE_H

#include "grammar/matcher_private.h"

/* What the tokens that may come in a place depend on beside its state: how many rounds of a counted machine are left
 * and wanted, as far as a token can tell (at most the longest token's bytes + 1). */
typedef struct mx_rounds {
    uint32_t left, wanted;
} mx_rounds;
mx_rounds mx_rounds_of(const mx_grammar *g, const mx_vocabulary *v, mx_place p);

/* The mask of a state, made if the cache has none; held for the caller (mx_mask_release). NULL: no memory. `own`, where
 * the machine is simple and counted, is that of these rounds (its bits alone matter), else NULL: that of the state
 * serves. */
mx_mask *mx_mask_of(const mx_grammar *g, mx_vocabulary *v, uint32_t state, mx_rounds rounds, mx_mask **own);

/* Walks the tree from a node on: `take` is told of each node that can be reached by bytes that the grammar takes, and
 * of the places there. `level`: [longest token + 1], kept from walk to walk. */
typedef struct mx_walk {
    const mx_vocabulary *v;
    mx_stack *stack;
    mx_places *level;
    void (*take)(void *user, const mx_trie_node *n, const mx_places *places);
    void *user;
} mx_walk;
void mx_walk_below(const mx_walk *w, const mx_trie_node *node, const mx_places *in, uint32_t depth);

#endif
