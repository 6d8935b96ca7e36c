/* From an expression's tree to its automaton. */
#include "grammar/regular_private.h"

typedef struct builder {
    mx_pattern *pattern;
    mx_nfa *nfa;
    int serial; /* of the nfa, from 1 */
    int *looks; /* that were built, in all of them */
    mx_error *error;
} builder;

/* Nodes that match the tree and then go on at `exit`; recursion as deep as the tree, which is bounded. */
static mx_status build(builder *b, mx_tree *t, int exit, int *entry);

/* From the last child to the first: each is built with what follows it. */
static mx_status build_sequence(builder *b, mx_tree *t, int exit, int *entry) {
    mx_tree *reversed = NULL;
    for (mx_tree *c = t->child, *next; c; c = next) next = c->next, c->next = reversed, reversed = c;
    mx_status status = MX_OK;
    *entry = exit;
    mx_tree *again = NULL;
    for (mx_tree *c = reversed, *next; c; c = next) {
        if (!status) status = build(b, c, *entry, entry);
        next = c->next, c->next = again, again = c;
    }
    t->child = again;
    return status;
}

static mx_status build_choice(builder *b, const mx_tree *t, int exit, int *entry) {
    int first = -1;
    mx_status status = MX_OK;
    for (mx_tree *c = t->child; !status && c; c = c->next) {
        int one;
        status = build(b, c, exit, &one);
        if (status) break;
        if (first < 0)
            first = one;
        else
            status = mx_nfa_add(b->nfa, MX_NODE_SPLIT, first, one, 0, &first, b->error);
    }
    *entry = first;
    return status;
}

static mx_status build_repeat(builder *b, const mx_tree *t, int exit, int *entry) {
    mx_status status = MX_OK;
    int node = exit, copy;
    if (t->most < 0) {
        int loop = 0;
        status = mx_nfa_add(b->nfa, MX_NODE_SPLIT, -1, exit, 0, &loop, b->error);
        if (!status) status = build(b, t->child, loop, &copy);
        if (!status) b->nfa->nodes[loop].x = copy, node = loop;
    }
    for (int64_t i = t->least; !status && i < t->most; i++) {
        status = build(b, t->child, node, &copy);
        if (!status && copy == node) break; /* nothing, however often */
        if (!status) status = mx_nfa_add(b->nfa, MX_NODE_SPLIT, copy, exit, 0, &node, b->error);
    }
    for (int64_t i = 0; !status && i < t->least; i++) {
        status = build(b, t->child, node, &copy);
        if (!status && copy == node) break;
        node = copy;
    }
    *entry = node;
    return status;
}

/* The language of texts that begin with a match of the tree, behind `before`. */
static mx_status ahead(builder *b, mx_tree *tree, mx_before before, mx_regular **out) {
    mx_nfa nfa;
    mx_nfa_init(&nfa);
    nfa.steps = b->nfa->steps;
    builder inner = {b->pattern, &nfa, ++*b->looks + 1, b->looks, b->error};
    int entry;
    mx_status status = MX_OK;
    if (*b->looks > MX_PATTERN_LOOKS)
        status =
            mx_fail(b->error, MX_UNSUPPORTED,
                    "a regular expression has more than %d lookaheads (one inside another counts up to three times)",
                    MX_PATTERN_LOOKS);
    if (!status) status = mx_nfa_add_tail(&nfa, &entry, b->error);
    if (!status) status = build(&inner, tree, entry, &entry);
    if (!status) status = mx_nfa_minimal(&nfa, entry, before, out, b->error);
    b->nfa->steps = nfa.steps;
    mx_nfa_free(&nfa);
    return status;
}

static mx_status build_look(builder *b, mx_tree *t, int exit, int *entry) {
    mx_status status = MX_OK;
    if (t->look_of != b->serial) {
        mx_look look = {.negative = t->negative};
        for (int before = 0; !status && before < MX_BEFORES; before++) {
            if (before && !t->context)
                look.of[before] = mx_regular_keep(look.of[0]);
            else
                status = ahead(b, t->child, (mx_before)before, &look.of[before]);
        }
        if (!status) status = mx_nfa_add_look(b->nfa, &look, &t->look, b->error);
        if (!status)
            t->look_of = b->serial;
        else
            for (int k = 0; k < MX_BEFORES; k++) mx_regular_free(look.of[k]);
        if (status) return status;
    }
    return mx_nfa_add(b->nfa, MX_NODE_LOOK, exit, t->look, 0, entry, b->error);
}

static mx_status build(builder *b, mx_tree *t, int exit, int *entry) {
    switch (t->kind) {
    case MX_TREE_EMPTY:
        return *entry = exit, MX_OK;
    case MX_TREE_CHARACTERS:
        return mx_nfa_add_machine(b->nfa, b->pattern->sets[t->set], exit, entry, b->error);
    case MX_TREE_SEQUENCE:
        return build_sequence(b, t, exit, entry);
    case MX_TREE_CHOICE:
        return build_choice(b, t, exit, entry);
    case MX_TREE_REPEAT:
        return build_repeat(b, t, exit, entry);
    case MX_TREE_BEGIN:
        return mx_nfa_add(b->nfa, MX_NODE_BEGIN, exit, 0, 0, entry, b->error);
    case MX_TREE_END:
        return mx_nfa_add(b->nfa, MX_NODE_END, exit, 0, 0, entry, b->error);
    case MX_TREE_WORD:
        return mx_nfa_add(b->nfa, MX_NODE_WORD, exit, 0, 0, entry, b->error);
    case MX_TREE_NOT_WORD:
        return mx_nfa_add(b->nfa, MX_NODE_NOT_WORD, exit, 0, 0, entry, b->error);
    case MX_TREE_LOOK:
        return build_look(b, t, exit, entry);
    }
    return mx_fail(b->error, MX_UNSUPPORTED, "an unknown part of a regular expression");
}

/* Can it match at the beginning of the text alone? Then nothing needs to be tried elsewhere. */
static bool begins_text(const mx_tree *t) {
    const mx_tree *c = t->child;
    switch (t->kind) {
    case MX_TREE_BEGIN:
        return true;
    case MX_TREE_SEQUENCE:
        return c && begins_text(c);
    case MX_TREE_CHOICE:
        while (c && begins_text(c)) c = c->next;
        return !c;
    case MX_TREE_REPEAT:
        return t->least > 0 && begins_text(c);
    default:
        return false;
    }
}

static mx_status build_all(builder *b, bool whole, mx_regular **out) {
    const mx_regular *any;
    int entry = 0;
    mx_status status = whole ? mx_nfa_add(b->nfa, MX_NODE_ACCEPT, 0, 0, 0, &entry, b->error)
                             : mx_nfa_add_tail(b->nfa, &entry, b->error);
    if (!status) status = build(b, b->pattern->root, entry, &entry);
    if (!status && !whole && !begins_text(b->pattern->root)) {
        status = mx_regular_any(&any, b->error);
        if (!status) status = mx_nfa_add_machine(b->nfa, any, entry, &entry, b->error);
    }
    return status ? status : mx_nfa_minimal(b->nfa, entry, MX_BEFORE_START, out, b->error);
}

mx_status mx_regular_parse(const char *pattern, size_t size, bool whole, mx_regular **out, mx_error *error) {
    mx_pattern parsed;
    mx_nfa nfa;
    mx_nfa_init(&nfa);
    int looks = 0;
    builder b = {&parsed, &nfa, 1, &looks, error};
    mx_status status = mx_pattern_parse(pattern, size, &parsed, error);
    if (!status) status = build_all(&b, whole, out);
    mx_nfa_free(&nfa);
    mx_pattern_free(&parsed);
    return status;
}
