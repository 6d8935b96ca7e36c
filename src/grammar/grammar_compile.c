#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_plan.h"
#include "grammar/matcher_private.h"

/* From expressions to machines. What is used in several places, recursive or counted becomes a machine of its own, and
 * so does a loop of plain bytes (a string's characters, a number's digits): its masks are dear to find and are the same
 * wherever it stands. All else is spelled out in the machine that it stands in. */
enum { NO_END = 256 };
typedef struct pending {
    mx_expr expr;
    int end;         /* the byte behind it that belongs to the machine; NO_END: none */
    uint32_t counts; /* 1: the expression is a repeat that is counted */
    mx_rule rule;    /* whose it is, for messages; 0: none */
} pending;

typedef struct compiler {
    mx_plan plan;
    const mx_grammar_builder *b;
    mx_nfa nfa;
    size_t nfa_room;
    mx_draft draft;
    pending *pending; /* [machines] */
    mx_machine *machine;
    size_t machines, pending_room, machine_room;
    uint32_t *table; /* of a hash of expression and end to machine + 1 */
    size_t table_size;
    bool in_loop; /* the machine is spelled out whole */
    bool no_memory, too_large;
} compiler;

static uint32_t no_memory(compiler *c) {
    c->no_memory = true;
    return 0;
}

static uint32_t add_state(compiler *c, mx_nfa_state state) {
    if (c->nfa.count >= 4 * MX_GRAMMAR_STATES) {
        c->too_large = true;
        return no_memory(c);
    }
    size_t count = c->nfa.count;
    if (!MX_PUSH(c->nfa.state, count, c->nfa_room, state)) return no_memory(c);
    c->nfa.count = (uint32_t)count;
    return c->nfa.count - 1;
}

static mx_status stopped(const compiler *c, mx_error *error) {
    if (c->too_large) return mx_fail(error, MX_UNSUPPORTED, "the grammar has more than %d states", MX_GRAMMAR_STATES);
    return mx_fail(error, MX_NO_MEMORY, "no memory to compile a grammar");
}

static uint32_t split(compiler *c, uint32_t a, uint32_t b) {
    return add_state(c, (mx_nfa_state){.kind = MX_NFA_SPLIT, .a = a, .b = b});
}

/* ---- machines ---------------------------------------------------------------------------------------------------- */
static size_t place(const compiler *c, mx_expr e, int end) {
    uint64_t x = ((uint64_t)(uint32_t)e << 9 | (uint64_t)end) * 0x9E3779B97F4A7C15u;
    size_t at = (size_t)(x >> 32) & (c->table_size - 1);
    for (uint32_t i; (i = c->table[at]) != 0; at = (at + 1) & (c->table_size - 1))
        if (c->pending[i - 1].expr == e && c->pending[i - 1].end == end) break;
    return at;
}

static bool enlarge_table(compiler *c) {
    free(c->table);
    c->table_size = c->table_size ? c->table_size * 2 : 64;
    c->table = calloc(c->table_size, sizeof *c->table);
    if (!c->table) return false;
    for (size_t i = 0; i < c->machines; i++)
        c->table[place(c, c->pending[i].expr, c->pending[i].end)] = (uint32_t)i + 1;
    return true;
}

/* The machine of an expression and the byte behind it; it is made later. */
static uint32_t machine_of(compiler *c, mx_expr e, int end, mx_rule rule) {
    /* A rule that is only another one is that one. (One that leads back to itself has no text and does not get here.)
     */
    while (c->b->expr[e].kind == MX_EXPR_RULE) {
        rule = (mx_rule)c->b->expr[e].first;
        e = c->b->rule[rule].body;
    }
    if (c->machines * 2 >= c->table_size && !enlarge_table(c)) return no_memory(c);
    const size_t at = place(c, e, end);
    if (c->table[at]) return c->table[at] - 1;
    const mx_expr_node *node = &c->b->expr[e];
    pending p = {.expr = e, .end = end, .rule = rule};
    mx_machine m = {.nullable = c->plan.nullable[e] && end == NO_END};
    if (node->kind == MX_EXPR_REPEAT && mx_plan_counts(&c->plan, node)) {
        /* A round reads something: rounds that need not are left out of the count. */
        p.counts = 1;
        m.counted = true;
        m.least = c->plan.nullable[c->b->item[node->first]] ? 0 : (uint32_t)node->least;
        m.most = node->most < 0 ? UINT32_MAX : (uint32_t)node->most;
    }
    size_t machines = c->machines;
    if (!MX_PUSH(c->machine, machines, c->machine_room, m) || !MX_PUSH(c->pending, c->machines, c->pending_room, p))
        return no_memory(c);
    c->table[at] = (uint32_t)c->machines;
    return (uint32_t)c->machines - 1;
}

static uint32_t call(compiler *c, mx_expr e, int end, mx_rule rule, uint32_t next) {
    const uint32_t machine = machine_of(c, e, end, rule);
    if (c->no_memory) return 0;
    const uint32_t at = add_state(c, (mx_nfa_state){.kind = MX_NFA_CALL, .a = next, .b = machine});
    return c->machine[machine].nullable ? split(c, at, next) : at;
}

/* A call of a loop: a byte that must come next is drawn into it, for then the end of the loop is where that byte is,
 * and not at each of its characters. */
static uint32_t call_loop(compiler *c, mx_expr e, uint32_t next) {
    const mx_nfa_state *n = &c->nfa.state[next];
    bool draw = n->kind == MX_NFA_BYTE;
    if (draw && c->b->expr[e].kind == MX_EXPR_REGULAR) {
        const mx_regular_view *v = &c->plan.view[c->b->expr[e].first];
        for (int i = 0; draw && i < v->states; i++)
            draw = !v->accepting[i] || v->next[(size_t)i * (size_t)v->classes + v->class_of[n->byte]] < 0;
    }
    return draw ? call(c, e, n->byte, 0, n->a) : call(c, e, NO_END, 0, next);
}

/* ---- expressions: each gives the state that it begins in, when it is followed by `next` ---------------------------
 */
static uint32_t build(compiler *c, mx_expr e, uint32_t next);

static uint32_t build_text(compiler *c, const mx_expr_node *e, uint32_t next) {
    for (uint32_t i = e->count; i-- > 0 && !c->no_memory;)
        next = add_state(c, (mx_nfa_state){.kind = MX_NFA_BYTE, .byte = c->b->byte[e->first + i], .a = next});
    return next;
}

static uint32_t build_regular(compiler *c, const mx_expr_node *e, uint32_t next) {
    const mx_regular_view *v = &c->plan.view[e->first];
    const uint32_t first = c->nfa.count, rows = first + (uint32_t)v->states;
    for (int i = 0; i < v->states && !c->no_memory; i++) split(c, rows + (uint32_t)i, v->accepting[i] ? next : MX_DEAD);
    for (int i = 0; i < v->states && !c->no_memory; i++)
        add_state(c, (mx_nfa_state){.kind = MX_NFA_ROW, .a = first, .b = (uint32_t)i, .regular = e->first});
    return first;
}

static uint32_t build_choice(compiler *c, const mx_expr_node *e, uint32_t next) {
    uint32_t all = MX_DEAD;
    for (uint32_t i = e->count; i-- > 0 && !c->no_memory;) {
        const mx_expr item = c->b->item[e->first + i];
        if (!c->plan.productive[item]) continue;
        const uint32_t one = build(c, item, next);
        all = all == MX_DEAD ? one : split(c, one, all);
    }
    return all;
}

static uint32_t build_repeat(compiler *c, const mx_expr_node *e, uint32_t next) {
    const mx_expr item = c->b->item[e->first];
    if (!c->plan.productive[item] || e->most == 0) return next;
    int64_t must = e->least;
    if (e->most < 0) {
        const uint32_t loop = split(c, MX_DEAD, next);
        const uint32_t body = build(c, item, loop);
        if (c->no_memory) return 0;
        c->nfa.state[loop].a = body;
        next = must > 0 ? body : loop;
        must--;
    } else {
        /* What may be left out is left out with all that follows. */
        const uint32_t end = next;
        for (int64_t i = e->least; i < e->most && !c->no_memory; i++) next = split(c, build(c, item, next), end);
    }
    while (must-- > 0 && !c->no_memory) next = build(c, item, next);
    return next;
}

/* The expression itself, spelled out. */
static uint32_t build_here(compiler *c, mx_expr e, uint32_t next) {
    const mx_expr_node *node = &c->b->expr[e];
    switch (node->kind) {
    case MX_EXPR_TEXT:
        return build_text(c, node, next);
    case MX_EXPR_REGULAR:
        return build_regular(c, node, next);
    case MX_EXPR_SEQUENCE:
        for (uint32_t i = node->count; i-- > 0 && !c->no_memory;) next = build(c, c->b->item[node->first + i], next);
        return next;
    case MX_EXPR_CHOICE:
        return build_choice(c, node, next);
    case MX_EXPR_REPEAT:
        return build_repeat(c, node, next);
    case MX_EXPR_RULE:
        return build(c, c->b->rule[node->first].body, next);
    case MX_EXPR_NEVER:
        break;
    }
    return next;
}

/* The expression, spelled out or as a call. Only what some text is of. */
static uint32_t build(compiler *c, mx_expr e, uint32_t next) {
    const mx_expr_node *node = &c->b->expr[e];
    if (c->no_memory) return 0;
    if (c->in_loop) return build_here(c, e, next);
    const mx_plan *p = &c->plan;
    switch (node->kind) {
    case MX_EXPR_TEXT:
        break;
    case MX_EXPR_REGULAR:
        if (p->finite[node->first] && p->size[e] <= 2 * MX_PLAN_SMALL) break;
        return call_loop(c, e, next);
    case MX_EXPR_RULE: {
        const mx_expr body = c->b->rule[node->first].body;
        if (p->spelled[node->first]) break;
        if (mx_plan_loops(p, &c->b->expr[body])) return call_loop(c, body, next);
        return call(c, body, NO_END, (mx_rule)node->first, next);
    }
    case MX_EXPR_REPEAT:
        if (!p->productive[c->b->item[node->first]]) return next;
        if (mx_plan_counts(p, node)) return call(c, e, NO_END, 0, next);
        if (mx_plan_loops(p, node)) return call_loop(c, e, next);
        /* fall through */
    default:
        if ((p->uses[e] > 1 && p->size[e] > MX_PLAN_SMALL) || p->depth[e] % MX_PLAN_DEPTH == MX_PLAN_DEPTH - 1)
            return call(c, e, NO_END, 0, next);
    }
    return build_here(c, e, next);
}

static mx_status build_machine(compiler *c, uint32_t machine, mx_error *error) {
    const pending p = c->pending[machine];
    const mx_expr_node *node = &c->b->expr[p.expr];
    uint32_t start;
    mx_status status;
    if (node->kind == MX_EXPR_REGULAR) {
        status = mx_determine_regular(&c->plan.view[node->first], p.end == NO_END ? -1 : p.end, machine, &c->draft,
                                      &start, error);
    } else {
        const mx_expr body = p.counts ? c->b->item[node->first] : p.expr;
        c->nfa.count = 0;
        c->in_loop =
            p.counts ? c->plan.pure[body] && c->plan.size[body] <= MX_PLAN_LOOP : mx_plan_loops(&c->plan, node);
        uint32_t end = add_state(c, (mx_nfa_state){.kind = MX_NFA_ACCEPT});
        if (p.end != NO_END) end = add_state(c, (mx_nfa_state){.kind = MX_NFA_BYTE, .byte = (uint8_t)p.end, .a = end});
        uint32_t first = end; /* rounds that no text is of: there are none */
        if (c->plan.productive[body]) first = p.counts ? build(c, body, end) : build_here(c, body, end);
        if (c->no_memory) return stopped(c, error);
        status = mx_determine(&c->nfa, first, machine, &c->draft, &start, error);
    }
    c->machine[machine].start = c->machine[machine].first = start;
    c->machine[machine].states = (uint32_t)c->draft.states - start;
    if (status == MX_OK && c->draft.states > MX_GRAMMAR_STATES)
        return mx_fail(error, MX_UNSUPPORTED, "the grammar has more than %d states", MX_GRAMMAR_STATES);
    return status;
}

/* ---- left recursion ---------------------------------------------------------------------------------------------- */
/* Walks depth first over states, from each to those where one is before the next byte is read: behind which there is
 * none already on the way. */
static mx_status check_left_recursion(const compiler *c, mx_error *error) {
    const mx_draft *d = &c->draft;
    uint8_t *colour = calloc(d->states, 1); /* 1: on the way, 2: done */
    uint32_t *next = calloc(d->states, sizeof *next);
    size_t *stack = malloc(d->states * sizeof *stack);
    mx_status status = MX_OK;
    if (!colour || !next || !stack) status = mx_fail(error, MX_NO_MEMORY, "no memory to compile a grammar");
    for (size_t m = 0; status == MX_OK && m < c->machines; m++) {
        if (colour[c->machine[m].start]) continue;
        size_t depth = 0;
        stack[depth++] = c->machine[m].start;
        colour[c->machine[m].start] = 1;
        while (depth > 0 && status == MX_OK) {
            const size_t at = stack[depth - 1];
            if (next[at] == d->state[at].calls) {
                colour[at] = 2;
                depth--;
                continue;
            }
            const mx_call *k = &d->call[d->state[at].call + next[at]++];
            const uint32_t to = k->machine == MX_DEAD ? k->state : c->machine[k->machine].start;
            if (colour[to] == 0) {
                colour[to] = 1;
                stack[depth++] = to;
            } else if (colour[to] == 1 && k->machine != MX_DEAD) {
                /* Some machine between here and there is a rule's. */
                mx_rule rule = 0;
                for (size_t i = depth; i-- > 0 && !rule;) {
                    rule = c->pending[d->state[stack[i]].machine].rule;
                    if (stack[i] == to) break;
                }
                status = mx_fail(error, MX_UNSUPPORTED,
                                 "rule \"%s\" refers to itself before it has read anything (left recursion)",
                                 rule ? c->b->rule[rule].name : "");
            }
        }
    }
    free(colour);
    free(next);
    free(stack);
    return status;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */
static void free_compiler(compiler *c) {
    mx_grammar_plan_free(&c->plan);
    free(c->nfa.state);
    free(c->draft.state);
    free(c->draft.range);
    free(c->draft.call);
    free(c->pending);
    free(c->machine);
    free(c->table);
}

/* One that is to be followed in too many ways from the start is of no use. */
static mx_status check_beginning(const mx_grammar *g, mx_error *error) {
    mx_stack stack;
    mx_places places = {0};
    const bool ok = mx_stack_create(&stack, g);
    if (ok) mx_stack_begin(&stack, &places);
    const bool crowded = stack.crowded, failed = !ok || stack.failed;
    free(places.place);
    mx_stack_free(&stack);
    if (failed) return mx_fail(error, MX_NO_MEMORY, "no memory to compile a grammar");
    if (crowded)
        return mx_fail(error, MX_UNSUPPORTED,
                       "the grammar can be read in too many ways at its beginning (more than %d)", MX_PLACES);
    return MX_OK;
}

static mx_status compile(compiler *c, mx_expr root, mx_grammar **out, mx_error *error) {
    mx_status status = mx_grammar_plan_make(c->b, &c->plan, error);
    if (status != MX_OK) return status;
    if (!c->plan.productive[root]) return mx_fail(error, MX_INVALID_ARGUMENT, "no text is of the grammar");
    c->nfa.view = c->plan.view;
    machine_of(c, root, NO_END, 0);
    for (uint32_t i = 0; i < c->machines && status == MX_OK; i++) status = build_machine(c, i, error);
    if (c->no_memory && status == MX_OK) status = stopped(c, error);
    if (status == MX_OK) status = check_left_recursion(c, error);
    if (status == MX_OK) {
        status = mx_pack(&c->draft, c->machine, (uint32_t)c->machines, out, error);
        if (status == MX_OK) {
            c->machine = NULL;
            status = check_beginning(*out, error);
            if (status != MX_OK) {
                mx_grammar_free(*out);
                *out = NULL;
            }
        }
    }
    return status;
}

mx_status mx_grammar_compile(mx_grammar_builder *b, mx_expr root, mx_grammar **out, mx_error *error) {
    *out = NULL;
    if (!b || b->failed || root <= 0 || (size_t)root >= b->exprs)
        return mx_fail(error, MX_NO_MEMORY, "no memory for the grammar");
    for (size_t i = 1; i < b->rules; i++)
        if (!b->rule[i].body)
            return mx_fail(error, MX_INVALID_ARGUMENT, "rule \"%s\" is referred to and was never set", b->rule[i].name);
    compiler c = {.b = b};
    const mx_status status = compile(&c, root, out, error);
    free_compiler(&c);
    return status;
}
