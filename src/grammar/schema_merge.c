#include <stdlib.h>
#include <string.h>

#include "grammar/schema_parts.h"

/* Goals and the algebra of shapes. */

enum { MOST_PARTS = 2000, MOST_LITERALS = 1 << 20 };

/* ---- literals and goals ------------------------------------------------------------------------------------------ */
/* A table of twice as many slots once it is half full; `hash_of` gives the hash of entry i. */
static bool table_room(mx_schema_compiler *c, int32_t **table, int *size, int count,
                       uint64_t (*hash_of)(const mx_schema_compiler *c, int i)) {
    if (2 * count < *size) return true;
    const int more = *size ? 2 * *size : 256;
    int32_t *p = calloc((size_t)more, sizeof *p);
    if (!p) {
        mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
        return false;
    }
    for (int i = 0; i < count; i++) {
        uint64_t slot = hash_of(c, i);
        while (p[slot & (uint64_t)(more - 1)]) slot++;
        p[slot & (uint64_t)(more - 1)] = i + 1;
    }
    free(*table);
    *table = p;
    *size = more;
    return true;
}

static uint64_t literal_hash(const mx_schema_compiler *c, int i) {
    const mx_schema_literal *l = &c->literals[2 * i];
    return mx_schema_mix(mx_schema_mix(1, (uint64_t)(uintptr_t)l->node), l->value);
}

mx_literal mx_schema_literal_of(mx_schema_compiler *c, const mx_json *node, bool value) {
    if (c->status || !table_room(c, &c->literal_table, &c->literal_table_size, c->literal_count / 2, literal_hash))
        return 0;
    uint64_t slot = mx_schema_mix(mx_schema_mix(1, (uint64_t)(uintptr_t)node), value);
    for (int32_t at; (at = c->literal_table[slot & (uint64_t)(c->literal_table_size - 1)]); slot++) {
        const mx_schema_literal *l = &c->literals[2 * (at - 1)];
        if (l->node == node && l->value == value) return 2 * (at - 1);
    }
    if (c->literal_count + 2 > c->literal_room) {
        const int room = c->literal_room ? 2 * c->literal_room : 64;
        mx_schema_literal *more = room <= MOST_LITERALS ? realloc(c->literals, (size_t)room * sizeof *more) : NULL;
        if (!more) {
            mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
            return 0;
        }
        c->literals = more;
        c->literal_room = room;
    }
    const mx_literal new = c->literal_count;
    c->literals[new] = (mx_schema_literal){.node = node, .value = value};
    c->literals[new + 1] = (mx_schema_literal){.node = node, .value = value, .negative = true};
    c->literal_count += 2;
    c->literal_table[slot & (uint64_t)(c->literal_table_size - 1)] = new / 2 + 1;
    return new;
}

static uint64_t goal_hash(const mx_schema_compiler *c, int i) {
    return c->goals[i].hash;
}

/* `literals`: sorted, without doubles; kept where it is new. */
static mx_goal intern(mx_schema_compiler *c, const mx_literal *literals, int count) {
    if (c->status || !table_room(c, &c->goal_table, &c->goal_table_size, c->goal_count, goal_hash))
        return MX_GOAL_NEVER;
    uint64_t hash = 7;
    for (int i = 0; i < count; i++) hash = mx_schema_mix(hash, (uint64_t)literals[i]);
    uint64_t slot = hash;
    for (int32_t at; (at = c->goal_table[slot & (uint64_t)(c->goal_table_size - 1)]); slot++) {
        const mx_schema_goal *g = &c->goals[at - 1];
        if (g->hash == hash && g->count == count &&
            (!count || !memcmp(g->literals, literals, (size_t)count * sizeof *literals)))
            return at - 1;
    }
    if (c->goal_count == c->goal_room) {
        const int room = c->goal_room ? 2 * c->goal_room : 64;
        mx_schema_goal *more = realloc(c->goals, (size_t)room * sizeof *more);
        if (!more) {
            mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
            return MX_GOAL_NEVER;
        }
        c->goals = more;
        c->goal_room = room;
    }
    c->goals[c->goal_count] = (mx_schema_goal){.literals = literals, .count = count, .hash = hash};
    c->goal_table[slot & (uint64_t)(c->goal_table_size - 1)] = c->goal_count + 1;
    return c->goal_count++;
}

/* The first two goals have places of their own: no literals, and one that nothing is of. */
static bool first_goals(mx_schema_compiler *c) {
    static const mx_json never = {.type = MX_JSON_BOOL};
    if (c->goal_count) return true;
    mx_literal *l = mx_schema_take(c, sizeof *l);
    if (!l) return false;
    intern(c, NULL, 0);
    *l = mx_schema_literal_of(c, &never, false);
    intern(c, l, 1);
    return !c->status;
}

mx_goal mx_schema_goal_of(mx_schema_compiler *c, mx_literal literal) {
    if (c->status || !first_goals(c)) return MX_GOAL_NEVER;
    const mx_schema_literal *l = &c->literals[literal];
    if (!l->value && l->node->type == MX_JSON_BOOL)
        return l->node->boolean != l->negative ? MX_GOAL_ANY : MX_GOAL_NEVER;
    if (!l->value && l->node->type == MX_JSON_OBJECT && !l->node->child)
        return l->negative ? MX_GOAL_NEVER : MX_GOAL_ANY;
    mx_literal *kept = mx_schema_take(c, sizeof *kept);
    if (!kept) return MX_GOAL_NEVER;
    *kept = literal;
    return intern(c, kept, 1);
}

mx_goal mx_schema_goal_and(mx_schema_compiler *c, mx_goal a, mx_goal b) {
    if (c->status) return MX_GOAL_NEVER;
    if (a == b || b == MX_GOAL_ANY) return a;
    if (a == MX_GOAL_ANY) return b;
    if (a == MX_GOAL_NEVER || b == MX_GOAL_NEVER) return MX_GOAL_NEVER;
    const mx_schema_goal x = c->goals[a], y = c->goals[b];
    mx_literal *both = mx_schema_take(c, (size_t)(x.count + y.count) * sizeof *both);
    if (!both) return MX_GOAL_NEVER;
    int n = 0;
    for (int i = 0, j = 0; i < x.count || j < y.count;) {
        const bool left = j == y.count || (i < x.count && x.literals[i] <= y.literals[j]);
        const mx_literal l = left ? x.literals[i++] : y.literals[j++];
        if (n && both[n - 1] == l) continue;
        if (n && both[n - 1] == (l ^ 1)) return MX_GOAL_NEVER; /* S and not S */
        both[n++] = l;
    }
    return intern(c, both, n);
}

/* ---- shapes ------------------------------------------------------------------------------------------------------ */
mx_shape *mx_shape_new(mx_schema_compiler *c) {
    return mx_schema_take(c, sizeof(mx_shape));
}

bool mx_parts_add(mx_schema_compiler *c, mx_parts *parts, const void *part) {
    if (c->status || !part) return false;
    for (int i = 0; i < parts->count; i++)
        if (parts->at[i] == part) return true;
    if (parts->count == MOST_PARTS) {
        mx_schema_fail(c, MX_UNSUPPORTED, NULL, "too complicated: more than %d alternatives of one value", MOST_PARTS);
        return false;
    }
    if (parts->count == parts->room) {
        const int room = parts->room ? 2 * parts->room : 4;
        const void **more = mx_schema_take(c, (size_t)room * sizeof *more);
        if (!more) return false;
        if (parts->count) memcpy(more, parts->at, (size_t)parts->count * sizeof *more);
        parts->at = more;
        parts->room = room;
    }
    parts->at[parts->count++] = part;
    return true;
}

/* ---- strings ----------------------------------------------------------------------------------------------------- */
/* The longest text of a finite language, in code points; -1: there are texts of any length. */
typedef struct lengths {
    mx_regular_view view;
    int64_t *longest; /* [states] -2: not yet, -3: being looked at */
} lengths;

static int64_t longest_from(lengths *l, int state, int depth) {
    if (l->longest[state] != -2) return l->longest[state] == -3 ? -1 : l->longest[state];
    if (depth > 5000) return -1; /* as good as without end */
    l->longest[state] = -3;
    int64_t most = 0;
    int last = -1;
    for (int byte = 0; byte < 256 && most >= 0; byte++) {
        const int class = l->view.class_of[byte];
        const int next = l->view.next[(size_t)state * (size_t)l->view.classes + (size_t) class];
        const bool begins = (byte & 0xC0) != 0x80;
        if (next < 0 || (next == last && begins)) continue;
        const int64_t n = longest_from(l, next, depth + 1);
        if (n < 0)
            most = -1;
        else if (n + begins > most)
            most = n + begins;
        last = begins ? next : -1;
    }
    return l->longest[state] = most;
}

static int64_t longest_text(mx_schema_compiler *c, mx_regular *language) {
    lengths l = {.view = mx_regular_look(language)};
    l.longest = malloc((size_t)l.view.states * sizeof *l.longest);
    if (!l.longest) {
        mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
        return -1;
    }
    for (int i = 0; i < l.view.states; i++) l.longest[i] = -2;
    const int64_t n = longest_from(&l, 0, 0);
    free(l.longest);
    return n;
}

static bool string_is_empty(const mx_string_part *s) {
    return (s->most >= 0 && s->least > s->most) || mx_regular_is_empty(s->language);
}

/* NULL: no text (or the status is set). */
const mx_string_part *mx_string_and(mx_schema_compiler *c, const mx_string_part *a, const mx_string_part *b) {
    if (c->status || !a || !b) return NULL;
    if (a == c->any_string || a == b) return b;
    if (b == c->any_string) return a;
    mx_string_part s = {.language = mx_schema_and(c, a->language, b->language),
                        .least = a->least > b->least ? a->least : b->least,
                        .most = a->most < 0 || (b->most >= 0 && b->most < a->most) ? b->most : a->most};
    if (!s.language || string_is_empty(&s)) return NULL;
    if (s.language != c->all_text && (s.least > 0 || s.most >= 0)) {
        const int64_t longest = longest_text(c, s.language);
        if (longest >= 0 && longest <= s.most) s.most = -1;
        if (longest >= 0 && s.least > longest) return NULL;
        /* A finite language is cut at once. Others keep their lengths apart: they need not be multiplied out as long
         * as nothing is written. */
        if (longest >= 0 && (s.least > 0 || s.most >= 0)) {
            s.language = mx_schema_and(c, s.language, mx_schema_lengths(c, NULL, s.least, s.most));
            s.least = 0;
            s.most = -1;
            if (!s.language || string_is_empty(&s)) return NULL;
        }
    }
    mx_string_part *out = mx_schema_take(c, sizeof *out);
    if (out) *out = s;
    return out;
}

static void add_string(mx_schema_compiler *c, mx_parts *out, mx_regular *language, int64_t least, int64_t most) {
    mx_string_part *s = language ? mx_schema_take(c, sizeof *s) : NULL;
    if (!s) return;
    *s = (mx_string_part){language, least, most};
    if (!string_is_empty(s)) mx_parts_add(c, out, s);
}

void mx_string_complement(mx_schema_compiler *c, const mx_string_part *a, mx_parts *out) {
    if (a->language != c->all_text) add_string(c, out, mx_schema_not(c, a->language), 0, -1);
    if (a->least > 0) add_string(c, out, c->all_text, 0, a->least - 1);
    if (a->most >= 0) add_string(c, out, c->all_text, a->most + 1, -1);
}

/* ---- unions and intersections ------------------------------------------------------------------------------------ */
typedef const void *part_and(mx_schema_compiler *c, const void *a, const void *b);
static const void *strings_and(mx_schema_compiler *c, const void *a, const void *b) {
    return mx_string_and(c, a, b);
}
static const void *arrays_and(mx_schema_compiler *c, const void *a, const void *b) {
    return mx_array_and(c, a, b);
}
static const void *objects_and(mx_schema_compiler *c, const void *a, const void *b) {
    return mx_object_and(c, a, b);
}

static void parts_and(mx_schema_compiler *c, mx_parts *out, const mx_parts *a, const mx_parts *b, part_and *and) {
    for (int i = 0; i < a->count; i++)
        for (int j = 0; j < b->count && !c->status; j++) mx_parts_add(c, out, and(c, a->at[i], b->at[j]));
}

static mx_regular *number_and(mx_schema_compiler *c, mx_regular *a, mx_regular *b) {
    if (!a || !b) return NULL;
    if (a == c->number_full) return b;
    if (b == c->number_full) return a;
    mx_regular *r = mx_schema_and(c, a, b);
    return r && !mx_regular_is_empty(r) ? r : NULL;
}

const mx_shape *mx_shape_and(mx_schema_compiler *c, const mx_shape *a, const mx_shape *b) {
    if (c->status || !a || !b) return NULL;
    if (a == b || b == c->any) return a;
    if (a == c->any) return b;
    mx_shape *s = mx_shape_new(c);
    if (!s) return NULL;
    s->constants = a->constants & b->constants;
    s->number = number_and(c, a->number, b->number);
    parts_and(c, &s->strings, &a->strings, &b->strings, strings_and);
    parts_and(c, &s->arrays, &a->arrays, &b->arrays, arrays_and);
    parts_and(c, &s->objects, &a->objects, &b->objects, objects_and);
    return c->status ? NULL : s;
}

/* `all`: the part that every other one is part of. */
static void parts_or(mx_schema_compiler *c, mx_parts *out, const mx_parts *a, const mx_parts *b, const void *all) {
    const int room = a->count + b->count;
    const void **at = mx_schema_take(c, (size_t)room * sizeof *at);
    if (!at) return;
    if (a->count) memcpy(at, a->at, (size_t)a->count * sizeof *at); /* no doubles among them */
    *out = (mx_parts){at, a->count, room};
    for (int i = 0; i < b->count; i++) mx_parts_add(c, out, b->at[i]);
    for (int i = 0; i < out->count && !c->unevaluated; i++)
        if (out->at[i] == all) {
            out->at[0] = all;
            out->count = 1;
        }
}

static void strings_or(mx_schema_compiler *c, mx_parts *out, const mx_parts *a, const mx_parts *b) {
    mx_regular *language = NULL;
    const mx_parts *const both[] = {a, b};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < both[k]->count; i++) {
            const mx_string_part *s = both[k]->at[i];
            if (s == c->any_string) {
                *out = (mx_parts){0};
                mx_parts_add(c, out, s);
                return;
            }
            if (s->least || s->most >= 0)
                mx_parts_add(c, out, s);
            else
                language = language ? mx_schema_or(c, language, s->language) : s->language;
        }
    if (language) add_string(c, out, language, 0, -1);
}

const mx_shape *mx_shape_or(mx_schema_compiler *c, const mx_shape *a, const mx_shape *b) {
    if (c->status || !a || !b) return NULL;
    if (a == b || b == c->none) return a;
    if (a == c->none) return b;
    mx_shape *s = mx_shape_new(c);
    if (!s) return NULL;
    s->constants = a->constants | b->constants;
    if (a->number == c->number_full || b->number == c->number_full)
        s->number = c->number_full;
    else
        s->number = a->number && b->number ? mx_schema_or(c, a->number, b->number) : a->number ? a->number : b->number;
    strings_or(c, &s->strings, &a->strings, &b->strings);
    parts_or(c, &s->arrays, &a->arrays, &b->arrays, c->any_array);
    parts_or(c, &s->objects, &a->objects, &b->objects, c->any_object);
    return c->status ? NULL : s;
}

const mx_shape *mx_shape_unannotated(mx_schema_compiler *c, const mx_shape *a) {
    if (c->status || !a || !c->unevaluated) return a;
    mx_shape *s = mx_shape_new(c);
    if (!s) return NULL;
    *s = *a;
    s->arrays = s->objects = (mx_parts){0};
    for (int i = 0; i < a->arrays.count; i++) {
        mx_array_part *p = mx_schema_take(c, sizeof *p);
        if (!p) return NULL;
        *p = *(const mx_array_part *)a->arrays.at[i];
        p->evaluated = 0;
        p->partly = false;
        mx_parts_add(c, &s->arrays, p);
    }
    for (int i = 0; i < a->objects.count; i++) {
        const mx_object_part *o = a->objects.at[i];
        mx_object_part *p = mx_schema_take(c, sizeof *p);
        mx_member *named = mx_schema_take(c, (size_t)o->count * sizeof *named);
        mx_key_class *others = mx_schema_take(c, (size_t)o->other_count * sizeof *others);
        if (!p || !named || !others) return NULL;
        for (int j = 0; j < o->count; j++) {
            named[j] = o->named[j];
            named[j].evaluated = false;
        }
        for (int j = 0; j < o->other_count; j++) {
            others[j] = o->others[j];
            others[j].evaluated = false;
        }
        *p = *o;
        p->named = named;
        p->others = others;
        mx_parts_add(c, &s->objects, p);
    }
    return c->status ? NULL : s;
}

/* ---- emptiness --------------------------------------------------------------------------------------------------- */
static bool has_values(mx_schema_compiler *c, const mx_shape *a, mx_goal_test *test, void *context) {
    if (a->constants || a->number || a->strings.count) return true;
    for (int i = 0; i < a->arrays.count; i++)
        if (mx_array_fruitful(c, a->arrays.at[i], test, context)) return true;
    for (int i = 0; i < a->objects.count; i++)
        if (mx_object_fruitful(c, a->objects.at[i], test, context)) return true;
    return false;
}

typedef struct search {
    int depth, steps;
} search;

/* A value holds no value of the same goal that is as small as can be: one that is being looked at may be left out. */
static bool may_have_values(void *context, mx_schema_compiler *c, mx_goal goal) {
    search *s = context;
    if (c->status || goal == MX_GOAL_NEVER) return false;
    if (goal == MX_GOAL_ANY) return true;
    if (s->depth > 20 || s->steps++ > 1000) return true;
    c->trying++;
    const bool before = c->blocked;
    c->blocked = false;
    const mx_shape *shape = mx_schema_goal_shape(c, goal);
    const bool blocked = c->blocked;
    c->blocked = before;
    c->trying--;
    if (blocked && !c->status) return true;
    if (!shape || c->goals[goal].queued) return false;
    c->goals[goal].queued = true;
    s->depth++;
    const bool found = has_values(c, shape, may_have_values, s);
    s->depth--;
    c->goals[goal].queued = false;
    return found;
}

bool mx_schema_surely_empty(mx_schema_compiler *c, const mx_shape *a) {
    search s = {0};
    return a && !has_values(c, a, may_have_values, &s);
}
