#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "grammar/matcher_private.h"

/* The plain way: every token that the tree has below `node`, byte by byte. */
static void walk(mx_matcher *m, const mx_trie_node *node, const mx_places *in, uint32_t *bits) {
    const mx_vocabulary *v = m->v;
    mx_places out = {0};
    for (uint32_t i = 0; i < node->children; i++) {
        const mx_trie_node *n = &v->node[node->child + i];
        const size_t frames = m->stack.frames, callers = m->stack.callers;
        if (mx_stack_step(&m->stack, in, n->byte, &out)) {
            for (uint32_t k = n->first; k < mx_trie_own_end(v, n); k++) bits[v->id[k] / 32] |= 1u << v->id[k] % 32;
            if (n->children) walk(m, n, &out, bits);
        }
        m->stack.frames = frames;
        m->stack.callers = callers;
    }
    free(out.place);
}

void mx_matcher_mask(mx_matcher *m, uint32_t *bits) {
    memset(bits, 0, m->v->words * sizeof *bits);
    const mx_places now = mx_matcher_now(m);
    walk(m, &m->v->node[0], &now, bits);
}

void mx_grammar_prepare(mx_grammar *g, mx_vocabulary *v, double seconds) {
    (void)g;
    (void)v;
    (void)seconds;
}
