#include "grammar/grammar_plan.h"

#include <stdlib.h>
#include <string.h>

static bool true_by_itself(const mx_plan *p, const mx_expr_node *e, bool productive) {
    switch (e->kind) {
    case MX_EXPR_TEXT:
        return productive || e->count == 0;
    case MX_EXPR_REGULAR: {
        const mx_regular_view *v = &p->view[e->first];
        if (!productive) return v->states > 0 && v->accepting[0];
        for (int i = 0; i < v->states; i++)
            if (v->accepting[i]) return true;
        return false;
    }
    case MX_EXPR_SEQUENCE:
        return e->count == 0;
    case MX_EXPR_REPEAT:
        return e->least == 0;
    default:
        return false;
    }
}

/* Who needs whom: the users of each expression. */
typedef struct users {
    size_t *first; /* [exprs + 1] */
    mx_expr *user;
} users;

static uint32_t parts(const mx_grammar_builder *b, const mx_expr_node *e, const mx_expr **part) {
    switch (e->kind) {
    case MX_EXPR_SEQUENCE:
    case MX_EXPR_CHOICE:
    case MX_EXPR_REPEAT:
        *part = b->item + e->first;
        return e->count;
    case MX_EXPR_RULE:
        *part = &b->rule[e->first].body;
        return 1;
    default:
        return 0;
    }
}

static bool find_users(const mx_grammar_builder *b, users *u) {
    u->first = calloc(b->exprs + 2, sizeof *u->first);
    u->user = calloc(b->items + b->exprs, sizeof *u->user);
    if (!u->first || !u->user) return false;
    const mx_expr *part;
    for (size_t i = 1; i < b->exprs; i++)
        for (uint32_t k = 0, n = parts(b, &b->expr[i], &part); k < n; k++) u->first[part[k] + 2]++;
    for (size_t i = 1; i < b->exprs; i++) u->first[i + 1] += u->first[i];
    for (size_t i = 1; i < b->exprs; i++)
        for (uint32_t k = 0, n = parts(b, &b->expr[i], &part); k < n; k++)
            u->user[u->first[part[k] + 1]++] = (mx_expr)i;
    return true;
}

/* The least solution of: an expression has the property by itself, or because enough of its parts have it. */
static bool solve(const mx_plan *p, const users *u, bool productive, bool *out) {
    const mx_grammar_builder *b = p->b;
    uint32_t *wants = malloc(b->exprs * sizeof *wants);
    mx_expr *todo = malloc(b->exprs * sizeof *todo);
    size_t todos = 0;
    const bool ok = wants && todo;
    for (size_t i = 1; ok && i < b->exprs; i++) {
        wants[i] = b->expr[i].kind == MX_EXPR_SEQUENCE ? b->expr[i].count : 1;
        out[i] = true_by_itself(p, &b->expr[i], productive);
        if (out[i]) todo[todos++] = (mx_expr)i;
    }
    while (ok && todos > 0) {
        const mx_expr e = todo[--todos];
        for (size_t k = u->first[e]; k < u->first[e + 1]; k++) {
            const mx_expr user = u->user[k];
            if (!out[user] && --wants[user] == 0) {
                out[user] = true;
                todo[todos++] = user;
            }
        }
    }
    free(wants);
    free(todo);
    return ok;
}

static uint32_t sum(uint64_t a, uint64_t b) {
    return a + b > MX_PLAN_SIZE ? MX_PLAN_SIZE : (uint32_t)(a + b);
}

bool mx_plan_counts(const mx_plan *p, const mx_expr_node *repeat) {
    const int64_t copies = repeat->most < 0 ? repeat->least : repeat->most;
    const uint32_t size = p->size[p->b->item[repeat->first]];
    return copies > 1 && copies * (size ? size : 1) > MX_PLAN_COPIES;
}

bool mx_plan_loops(const mx_plan *p, const mx_expr_node *e) {
    if (e->kind == MX_EXPR_REGULAR) return !p->finite[e->first];
    if (e->kind != MX_EXPR_REPEAT || e->most >= 0 || mx_plan_counts(p, e)) return false;
    const mx_expr item = p->b->item[e->first];
    return p->pure[item] && p->size[item] <= MX_PLAN_LOOP;
}

/* Sizes, which expressions call nothing, and how deep they are; parts come before what they are parts of. */
static void measure(mx_plan *p) {
    const mx_grammar_builder *b = p->b;
    for (size_t i = 1; i < b->exprs; i++) {
        const mx_expr_node *e = &b->expr[i];
        const mx_expr *part = NULL;
        uint32_t n = parts(b, e, &part), size = e->kind == MX_EXPR_CHOICE ? n : 1, depth = 0;
        bool pure = true;
        if (e->kind == MX_EXPR_RULE && !p->plain[e->first]) pure = false, n = 0;
        for (uint32_t k = 0; k < n; k++) {
            size = sum(size, p->size[part[k]]);
            pure = pure && p->pure[part[k]];
            if (p->depth[part[k]] >= depth) depth = p->depth[part[k]] + 1;
        }
        if (e->kind == MX_EXPR_TEXT) size = e->count;
        if (e->kind == MX_EXPR_REGULAR) size = 2 * (uint32_t)p->view[e->first].states;
        if (e->kind == MX_EXPR_REGULAR) pure = p->finite[e->first];
        if (e->kind == MX_EXPR_REPEAT && (e->most < 0 || mx_plan_counts(p, e))) pure = false;
        if (e->kind == MX_EXPR_REPEAT && !mx_plan_counts(p, e))
            size = (uint32_t)(1 + (size - 1) * ((e->most < 0 ? e->least : e->most) + (e->most < 0)));
        p->size[i] = sum(size, 0);
        p->pure[i] = pure && depth < MX_PLAN_DEPTH;
        p->depth[i] = depth;
    }
}

static void count_uses(mx_plan *p) {
    const mx_grammar_builder *b = p->b;
    const mx_expr *part;
    for (size_t i = 1; i < b->exprs; i++)
        for (uint32_t k = 0, n = parts(b, &b->expr[i], &part); k < n; k++) p->uses[part[k]]++;
}

/* The first regular language that is the same as each, by a table of their hashes. */
static bool find_same(mx_plan *p) {
    const size_t n = p->b->regulars;
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    uint32_t *table = calloc(size, sizeof *table);
    if (!table) return false;
    for (size_t i = 0; i < n; i++) {
        const uint64_t hash = mx_regular_hash(p->b->regular[i]);
        size_t at = hash & (size - 1);
        for (; table[at]; at = (at + 1) & (size - 1)) {
            const uint32_t other = table[at] - 1;
            if (mx_regular_hash(p->b->regular[other]) == hash && p->view[other].states == p->view[i].states) break;
        }
        if (!table[at]) table[at] = (uint32_t)i + 1;
        p->same_regular[i] = table[at] - 1;
    }
    free(table);
    return true;
}

/* Has the language no loop? States are taken away as long as there is one that nothing leads to. */
static bool is_finite(const mx_regular_view *v, bool *out) {
    int32_t *from = calloc((size_t)v->states + 1, sizeof *from), *todo = malloc(((size_t)v->states + 1) * sizeof *todo);
    int todos = 0, taken = 0;
    const size_t cells = (size_t)v->states * (size_t)v->classes;
    const bool ok = from && todo;
    for (size_t i = 0; ok && i < cells; i++)
        if (v->next[i] >= 0) from[v->next[i]]++;
    for (int i = 0; ok && i < v->states; i++)
        if (!from[i]) todo[todos++] = i;
    for (; ok && todos > 0; taken++) {
        const int32_t *next = v->next + (size_t)todo[--todos] * (size_t)v->classes;
        for (int k = 0; k < v->classes; k++)
            if (next[k] >= 0 && --from[next[k]] == 0) todo[todos++] = next[k];
    }
    *out = taken == v->states;
    free(from);
    free(todo);
    return ok;
}

mx_status mx_grammar_plan_make(const mx_grammar_builder *b, mx_plan *p, mx_error *error) {
    const size_t n = b->exprs, regulars = b->regulars ? b->regulars : 1;
    *p = (mx_plan){.b = b};
    p->view = calloc(regulars, sizeof *p->view);
    p->same_regular = calloc(regulars, sizeof *p->same_regular);
    p->finite = calloc(regulars, sizeof *p->finite);
    p->nullable = calloc(n, sizeof *p->nullable);
    p->productive = calloc(n, sizeof *p->productive);
    p->pure = calloc(n, sizeof *p->pure);
    p->size = calloc(n, sizeof *p->size);
    p->uses = calloc(n, sizeof *p->uses);
    p->depth = calloc(n, sizeof *p->depth);
    p->spelled = calloc(b->rules, sizeof *p->spelled);
    p->plain = calloc(b->rules, sizeof *p->plain);
    users u = {0};
    bool ok = p->view && p->finite && p->same_regular && p->nullable && p->productive && p->pure && p->size &&
              p->uses && p->depth && p->spelled && p->plain;
    for (size_t i = 0; ok && i < b->regulars; i++) {
        p->view[i] = mx_regular_look(b->regular[i]);
        ok = is_finite(&p->view[i], &p->finite[i]);
    }
    ok = ok && find_users(b, &u) && solve(p, &u, true, p->productive) && solve(p, &u, false, p->nullable) &&
         find_same(p);
    free(u.first);
    free(u.user);
    if (!ok) {
        mx_grammar_plan_free(p);
        return mx_fail(error, MX_NO_MEMORY, "no memory to compile a grammar");
    }
    /* Rules of plain bytes within such rules, a few levels deep; what lies deeper is called. */
    for (int level = 0; level < 5; level++) {
        measure(p);
        for (size_t r = 1; r < b->rules; r++) p->plain[r] = p->pure[b->rule[r].body];
    }
    measure(p);
    for (size_t r = 1; r < b->rules; r++) p->spelled[r] = p->plain[r] && p->size[b->rule[r].body] <= MX_PLAN_SMALL;
    count_uses(p);
    return MX_OK;
}

void mx_grammar_plan_free(mx_plan *p) {
    free(p->view);
    free(p->same_regular);
    free(p->nullable);
    free(p->finite);
    free(p->productive);
    free(p->pure);
    free(p->size);
    free(p->uses);
    free(p->depth);
    free(p->spelled);
    free(p->plain);
    *p = (mx_plan){0};
}
