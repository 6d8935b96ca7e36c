#include <string.h>

#include "grammar/schema_parts.h"

/* What keywords say of arrays, and how arrays are written. */

enum { MOST_STATES = 20000, MOST_UNIQUE = 8, MOST_CONTAINS = 3 };

const mx_array_part *mx_schema_array_part(mx_schema_compiler *c, const mx_json *node) {
    const mx_json *prefix = mx_json_get(node, "prefixItems"), *items = mx_json_get(node, "items");
    const mx_json *contains = mx_json_get(node, "contains"), *unique = mx_json_get(node, "uniqueItems");
    mx_array_part a = {.rest = MX_GOAL_ANY, .most = -1};
    bool any = mx_schema_count(c, node, "minItems", &a.least);
    any |= mx_schema_count(c, node, "maxItems", &a.most);
    if (prefix && prefix->type != MX_JSON_ARRAY)
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"prefixItems\" must be an array");
    if (items && items->type == MX_JSON_ARRAY)
        mx_schema_fail(c, MX_UNSUPPORTED, node,
                       "\"items\" as an array is of older drafts; \"prefixItems\" is its name now");
    if (unique && unique->type != MX_JSON_BOOL)
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"uniqueItems\" must be true or false");
    a.unique = unique && unique->boolean;
    a.unique_place = node;
    if (c->status || (!any && !prefix && !items && !contains && !a.unique)) return NULL;
    if (prefix) {
        mx_goal *goals = mx_schema_take(c, prefix->count * sizeof *goals);
        if (!goals) return NULL;
        for (const mx_json *v = prefix->child; v; v = v->next) goals[a.count++] = mx_schema_goal_valid(c, v);
        a.prefix = goals;
        a.evaluated = a.count;
    }
    if (items) {
        a.rest = mx_schema_goal_valid(c, items);
        a.evaluated = INT64_MAX;
    }
    if (contains) {
        mx_array_contains *list = mx_schema_take(c, sizeof *list);
        if (!list) return NULL;
        *list = (mx_array_contains){.literal = mx_schema_literal_of(c, contains, false), .least = 1, .most = -1};
        mx_schema_count(c, node, "minContains", &list->least);
        mx_schema_count(c, node, "maxContains", &list->most);
        if (list->least > 0 || list->most >= 0) {
            a.contains = list;
            a.contains_count = 1;
        }
        a.partly = true;
    }
    mx_array_part *out = c->status ? NULL : mx_schema_take(c, sizeof *out);
    if (out) *out = a;
    return out;
}

/* ---- algebra ----------------------------------------------------------------------------------------------------- */
static mx_goal element(const mx_array_part *a, int64_t i) {
    return i < a->count ? a->prefix[i] : a->rest;
}

static bool may_be(void *context, mx_schema_compiler *c, mx_goal goal) {
    (void)context;
    (void)c;
    return goal != MX_GOAL_NEVER;
}

const mx_array_part *mx_array_and(mx_schema_compiler *c, const mx_array_part *a, const mx_array_part *b) {
    if (c->status || !a || !b) return NULL;
    if (a == c->any_array || a == b) return b;
    if (b == c->any_array) return a;
    mx_array_part *s = mx_schema_take(c, sizeof *s);
    const int count = a->count > b->count ? a->count : b->count, contains = a->contains_count + b->contains_count;
    mx_goal *prefix = mx_schema_take(c, (size_t)count * sizeof *prefix);
    mx_array_contains *list = mx_schema_take(c, (size_t)contains * sizeof *list);
    if (!s || !prefix || !list) return NULL;
    for (int i = 0; i < count; i++) prefix[i] = mx_schema_goal_and(c, element(a, i), element(b, i));
    if (a->contains_count) memcpy(list, a->contains, (size_t)a->contains_count * sizeof *list);
    if (b->contains_count) memcpy(list + a->contains_count, b->contains, (size_t)b->contains_count * sizeof *list);
    *s = (mx_array_part){.prefix = prefix,
                         .count = count,
                         .rest = mx_schema_goal_and(c, a->rest, b->rest),
                         .least = a->least > b->least ? a->least : b->least,
                         .most = a->most < 0 || (b->most >= 0 && b->most < a->most) ? b->most : a->most,
                         .contains = list,
                         .contains_count = contains,
                         .unique = a->unique || b->unique,
                         .evaluated = a->evaluated > b->evaluated ? a->evaluated : b->evaluated,
                         .partly = a->partly || b->partly,
                         .unique_place = a->unique ? a->unique_place : b->unique_place};
    return mx_array_fruitful(c, s, may_be, NULL) ? s : NULL;
}

static mx_array_part *add_array(mx_schema_compiler *c, mx_parts *out) {
    mx_array_part *a = mx_schema_take(c, sizeof *a);
    if (a) {
        *a = (mx_array_part){.rest = MX_GOAL_ANY, .most = -1};
        mx_parts_add(c, out, a);
    }
    return a;
}

static void add_contains(mx_schema_compiler *c, mx_parts *out, mx_array_contains contains) {
    mx_array_part *a = add_array(c, out);
    mx_array_contains *list = a ? mx_schema_take(c, sizeof *list) : NULL;
    if (!list) return;
    *list = contains;
    a->contains = list;
    a->contains_count = 1;
}

void mx_array_complement(mx_schema_compiler *c, const mx_array_part *a, mx_parts *out) {
    mx_array_part *s;
    if (a->unique)
        mx_schema_fail(c, MX_UNSUPPORTED, a->unique_place,
                       "\"uniqueItems\" is not supported where its opposite is asked");
    if (a->least > 0 && (s = add_array(c, out))) s->most = a->least - 1;
    if (a->most >= 0 && (s = add_array(c, out))) s->least = a->most + 1;
    for (int i = 0; i < a->count && !c->status; i++) {
        const mx_schema_goal g = c->goals[a->prefix[i]];
        for (int j = 0; j < g.count; j++) {
            mx_goal *prefix = mx_schema_take(c, (size_t)(i + 1) * sizeof *prefix);
            if (!prefix || !(s = add_array(c, out))) return;
            prefix[i] = mx_schema_goal_of(c, g.literals[j] ^ 1);
            s->prefix = prefix;
            s->count = i + 1;
            s->least = i + 1;
        }
    }
    const mx_schema_goal rest = c->goals[a->rest];
    for (int j = 0; j < rest.count && !c->status; j++)
        add_contains(c, out, (mx_array_contains){rest.literals[j] ^ 1, a->count, 1, -1});
    for (int i = 0; i < a->contains_count && !c->status; i++) {
        const mx_array_contains k = a->contains[i];
        if (k.least > 0) add_contains(c, out, (mx_array_contains){k.literal, k.from, 0, k.least - 1});
        if (k.most >= 0) add_contains(c, out, (mx_array_contains){k.literal, k.from, k.most + 1, -1});
    }
}

/* ---- elements and what they count for ---------------------------------------------------------------------------- */
/* What element i is where it counts for the contains of the set `yes`, and surely not for those of `no`. */
static mx_goal counted(mx_schema_compiler *c, const mx_array_part *a, int64_t i, unsigned yes, unsigned no) {
    mx_goal goal = element(a, i);
    for (int k = 0; k < a->contains_count; k++) {
        if (yes >> k & 1) goal = mx_schema_goal_and(c, goal, mx_schema_goal_of(c, a->contains[k].literal));
        if (no >> k & 1) goal = mx_schema_goal_and(c, goal, mx_schema_goal_of(c, a->contains[k].literal ^ 1));
    }
    return goal;
}

/* Those whose number is bounded above: what does not count for them must not be of them. */
static unsigned bounded(const mx_array_part *a) {
    unsigned set = 0;
    for (int k = 0; k < a->contains_count; k++) set |= (unsigned)(a->contains[k].most >= 0) << k;
    return set;
}

static unsigned begun(const mx_array_part *a, int64_t i) {
    unsigned set = 0;
    for (int k = 0; k < a->contains_count; k++) set |= (unsigned)(i >= a->contains[k].from) << k;
    return set;
}

/* From here on all elements are alike. */
static int64_t settled(const mx_array_part *a) {
    int64_t n = a->count;
    for (int k = 0; k < a->contains_count; k++) n = a->contains[k].from > n ? a->contains[k].from : n;
    return n;
}

static void too_many(mx_schema_compiler *c, const mx_array_part *a) {
    mx_schema_fail(c, MX_UNSUPPORTED, NULL,
                   "\"contains\" is supported with small counts, and at most %d of them on one array; these are %d",
                   MOST_CONTAINS, a->contains_count);
}

void mx_array_goals(mx_schema_compiler *c, const mx_array_part *a, mx_goal_visit *visit) {
    if (a->count > MOST_STATES)
        mx_schema_fail(c, MX_UNSUPPORTED, NULL, "\"prefixItems\" has %d entries, at most %d are supported", a->count,
                       MOST_STATES);
    if (a->contains_count > MOST_CONTAINS || settled(a) > MOST_STATES) too_many(c, a);
    if (c->status) return;
    for (int64_t i = 0; i < a->count; i++) visit(c, a->prefix[i]);
    visit(c, a->rest);
    for (int64_t i = 0; a->contains_count && i <= settled(a); i++) {
        const unsigned open = begun(a, i);
        for (unsigned yes = 0; yes <= open; yes++)
            if (!(yes & ~open)) visit(c, counted(c, a, i, yes, open & ~yes & bounded(a)));
    }
}

/* ---- counting ---------------------------------------------------------------------------------------------------- */
static bool test_or_can(mx_schema_compiler *c, mx_goal goal, mx_goal_test *test, void *context) {
    return test ? test(context, c, goal) : mx_schema_can(c, goal);
}

/* Where one may stand in an array with contains: how many elements are behind (up to `last`), and how many of them
 * count for each (up to its top). */
typedef struct counts {
    int64_t last, top[MOST_CONTAINS], states;
    int64_t stride[MOST_CONTAINS];
} counts;

static bool count_states(const mx_array_part *a, counts *n) {
    if (a->contains_count > MOST_CONTAINS) return false;
    n->last = settled(a);
    if (a->least > n->last) n->last = a->least;
    if (a->most >= 0 && a->most + 1 > n->last) n->last = a->most + 1;
    n->states = n->last + 1;
    for (int k = 0; k < a->contains_count; k++) {
        const mx_array_contains *t = &a->contains[k];
        n->top[k] = t->most >= 0 ? t->most + 1 : t->least;
        n->stride[k] = n->states;
        if (n->states > MOST_STATES || n->top[k] > MOST_STATES) return false;
        n->states *= n->top[k] + 1;
    }
    return n->states <= MOST_STATES;
}

static int64_t count_of(const counts *n, int64_t state, int k) {
    return state / n->stride[k] % (n->top[k] + 1);
}

static int64_t position_of(const counts *n, int64_t state) {
    return state % (n->last + 1);
}

static int64_t step(const mx_array_part *a, const counts *n, int64_t state, unsigned yes) {
    int64_t to = state + (position_of(n, state) < n->last);
    for (int k = 0; k < a->contains_count; k++)
        if (yes >> k & 1 && count_of(n, state, k) < n->top[k]) to += n->stride[k];
    return to;
}

static bool within(int64_t x, int64_t least, int64_t most) {
    return x >= least && (most < 0 || x <= most);
}

static bool state_ends(const mx_array_part *a, const counts *n, int64_t state) {
    if (!within(position_of(n, state), a->least, a->most)) return false;
    for (int k = 0; k < a->contains_count; k++)
        if (!within(count_of(n, state, k), a->contains[k].least, a->contains[k].most)) return false;
    return true;
}

/* Is there no way on, whatever comes? */
static bool state_is_over(const mx_array_part *a, const counts *n, int64_t state) {
    if (a->most >= 0 && position_of(n, state) > a->most) return true;
    for (int k = 0; k < a->contains_count; k++)
        if (a->contains[k].most >= 0 && count_of(n, state, k) > a->contains[k].most) return true;
    return false;
}

/* Which states lead to an end: [states], in the arena. NULL: the status is set, or the array is too complicated. */
static bool *useful_states(mx_schema_compiler *c, const mx_array_part *a, const counts *n, mx_goal_test *test,
                           void *context) {
    bool *useful = mx_schema_take(c, (size_t)n->states);
    bool *possible = mx_schema_take(c, (size_t)(settled(a) + 1) << a->contains_count);
    if (!useful || !possible) return NULL;
    for (int64_t i = 0; i <= settled(a); i++)
        for (unsigned yes = 0; yes < 1u << a->contains_count; yes++) {
            const unsigned open = begun(a, i);
            const mx_goal goal = yes & ~open ? MX_GOAL_NEVER : counted(c, a, i, yes, open & ~yes & bounded(a));
            possible[(i << a->contains_count) + yes] = !(yes & ~open) && test_or_can(c, goal, test, context);
        }
    for (bool changed = true; changed && !c->status;) {
        changed = false;
        for (int64_t s = n->states - 1; s >= 0; s--) {
            if (useful[s] || state_is_over(a, n, s)) continue;
            bool good = state_ends(a, n, s);
            const int64_t at = position_of(n, s) < settled(a) ? position_of(n, s) : settled(a);
            for (unsigned yes = 0; !good && yes < 1u << a->contains_count; yes++)
                good = possible[(at << a->contains_count) + yes] && useful[step(a, n, s, yes)];
            if (good) useful[s] = changed = true;
        }
    }
    return useful;
}

bool mx_array_fruitful(mx_schema_compiler *c, const mx_array_part *a, mx_goal_test *test, void *context) {
    if (c->status || (a->most >= 0 && a->least > a->most)) return false;
    for (int64_t i = 0; i < a->least; i++) {
        if (!test_or_can(c, element(a, i), test, context)) return false;
        if (i >= a->count) break;
    }
    if (a->unique && a->least > 1 && !test) {
        mx_schema_value values[MOST_UNIQUE];
        const int n = mx_schema_values(c, a->rest, values, MOST_UNIQUE);
        if (!a->count && n >= 0 && n < a->least) return false;
    }
    counts n;
    if (!a->contains_count || test) return true; /* "perhaps" is enough there */
    if (!count_states(a, &n)) return true;       /* writing it tells */
    const bool *useful = useful_states(c, a, &n, test, context);
    return useful && useful[0];
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */
static mx_expr with_brackets(mx_schema_compiler *c, mx_expr inner, bool may_be_empty) {
    const mx_expr full = mx_expr_sequence(c->builder, (const mx_expr[]){c->open_array, inner, c->close_array}, 3);
    return may_be_empty ? mx_expr_choice(c->builder, (const mx_expr[]){c->empty_array, full}, 2) : full;
}

/* From state `state` on, where `first`: nothing stands before. A rule for each. */
static mx_expr write_counted(mx_schema_compiler *c, const mx_array_part *a) {
    counts n;
    if (!count_states(a, &n)) {
        too_many(c, a);
        return 0;
    }
    const bool *useful = useful_states(c, a, &n, NULL, NULL);
    mx_rule *rules = mx_schema_take(c, (size_t)n.states * sizeof *rules);
    if (!useful || !rules) return 0;
    mx_grammar_builder *b = c->builder;
    for (int64_t s = 0; s < n.states; s++)
        if (useful[s]) rules[s] = mx_rule_add(b, "array");
    mx_expr first = 0;
    for (int64_t s = 0; s < n.states; s++) {
        if (!useful[s]) continue;
        mx_expr choices[(1 << MOST_CONTAINS) + 1], starts[1 << MOST_CONTAINS];
        int count = 0, start_count = 0;
        const int64_t at = position_of(&n, s) < settled(a) ? position_of(&n, s) : settled(a);
        const unsigned open = begun(a, at);
        for (unsigned yes = 0; yes <= open; yes++) {
            const int64_t to = step(a, &n, s, yes);
            if (yes & ~open || !useful[to]) continue;
            const mx_goal goal = counted(c, a, at, yes, open & ~yes & bounded(a));
            if (!mx_schema_can(c, goal)) continue;
            const mx_expr rest = mx_schema_pair(c, mx_schema_write_goal(c, goal), mx_expr_rule(b, rules[to]));
            choices[count++] = mx_schema_pair(c, c->comma, rest);
            if (!s) starts[start_count++] = rest;
        }
        if (!s) first = start_count ? mx_expr_choice(b, starts, start_count) : mx_expr_never(b);
        if (state_ends(a, &n, s)) choices[count++] = mx_expr_text(b, "", 0);
        mx_rule_set(b, rules[s], mx_expr_choice(b, choices, count));
    }
    return with_brackets(c, first, state_ends(a, &n, 0));
}

/* No value twice, of a few: which are left is the state. */
static mx_expr write_unique(mx_schema_compiler *c, const mx_array_part *a) {
    mx_schema_value values[MOST_UNIQUE];
    const bool others = a->count || a->contains_count;
    const int n = others ? -1 : mx_schema_values(c, a->rest, values, MOST_UNIQUE);
    if (n < 0) {
        mx_schema_fail(c, MX_UNSUPPORTED, a->unique_place,
                       others
                           ? "\"uniqueItems\" beside \"prefixItems\" or \"contains\" is not supported"
                           : "\"uniqueItems\" is supported where \"items\" has at most %d values (an \"enum\" of "
                             "strings, numbers, true, false, null), and with \"maxItems\" of at most 1: leave it out "
                             "and tell the model of it",
                       MOST_UNIQUE);
        return 0;
    }
    mx_grammar_builder *b = c->builder;
    mx_expr each[MOST_UNIQUE];
    for (int i = 0; i < n; i++) {
        mx_expr texts[MX_SCHEMA_SPELLINGS];
        for (int j = 0; j < values[i].count; j++)
            texts[j] = mx_expr_text(b, values[i].texts[j].text, values[i].texts[j].size);
        each[i] = mx_expr_choice(b, texts, values[i].count);
    }
    mx_expr rest[1 << MOST_UNIQUE], firsts[MOST_UNIQUE];
    for (int used = (1 << n) - 1; used >= 0; used--) { /* what may follow once these are written */
        const int written = __builtin_popcount((unsigned)used);
        mx_expr choices[MOST_UNIQUE + 1];
        int count = 0, first_count = 0;
        for (int i = 0; i < n && (a->most < 0 || written < a->most); i++) {
            if (used >> i & 1) continue;
            const mx_expr value = mx_schema_pair(c, each[i], rest[used | 1 << i]);
            choices[count++] = mx_schema_pair(c, c->comma, value);
            if (!used) firsts[first_count++] = value;
        }
        if (!used)
            return with_brackets(c, first_count ? mx_expr_choice(b, firsts, first_count) : mx_expr_never(b),
                                 a->least <= 0);
        if (written >= a->least) choices[count++] = mx_expr_text(b, "", 0);
        mx_rule rule = mx_rule_add(b, "set");
        mx_rule_set(b, rule, count ? mx_expr_choice(b, choices, count) : mx_expr_never(b));
        rest[used] = mx_expr_rule(b, rule);
    }
    return 0;
}

mx_expr mx_schema_write_array(mx_schema_compiler *c, const mx_array_part *a) {
    if (c->status) return 0;
    mx_grammar_builder *b = c->builder;
    if (a->unique && (a->most < 0 || a->most > 1)) return write_unique(c, a);
    if (a->contains_count) return write_counted(c, a);
    int64_t most = a->most;
    int64_t count = a->count;
    for (int64_t i = 0; i < count; i++)
        if (!mx_schema_can(c, a->prefix[i]) || i == most) { /* no array is longer */
            count = i;
            most = most < 0 || i < most ? i : most;
        }
    if (most != count && most != 0 && !mx_schema_can(c, a->rest)) most = count;
    if (most == 0) return c->empty_array;
    /* From the last element to the first: what may follow element i. */
    mx_expr tail = mx_expr_text(b, "", 0);
    if (most != count) {
        const int64_t before = count ? count : 1; /* elements that stand before the tail */
        const int64_t least = a->least > before ? a->least - before : 0;
        tail = mx_expr_repeat(b, mx_schema_pair(c, c->comma, mx_schema_write_goal(c, a->rest)), least,
                              most < 0 ? -1 : most - before);
    }
    for (int64_t i = count - 1; i >= 1; i--) {
        tail = mx_schema_pair(c, mx_schema_pair(c, c->comma, mx_schema_write_goal(c, a->prefix[i])), tail);
        if (i >= a->least) tail = mx_schema_optional(c, tail);
    }
    return with_brackets(c, mx_schema_pair(c, mx_schema_write_goal(c, element(a, 0)), tail), a->least == 0);
}
