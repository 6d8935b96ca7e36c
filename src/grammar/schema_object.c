#include <string.h>

#include "grammar/schema_parts.h"

/* What keywords say of objects, and how objects are written. */

enum { MOST_CLASSES = 64, MOST_STATES = 20000, MOST_ENTRIES = 50000, INLINE_TAIL = 16, MOST_NAMES = 256 };

/* ---- keys -------------------------------------------------------------------------------------------------------- */
static int find_named(const mx_member *named, int count, const char *key, size_t size) {
    for (int i = 0; i < count; i++)
        if (named[i].size == size && !memcmp(named[i].key, key, size)) return i;
    return -1;
}

static const mx_key_class *class_of(const mx_key_class *classes, int count, const char *key, size_t size,
                                    const mx_schema_compiler *c) {
    for (int i = 0; i < count; i++)
        if (classes[i].keys == c->all_text || mx_regular_match(classes[i].keys, key, size)) return &classes[i];
    return NULL;
}

/* All keys but those of its named members. Objects with the same names are many: in unions, in what is merged. */
static mx_regular *other_keys(mx_schema_compiler *c, const mx_object_part *a) {
    if (!a->count || c->status) return c->status ? NULL : c->all_text;
    mx_schema_word *words = mx_schema_take(c, (size_t)a->count * sizeof *words);
    if (!words) return NULL;
    uint64_t hash = 11;
    for (int i = 0; i < a->count; i++) {
        words[i] = (mx_schema_word){a->named[i].key, a->named[i].size};
        hash = mx_schema_mix(hash, a->named[i].size);
        for (size_t j = 0; j < a->named[i].size; j++) hash = mx_schema_mix(hash, (uint8_t)a->named[i].key[j]);
    }
    const int64_t before = mx_schema_recall(c, hash);
    if (before >= 0) return c->languages[before];
    mx_regular *others = mx_schema_not(c, mx_schema_words(c, words, a->count));
    if (others) mx_schema_remember(c, hash, c->language_count - 1); /* it is the last one that was made */
    return others;
}

/* ---- keywords ---------------------------------------------------------------------------------------------------- */
static const mx_json *object_keyword(mx_schema_compiler *c, const mx_json *node, const char *keyword) {
    const mx_json *v = mx_json_get(node, keyword);
    if (v && v->type != MX_JSON_OBJECT)
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"%s\" must be an object", keyword);
    return c->status ? NULL : v;
}

/* Splits every class by `keys`: those within get `goal` beside what they have. */
static int split(mx_schema_compiler *c, mx_key_class *classes, int count, mx_regular *keys, mx_goal inside,
                 mx_goal outside, bool evaluated, const mx_json *place) {
    for (int i = count - 1; i >= 0 && !c->status; i--) {
        mx_regular *in = mx_schema_and(c, classes[i].keys, keys);
        mx_regular *out = in ? mx_schema_without(c, classes[i].keys, keys) : NULL;
        if (!out) return count;
        mx_key_class within = {in, mx_schema_goal_and(c, classes[i].goal, inside), classes[i].evaluated || evaluated};
        classes[i].goal = mx_schema_goal_and(c, classes[i].goal, outside);
        if (mx_regular_is_empty(in)) continue;
        if (!mx_regular_is_empty(out)) {
            classes[i].keys = out;
            if (count == MOST_CLASSES) {
                mx_schema_fail(c, MX_UNSUPPORTED, place, "\"patternProperties\" part keys into more than %d kinds",
                               MOST_CLASSES);
                return count;
            }
            classes[count++] = within;
        } else
            classes[i] = within;
    }
    return count;
}

static mx_regular *key_pattern(mx_schema_compiler *c, const mx_json *member) {
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_parse(member->key, member->key_size, false, &r, &error);
    if (status) mx_schema_fail(c, status, member, "\"patternProperties\": %s", error.text);
    return mx_schema_own(c, member, status, r, &error);
}

/* Classes of keys by patternProperties alone. */
static int pattern_classes(mx_schema_compiler *c, const mx_json *node, mx_key_class *classes) {
    int count = 1;
    classes[0] = (mx_key_class){c->all_text, MX_GOAL_ANY, false};
    const mx_json *patterns = object_keyword(c, node, "patternProperties");
    for (const mx_json *m = patterns ? patterns->child : NULL; m && !c->status; m = m->next)
        count = split(c, classes, count, key_pattern(c, m), mx_schema_goal_valid(c, m), MX_GOAL_ANY, true, node);
    return count;
}

static bool strict(const mx_schema_compiler *c, const mx_json *properties) {
    return c->options.openai_strict && properties;
}

/* Members from "properties" and "required". `classes`: before additionalProperties in `patterns`, after in `all`. */
static int list_members(mx_schema_compiler *c, const mx_json *node, const mx_key_class *patterns,
                        const mx_key_class *all, int class_count, mx_member **out) {
    const mx_json *properties = object_keyword(c, node, "properties"), *required = mx_json_get(node, "required");
    if (required && required->type != MX_JSON_ARRAY)
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"required\" must be an array");
    if (c->status) return 0;
    const uint32_t room = (properties ? properties->count : 0) + (required ? required->count : 0);
    mx_member *members = *out = mx_schema_take(c, room * sizeof *members);
    int count = 0;
    if (!members) return 0;
    const bool every = strict(c, properties) && !required;
    for (const mx_json *m = properties ? properties->child : NULL; m; m = m->next) {
        const int twice = find_named(members, count, m->key, m->key_size);
        const mx_key_class *pattern = class_of(patterns, class_count, m->key, m->key_size, c);
        const mx_goal goal = mx_schema_goal_and(c, mx_schema_goal_valid(c, m), pattern ? pattern->goal : MX_GOAL_NEVER);
        members[twice < 0 ? count++ : twice] = (mx_member){m->key, m->key_size, goal, every, true};
    }
    for (const mx_json *r = required ? required->child : NULL; r; r = r->next) {
        if (r->type != MX_JSON_STRING) {
            mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"required\" must be names");
            return 0;
        }
        int at = find_named(members, count, r->text, r->size);
        if (at < 0) {
            const mx_key_class *class = class_of(all, class_count, r->text, r->size, c);
            members[at = count++] =
                (mx_member){r->text, r->size, class ? class->goal : MX_GOAL_NEVER, true, class && class->evaluated};
        }
        members[at].required = true;
    }
    return count;
}

/* propertyNames: keys that it forbids have no values. */
static int restrict_names(mx_schema_compiler *c, const mx_json *node, mx_member *named, int count,
                          mx_key_class *classes, int class_count) {
    const mx_json *names = mx_json_get(node, "propertyNames");
    if (!names || c->status) return class_count;
    const mx_shape *shape = mx_schema_expand(c, mx_schema_literal_of(c, names, false));
    mx_regular *keys = shape ? mx_schema_string_language(c, &shape->strings) : NULL;
    if (!keys) return class_count;
    for (int i = 0; i < count; i++)
        if (!mx_regular_match(keys, named[i].key, named[i].size)) named[i].goal = MX_GOAL_NEVER;
    return split(c, classes, class_count, keys, MX_GOAL_ANY, MX_GOAL_NEVER, false, node);
}

const mx_object_part *mx_schema_object_part(mx_schema_compiler *c, const mx_json *node) {
    static const char *const keywords[] = {"properties",           "required",      "patternProperties",
                                           "additionalProperties", "propertyNames", "minProperties",
                                           "maxProperties"};
    bool any = false;
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++) any |= mx_json_get(node, keywords[i]) != NULL;
    if (!any || c->status) return NULL;
    mx_object_part *o = mx_schema_take(c, sizeof *o);
    mx_key_class *patterns = mx_schema_take(c, MOST_CLASSES * sizeof *patterns);
    mx_key_class *classes = mx_schema_take(c, MOST_CLASSES * sizeof *classes);
    if (!o || !patterns || !classes) return NULL;
    *o = (mx_object_part){.most = -1, .typed = mx_json_get(node, "properties") != NULL};
    mx_schema_count(c, node, "minProperties", &o->least);
    mx_schema_count(c, node, "maxProperties", &o->most);
    o->other_count = pattern_classes(c, node, patterns);
    memcpy(classes, patterns, MOST_CLASSES * sizeof *classes);
    const mx_json *additional = mx_json_get(node, "additionalProperties");
    for (int i = 0; i < o->other_count && additional && !c->status; i++)
        if (!classes[i].evaluated) {
            classes[i].goal = mx_schema_goal_valid(c, additional);
            classes[i].evaluated = true;
        }
    mx_member *named = NULL;
    o->count = list_members(c, node, patterns, classes, o->other_count, &named);
    o->other_count = restrict_names(c, node, named, o->count, classes, o->other_count);
    o->named = named;
    o->others = classes;
    return c->status ? NULL : o;
}

/* ---- algebra ----------------------------------------------------------------------------------------------------- */
static bool may_be(void *context, mx_schema_compiler *c, mx_goal goal) {
    (void)context;
    (void)c;
    return goal != MX_GOAL_NEVER;
}

/* Members of `from` that `to` does not have, with what `to` says of others. */
static int add_members(mx_schema_compiler *c, mx_member *out, int count, int named, const mx_object_part *from,
                       const mx_object_part *to) {
    for (int i = 0; i < from->count; i++) {
        const mx_member m = from->named[i];
        if (find_named(out, named, m.key, m.size) >= 0) continue;
        const mx_key_class *class = class_of(to->others, to->other_count, m.key, m.size, c);
        out[count] = m;
        out[count].goal = mx_schema_goal_and(c, m.goal, class ? class->goal : MX_GOAL_NEVER);
        out[count++].evaluated = m.evaluated || (class && class->evaluated);
    }
    return count;
}

static int and_members(mx_schema_compiler *c, mx_member *out, const mx_object_part *a, const mx_object_part *b) {
    for (int i = 0; i < a->count; i++) {
        const mx_member m = a->named[i];
        const int at = find_named(b->named, b->count, m.key, m.size);
        out[i] = m;
        if (at >= 0) {
            out[i].goal = mx_schema_goal_and(c, m.goal, b->named[at].goal);
            out[i].required |= b->named[at].required;
            out[i].evaluated |= b->named[at].evaluated;
        } else {
            const mx_key_class *class = class_of(b->others, b->other_count, m.key, m.size, c);
            out[i].goal = mx_schema_goal_and(c, m.goal, class ? class->goal : MX_GOAL_NEVER);
            out[i].evaluated |= class && class->evaluated;
        }
    }
    return add_members(c, out, a->count, a->count, b, a);
}

static int and_classes(mx_schema_compiler *c, mx_key_class *out, const mx_object_part *a, const mx_object_part *b) {
    int count = 0;
    for (int i = 0; i < a->other_count; i++)
        for (int j = 0; j < b->other_count && !c->status; j++) {
            const mx_key_class x = a->others[i], y = b->others[j];
            mx_regular *keys = mx_schema_and(c, x.keys, y.keys);
            if (!keys || mx_regular_is_empty(keys)) continue;
            out[count++] = (mx_key_class){keys, mx_schema_goal_and(c, x.goal, y.goal), x.evaluated || y.evaluated};
        }
    return count;
}

const mx_object_part *mx_object_and(mx_schema_compiler *c, const mx_object_part *a, const mx_object_part *b) {
    if (c->status || !a || !b) return NULL;
    if (a == c->any_object || a == b) return b;
    if (b == c->any_object) return a;
    mx_object_part *s = mx_schema_take(c, sizeof *s);
    mx_member *named = mx_schema_take(c, (size_t)(a->count + b->count) * sizeof *named);
    mx_key_class *others = mx_schema_take(c, (size_t)a->other_count * (size_t)b->other_count * sizeof *others);
    mx_key_exists *list = mx_schema_take(c, (size_t)(a->exists_count + b->exists_count) * sizeof *list);
    if (!s || !named || !others || !list) return NULL;
    if (a->exists_count) memcpy(list, a->exists, (size_t)a->exists_count * sizeof *list);
    int exists = a->exists_count;
    for (int i = 0; i < b->exists_count; i++) {
        const mx_key_exists e = b->exists[i];
        int same = 0;
        while (same < exists &&
               (list[same].goal != e.goal || mx_regular_hash(list[same].keys) != mx_regular_hash(e.keys)))
            same++;
        list[same] = e;
        exists += same == exists;
    }
    *s = (mx_object_part){.named = named,
                          .count = and_members(c, named, a, b),
                          .others = others,
                          .other_count = and_classes(c, others, a, b),
                          .least = a->least > b->least ? a->least : b->least,
                          .most = a->most < 0 || (b->most >= 0 && b->most < a->most) ? b->most : a->most,
                          .exists = list,
                          .exists_count = exists,
                          .typed = a->typed || b->typed};
    return !c->status && mx_object_fruitful(c, s, may_be, NULL) ? s : NULL;
}

static mx_object_part *add_object(mx_schema_compiler *c, mx_parts *out) {
    mx_object_part *o = mx_schema_take(c, sizeof *o);
    if (!o) return NULL;
    *o = *c->any_object;
    mx_parts_add(c, out, o);
    return o;
}

/* With the member `m` alone. */
static void add_with_member(mx_schema_compiler *c, mx_parts *out, const mx_member *m, mx_goal goal, bool required) {
    mx_object_part *o = add_object(c, out);
    mx_member *named = o ? mx_schema_take(c, sizeof *named) : NULL;
    if (!named) return;
    *named = (mx_member){m->key, m->size, goal, required, false};
    o->named = named;
    o->count = 1;
}

static void add_with_exists(mx_schema_compiler *c, mx_parts *out, mx_regular *keys, mx_goal goal) {
    if (!keys || mx_regular_is_empty(keys)) return;
    mx_object_part *o = add_object(c, out);
    mx_key_exists *exists = o ? mx_schema_take(c, sizeof *exists) : NULL;
    if (!exists) return;
    *exists = (mx_key_exists){keys, goal};
    o->exists = exists;
    o->exists_count = 1;
}

static void complement_exists(mx_schema_compiler *c, mx_parts *out, const mx_key_exists *e) {
    const mx_schema_goal g = c->goals[e->goal];
    if (g.count > 1) { /* a value of not (A and B) is no goal */
        mx_schema_fail(c, MX_UNSUPPORTED, NULL, "\"not\" around so much is not supported");
        return;
    }
    mx_object_part *o = add_object(c, out);
    mx_key_class *others = o ? mx_schema_take(c, 2 * sizeof *others) : NULL;
    if (!others) return;
    const mx_goal opposite = g.count ? mx_schema_goal_of(c, g.literals[0] ^ 1) : MX_GOAL_NEVER;
    others[0] = (mx_key_class){e->keys, opposite, false};
    others[1] = (mx_key_class){mx_schema_not(c, e->keys), MX_GOAL_ANY, false};
    o->others = others;
    o->other_count = 2;
}

void mx_object_complement(mx_schema_compiler *c, const mx_object_part *a, mx_parts *out) {
    mx_object_part *o;
    if (a->least > 0 && (o = add_object(c, out))) o->most = a->least - 1;
    if (a->most >= 0 && (o = add_object(c, out))) o->least = a->most + 1;
    for (int i = 0; i < a->count && !c->status; i++) {
        if (a->named[i].required) add_with_member(c, out, &a->named[i], MX_GOAL_NEVER, false);
        const mx_schema_goal g = c->goals[a->named[i].goal];
        for (int j = 0; j < g.count; j++)
            add_with_member(c, out, &a->named[i], mx_schema_goal_of(c, g.literals[j] ^ 1), true);
    }
    mx_regular *unnamed = NULL;
    for (int i = 0; i < a->other_count && !c->status; i++) {
        const mx_schema_goal g = c->goals[a->others[i].goal];
        if (!g.count) continue;
        if (!unnamed) unnamed = other_keys(c, a);
        mx_regular *keys = mx_schema_and(c, a->others[i].keys, unnamed);
        for (int j = 0; j < g.count; j++) add_with_exists(c, out, keys, mx_schema_goal_of(c, g.literals[j] ^ 1));
    }
    for (int i = 0; i < a->exists_count && !c->status; i++) complement_exists(c, out, &a->exists[i]);
}

/* ---- settling ---------------------------------------------------------------------------------------------------- */
static void settle_exists(mx_schema_compiler *c, const mx_object_part *a, int at, mx_parts *out);

/* `e`, which is number `at`, is one of the others and stands before number `j` of those that are settled: members come
 * in any order. */
static void place_exists(mx_schema_compiler *c, const mx_object_part *a, int at, int j, mx_key_exists e,
                         mx_parts *out) {
    mx_object_part *o = mx_schema_take(c, sizeof *o);
    mx_key_exists *exists = mx_schema_take(c, (size_t)a->exists_count * sizeof *exists);
    if (!o || !exists) return;
    memcpy(exists, a->exists, (size_t)a->exists_count * sizeof *exists);
    memmove(exists + j + 1, exists + j, (size_t)(at - j) * sizeof *exists);
    exists[j] = e;
    *o = *a;
    o->exists = exists;
    settle_exists(c, o, at + 1, out);
}

/* Number `at` of what must exist is a named member, or one of the others: each is a part for itself. Those before it
 * are settled. */
static void settle_exists(mx_schema_compiler *c, const mx_object_part *a, int at, mx_parts *out) {
    if (at == a->exists_count) {
        mx_parts_add(c, out, a);
        return;
    }
    const mx_key_exists e = a->exists[at];
    for (int i = 0; i < a->count && !c->status; i++) {
        const mx_goal goal = mx_schema_goal_and(c, a->named[i].goal, e.goal);
        if (goal == MX_GOAL_NEVER || !mx_regular_match(e.keys, a->named[i].key, a->named[i].size)) continue;
        mx_object_part *o = mx_schema_take(c, sizeof *o);
        mx_member *named = mx_schema_take(c, (size_t)a->count * sizeof *named);
        mx_key_exists *exists = mx_schema_take(c, (size_t)a->exists_count * sizeof *exists);
        if (!o || !named || !exists) return;
        memcpy(named, a->named, (size_t)a->count * sizeof *named);
        named[i].goal = goal;
        named[i].required = true;
        memcpy(exists, a->exists, (size_t)a->exists_count * sizeof *exists);
        exists[at] = exists[a->exists_count - 1];
        *o = *a;
        o->named = named;
        o->exists = exists;
        o->exists_count--;
        settle_exists(c, o, at, out);
    }
    for (int i = 0; i < a->other_count && !c->status; i++) {
        mx_regular *keys = mx_schema_and(c, a->others[i].keys, e.keys);
        const mx_goal goal = mx_schema_goal_and(c, a->others[i].goal, e.goal);
        if (!keys || goal == MX_GOAL_NEVER || mx_regular_is_empty(keys)) continue;
        for (int j = 0; j <= at; j++) place_exists(c, a, at, j, (mx_key_exists){keys, goal}, out);
    }
    /* Or one of those that are settled is this one, too. */
    for (int j = 0; j < at && !c->status; j++) {
        mx_regular *keys = mx_schema_and(c, a->exists[j].keys, e.keys);
        const mx_goal goal = mx_schema_goal_and(c, a->exists[j].goal, e.goal);
        if (!keys || goal == MX_GOAL_NEVER || mx_regular_is_empty(keys)) continue;
        mx_object_part *o = mx_schema_take(c, sizeof *o);
        mx_key_exists *exists = mx_schema_take(c, (size_t)a->exists_count * sizeof *exists);
        if (!o || !exists) return;
        memcpy(exists, a->exists, (size_t)a->exists_count * sizeof *exists);
        exists[j] = (mx_key_exists){keys, goal};
        exists[at] = exists[a->exists_count - 1];
        *o = *a;
        o->exists = exists;
        o->exists_count--;
        settle_exists(c, o, at, out);
    }
}

/* What is written does not remember the names of others, so that one may come twice: two of them need not be two
 * members, and the last one counts. Where that matters others of few names become named members. */
static void name_others(mx_schema_compiler *c, mx_object_part *a, mx_key_class *others) {
    int required = 0, kept = 0;
    for (int i = 0; i < a->count; i++) required += a->named[i].required;
    if (a->least <= required + 1 && !a->exists_count) return;
    mx_schema_word *words = mx_schema_take(c, MOST_NAMES * sizeof *words);
    mx_member *named = mx_schema_take(c, (size_t)(a->count + MOST_NAMES) * sizeof *named);
    if (!words || !named) return;
    if (a->count) memcpy(named, a->named, (size_t)a->count * sizeof *named);
    for (int i = 0, room = MOST_NAMES; i < a->other_count; i++) {
        const int n = mx_schema_enumerate(c, others[i].keys, words, room);
        if (n < 0) others[kept++] = others[i];
        for (int j = 0; j < n; j++, room--)
            named[a->count++] = (mx_member){words[j].text, words[j].size, others[i].goal, false, others[i].evaluated};
    }
    a->named = named;
    a->other_count = kept;
}

void mx_object_settle(mx_schema_compiler *c, const mx_object_part *a, mx_parts *out) {
    if (a == c->any_object || c->status) {
        mx_parts_add(c, out, a);
        return;
    }
    mx_object_part *o = mx_schema_take(c, sizeof *o);
    mx_key_class *others = mx_schema_take(c, (size_t)a->other_count * sizeof *others);
    if (!o || !others) return;
    *o = *a;
    o->others = others;
    o->other_count = 0;
    mx_regular *unnamed = NULL;
    for (int i = 0; i < a->other_count && !c->status; i++) {
        mx_key_class k = a->others[i];
        if (k.goal == MX_GOAL_NEVER) continue;
        if (!unnamed) unnamed = other_keys(c, a);
        k.keys = mx_schema_and(c, k.keys, unnamed);
        if (k.keys && !mx_regular_is_empty(k.keys)) others[o->other_count++] = k;
    }
    if (o->other_count) name_others(c, o, others);
    settle_exists(c, o, 0, out);
}

/* ---- can there be such an object --------------------------------------------------------------------------------- */
static bool test_or_can(mx_schema_compiler *c, mx_goal goal, mx_goal_test *test, void *context) {
    return test ? test(context, c, goal) : mx_schema_can(c, goal);
}

bool mx_object_fruitful(mx_schema_compiler *c, const mx_object_part *a, mx_goal_test *test, void *context) {
    if (c->status || (a->most >= 0 && a->least > a->most)) return false;
    int64_t required = 0, possible = 0;
    for (int i = 0; i < a->count; i++)
        if (a->named[i].required) {
            if (!test_or_can(c, a->named[i].goal, test, context)) return false;
            required++;
        }
    for (int i = 0; i < a->exists_count; i++) {
        if (mx_regular_is_empty(a->exists[i].keys)) return false;
        if (!test_or_can(c, a->exists[i].goal, test, context)) return false;
    }
    /* What must exist is one of the others, once it is settled; before, it may be a named member. */
    if (a->exists_count && (!test || a->most == 0)) required++;
    if (a->most >= 0 && required > a->most) return false;
    if (a->least <= required) return true;
    for (int i = 0; i < a->count; i++)
        possible += a->named[i].required || test_or_can(c, a->named[i].goal, test, context);
    for (int i = 0; i < a->other_count && possible < a->least; i++)
        if (test_or_can(c, a->others[i].goal, test, context)) return true;
    return possible >= a->least;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */
/* What stands between commas. */
typedef struct entry {
    mx_expr member;
    bool required, many; /* many: any number of them, one after another */
} entry;

typedef struct entries {
    entry *at;
    int count, named; /* the first `named` are single members */
    mx_expr other;    /* 0: there are none */
} entries;

static mx_expr write_key(mx_schema_compiler *c, const mx_member *m) {
    mx_bytes text = {0};
    if (!mx_bytes_add_json(&text, m->key, m->size)) mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
    const mx_expr e = c->status ? 0 : mx_expr_text(c->builder, text.data, text.size);
    mx_bytes_free(&text);
    return e;
}

static mx_expr member_of(mx_schema_compiler *c, mx_expr key, mx_goal goal) {
    return mx_expr_sequence(c->builder, (const mx_expr[]){key, c->colon, mx_schema_write_goal(c, goal)}, 3);
}

static bool list_entries(mx_schema_compiler *c, const mx_object_part *a, entries *out) {
    c->entries += a->count;
    if (c->entries > MOST_ENTRIES)
        mx_schema_fail(c, MX_UNSUPPORTED, NULL, "too complicated: its alternatives have more than %d members",
                       MOST_ENTRIES);
    out->at = mx_schema_take(c, (size_t)(a->count + a->exists_count + 1) * sizeof *out->at);
    mx_expr *choices = mx_schema_take(c, (size_t)a->other_count * sizeof *choices);
    if (!out->at || !choices) return false;
    for (int i = 0; i < a->count; i++)
        if (mx_schema_can(c, a->named[i].goal))
            out->at[out->count++] =
                (entry){member_of(c, write_key(c, &a->named[i]), a->named[i].goal), a->named[i].required, false};
    out->named = out->count;
    int n = 0;
    for (int i = 0; i < a->other_count; i++)
        if (mx_schema_can(c, a->others[i].goal))
            choices[n++] = member_of(c, mx_schema_write_texts(c, a->others[i].keys), a->others[i].goal);
    if (n) {
        const mx_expr other = n == 1 ? choices[0] : mx_expr_choice(c->builder, choices, n);
        mx_rule rule = mx_rule_add(c->builder, "member");
        mx_rule_set(c->builder, rule, other);
        out->other = mx_expr_rule(c->builder, rule);
        out->at[out->count++] = (entry){out->other, false, true};
    }
    for (int i = 0; i < a->exists_count && !c->status; i++) { /* last: nothing behind has the same name */
        const mx_key_exists *e = &a->exists[i];
        for (int j = 0; j < i && !c->status; j++) {
            mx_regular *both = mx_schema_and(c, a->exists[j].keys, e->keys);
            if (both && !mx_regular_is_empty(both))
                mx_schema_fail(c, MX_UNSUPPORTED, NULL,
                               "two things that some member of any name must be (\"not\" around "
                               "\"additionalProperties\" or \"patternProperties\") are not supported: a name may come "
                               "twice. Name them in \"properties\"");
        }
        out->at[out->count++] = (entry){member_of(c, mx_schema_write_texts(c, e->keys), e->goal), true, false};
    }
    return !c->status;
}

/* The entry behind others: with its comma. */
static mx_expr later(mx_schema_compiler *c, const entry *e) {
    const mx_expr one = mx_schema_pair(c, c->comma, e->member);
    return e->required ? one : mx_expr_repeat(c->builder, one, 0, e->many ? -1 : 1);
}

/* All entries from `from` on, something standing before. Long lists are cut into rules, so that each entry is written
 * a bounded number of times. tails[i]: from i on, where i is a multiple of INLINE_TAIL; 0: not yet. */
static mx_expr tail(mx_schema_compiler *c, const entries *list, int from, mx_expr *tails) {
    mx_expr parts[2 * INLINE_TAIL + 1];
    int n = 0, i = from;
    while (i < list->count && (i == from || i % INLINE_TAIL)) parts[n++] = later(c, &list->at[i++]);
    if (i < list->count) parts[n++] = tails[i / INLINE_TAIL];
    return n ? mx_expr_sequence(c->builder, parts, n) : mx_expr_text(c->builder, "", 0);
}

static mx_expr first_entry(mx_schema_compiler *c, const entries *list, int i, mx_expr *tails) {
    const entry *e = &list->at[i];
    mx_expr parts[3] = {e->member};
    int n = 1;
    if (e->many) parts[n++] = later(c, e);
    parts[n++] = tail(c, list, i + 1, tails);
    return mx_expr_sequence(c->builder, parts, n);
}

/* Members without counts. Where one is required, those before it carry their own comma; where none is, each may be the
 * first. */
static mx_expr write_plain(mx_schema_compiler *c, const entries *list) {
    mx_grammar_builder *b = c->builder;
    int required = 0;
    while (required < list->count && !list->at[required].required) required++;
    const int blocks = list->count / INLINE_TAIL + 1;
    mx_expr *tails = mx_schema_take(c, (size_t)blocks * sizeof *tails);
    mx_expr *parts = mx_schema_take(c, (size_t)(list->count + 2) * sizeof *parts);
    if (!tails || !parts) return 0;
    for (int i = blocks - 1; i > 0; i--) {
        if (i * INLINE_TAIL >= list->count) continue;
        mx_rule rule = mx_rule_add(b, "members");
        mx_rule_set(b, rule, tail(c, list, i * INLINE_TAIL, tails));
        tails[i] = mx_expr_rule(b, rule);
    }
    int n = 0;
    if (required < list->count) {
        for (int i = 0; i < required; i++)
            parts[n++] =
                mx_expr_repeat(b, mx_schema_pair(c, list->at[i].member, c->comma), 0, list->at[i].many ? -1 : 1);
        parts[n++] = first_entry(c, list, required, tails);
        return mx_expr_sequence(b, parts, n);
    }
    for (int i = 0; i < list->count; i++) parts[n++] = first_entry(c, list, i, tails);
    return mx_expr_choice(b, parts, n);
}

/* Members with their number: state (i, n): named members before i are decided, n members are written (up to `top`). */
typedef struct numbered {
    const entries *list;
    int64_t least, most, top;
    mx_rule *rules;                     /* [named + 1][top + 1] */
    int *required_from, *possible_from; /* [named + 1] */
} numbered;

static bool may_go_on(const numbered *s, int i, int64_t n) {
    if (s->most >= 0 && n + s->required_from[i] > s->most) return false;
    return s->list->other || n + s->possible_from[i] >= s->least;
}

static mx_expr numbered_state(mx_schema_compiler *c, const numbered *s, int i, int64_t n) {
    mx_grammar_builder *b = c->builder;
    const entries *list = s->list;
    if (i == list->named) {
        const int64_t least = n < s->least ? s->least - n : 0, most = s->most < 0 ? -1 : s->most - n;
        if (!list->other || most == 0) return least ? mx_expr_never(b) : mx_expr_text(b, "", 0);
        if (n) return mx_expr_repeat(b, mx_schema_pair(c, c->comma, list->other), least, most);
        const mx_expr more = mx_expr_repeat(b, mx_schema_pair(c, c->comma, list->other), least ? least - 1 : 0,
                                            most < 0 ? -1 : most - 1);
        const mx_expr some = mx_schema_pair(c, list->other, more);
        return least ? some : mx_schema_optional(c, some);
    }
    mx_expr choices[2];
    int count = 0;
    const int64_t next = n < s->top ? n + 1 : n;
    if (may_go_on(s, i + 1, n + 1)) {
        const mx_expr rest = mx_expr_rule(b, s->rules[(i + 1) * (s->top + 1) + next]);
        const mx_expr with = mx_schema_pair(c, list->at[i].member, rest);
        choices[count++] = n ? mx_schema_pair(c, c->comma, with) : with;
    }
    if (!list->at[i].required && may_go_on(s, i + 1, n))
        choices[count++] = mx_expr_rule(b, s->rules[(i + 1) * (s->top + 1) + n]);
    return count ? mx_expr_choice(b, choices, count) : mx_expr_never(b);
}

static mx_expr write_numbered(mx_schema_compiler *c, const mx_object_part *a, const entries *list) {
    numbered s = {.list = list, .least = a->least, .most = a->most};
    const int named = list->named;
    /* Without an upper bound, more members than `least` are all alike; at least 1, for the comma. */
    s.top = a->most >= 0 && a->most < named + 1 ? a->most + 1 : named + 1;
    if (a->most < 0 && a->least < s.top) s.top = a->least > 1 ? a->least : 1;
    if (a->exists_count)
        mx_schema_fail(c, MX_UNSUPPORTED, NULL,
                       "\"minProperties\" and \"maxProperties\" beside what some member must be are not supported");
    if (c->status || (named + 1) * (s.top + 1) > MOST_STATES) {
        mx_schema_fail(c, MX_UNSUPPORTED, NULL,
                       "\"minProperties\" and \"maxProperties\" beside %d named members are too much to count", named);
        return 0;
    }
    s.rules = mx_schema_take(c, (size_t)((named + 1) * (s.top + 1)) * sizeof *s.rules);
    s.required_from = mx_schema_take(c, (size_t)(named + 1) * sizeof *s.required_from);
    s.possible_from = mx_schema_take(c, (size_t)(named + 1) * sizeof *s.possible_from);
    if (!s.rules || !s.required_from || !s.possible_from) return 0;
    for (int i = named - 1; i >= 0; i--) {
        s.required_from[i] = s.required_from[i + 1] + list->at[i].required;
        s.possible_from[i] = s.possible_from[i + 1] + 1;
    }
    for (int64_t i = 0; i < (named + 1) * (s.top + 1); i++) s.rules[i] = mx_rule_add(c->builder, "members");
    for (int i = 0; i <= named; i++)
        for (int64_t n = 0; n <= s.top; n++)
            mx_rule_set(c->builder, s.rules[i * (s.top + 1) + n],
                        n <= i || n == s.top ? numbered_state(c, &s, i, n) : mx_expr_never(c->builder));
    return mx_expr_rule(c->builder, s.rules[0]);
}

mx_expr mx_schema_write_object(mx_schema_compiler *c, const mx_object_part *a) {
    entries list = {0};
    if (c->status || !list_entries(c, a, &list)) return 0;
    mx_grammar_builder *b = c->builder;
    int required = 0;
    for (int i = 0; i < list.count; i++) required += list.at[i].required;
    if (!list.count || a->most == 0) return c->empty_object;
    if (list.other && a->least > required + 1)
        mx_schema_fail(
            c, MX_UNSUPPORTED, NULL,
            "\"minProperties\" %lld is more than the %d members that are \"required\" and one: others of any "
            "name may come twice. Name them in \"properties\" with \"additionalProperties\": false, or in "
            "\"propertyNames\" with an \"enum\" of at most %d",
            (long long)a->least, required, MOST_NAMES);
    const bool counts = a->least > required || (a->most >= 0 && (list.other || list.named > a->most));
    mx_expr inner;
    if (counts && a->least <= 1 && a->most < 0)
        inner = write_plain(c, &list); /* at least one: what is not empty */
    else
        inner = counts ? write_numbered(c, a, &list) : write_plain(c, &list);
    const mx_expr full = mx_expr_sequence(b, (const mx_expr[]){c->open_object, inner, c->close_object}, 3);
    const bool may_be_empty = !required && a->least == 0;
    return may_be_empty ? mx_expr_choice(b, (const mx_expr[]){c->empty_object, full}, 2) : full;
}
