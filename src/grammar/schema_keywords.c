#include <string.h>

#include "grammar/schema_parts.h"

/* Schemas and values to shapes. */

enum { MOST_DEPTH = 1000, MOST_BRANCHES_SEEN = 5 };

/* ---- shapes of one part ------------------------------------------------------------------------------------------ */
/* Everything of other types, and of this one's parts what is added to the shape. */
static mx_shape *copy_of(mx_schema_compiler *c, const mx_shape *s) {
    mx_shape *new = mx_shape_new(c);
    if (new) *new = *s;
    return new;
}

static const mx_shape *only_strings(mx_schema_compiler *c, const mx_string_part *part, bool negative) {
    mx_shape *s = copy_of(c, negative ? c->none : c->any);
    if (!s) return NULL;
    s->strings = (mx_parts){0};
    if (negative)
        mx_string_complement(c, part, &s->strings);
    else if (!mx_regular_is_empty(part->language) && (part->most < 0 || part->least <= part->most))
        mx_parts_add(c, &s->strings, part);
    return s;
}

static const mx_shape *only_numbers(mx_schema_compiler *c, mx_regular *numbers, bool negative) {
    mx_shape *s = copy_of(c, negative ? c->none : c->any);
    if (!s) return NULL;
    s->number = negative ? mx_schema_without(c, c->number_plain, numbers) : numbers;
    if (s->number && mx_regular_is_empty(s->number)) s->number = NULL;
    return s;
}

static const mx_shape *only_arrays(mx_schema_compiler *c, const mx_array_part *part, bool negative) {
    mx_shape *s = copy_of(c, negative ? c->none : c->any);
    if (!s) return NULL;
    s->arrays = (mx_parts){0};
    if (negative)
        mx_array_complement(c, part, &s->arrays);
    else
        mx_parts_add(c, &s->arrays, part);
    return s;
}

static const mx_shape *only_objects(mx_schema_compiler *c, const mx_object_part *part, bool negative) {
    mx_shape *s = copy_of(c, negative ? c->none : c->any);
    if (!s) return NULL;
    s->objects = (mx_parts){0};
    if (negative)
        mx_object_complement(c, part, &s->objects);
    else
        mx_parts_add(c, &s->objects, part);
    return s;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */
static const mx_shape *array_value(mx_schema_compiler *c, const mx_json *v, bool negative, mx_shape *base) {
    mx_array_part *a = mx_schema_take(c, sizeof *a);
    mx_goal *prefix = mx_schema_take(c, v->count * sizeof *prefix);
    if (!a || !prefix) return NULL;
    *a = (mx_array_part){.prefix = prefix, .rest = MX_GOAL_NEVER, .least = v->count, .most = v->count};
    for (const mx_json *e = v->child; e; e = e->next)
        prefix[a->count++] = mx_schema_goal_of(c, mx_schema_literal_of(c, e, true));
    base->arrays = (mx_parts){0};
    if (negative)
        mx_array_complement(c, a, &base->arrays);
    else
        mx_parts_add(c, &base->arrays, a);
    return base;
}

static const mx_shape *object_value(mx_schema_compiler *c, const mx_json *v, bool negative, mx_shape *base) {
    mx_object_part *o = mx_schema_take(c, sizeof *o);
    mx_member *named = mx_schema_take(c, v->count * sizeof *named);
    mx_key_class *others = mx_schema_take(c, sizeof *others);
    if (!o || !named || !others) return NULL;
    *others = (mx_key_class){c->all_text, MX_GOAL_NEVER, false};
    *o = (mx_object_part){.named = named, .others = others, .other_count = 1, .most = -1, .typed = true};
    for (const mx_json *m = v->child; m; m = m->next) {
        int at = 0; /* a name that is given twice has its last value */
        while (at < o->count && (named[at].size != m->key_size || memcmp(named[at].key, m->key, m->key_size))) at++;
        named[at] =
            (mx_member){m->key, m->key_size, mx_schema_goal_of(c, mx_schema_literal_of(c, m, true)), true, false};
        if (at == o->count) o->count++;
    }
    base->objects = (mx_parts){0};
    if (negative)
        mx_object_complement(c, o, &base->objects);
    else
        mx_parts_add(c, &base->objects, o);
    return base;
}

/* What equals `v`, or does not. */
static const mx_shape *of_value(mx_schema_compiler *c, const mx_json *v, bool negative) {
    mx_shape *s = copy_of(c, negative ? c->any : c->none);
    if (!s) return NULL;
    mx_schema_word word = {v->text, v->size};
    mx_string_part *text;
    mx_regular *number;
    unsigned constant = 0;
    switch (v->type) {
    case MX_JSON_NULL:
        constant = MX_SHAPE_NULL;
        break;
    case MX_JSON_BOOL:
        constant = v->boolean ? MX_SHAPE_TRUE : MX_SHAPE_FALSE;
        break;
    case MX_JSON_NUMBER:
        number = mx_schema_number_values(c, &v, 1, negative);
        s->number = negative ? mx_schema_without(c, c->number_plain, number) : number;
        return s;
    case MX_JSON_STRING:
        text = mx_schema_take(c, sizeof *text);
        if (!text) return NULL;
        *text = (mx_string_part){mx_schema_words(c, &word, 1), 0, -1};
        if (!text->language) return NULL;
        s->strings = (mx_parts){0};
        if (negative)
            mx_string_complement(c, text, &s->strings);
        else
            mx_parts_add(c, &s->strings, text);
        return s;
    case MX_JSON_ARRAY:
        return array_value(c, v, negative, s);
    case MX_JSON_OBJECT:
        return object_value(c, v, negative, s);
    }
    s->constants = negative ? s->constants & ~constant : constant;
    return s;
}

/* All strings of an enum at once: there may be thousands. */
static mx_regular *enum_strings(mx_schema_compiler *c, const mx_json *list) {
    mx_schema_word *words = mx_schema_take(c, list->count * sizeof *words);
    if (!words) return NULL;
    int count = 0;
    for (const mx_json *v = list->child; v; v = v->next)
        if (v->type == MX_JSON_STRING) words[count++] = (mx_schema_word){v->text, v->size};
    return mx_schema_words(c, words, count);
}

static mx_regular *enum_numbers(mx_schema_compiler *c, const mx_json *list, bool negative) {
    const mx_json **numbers = mx_schema_take(c, list->count * sizeof *numbers);
    if (!numbers) return NULL;
    int count = 0;
    for (const mx_json *v = list->child; v; v = v->next)
        if (v->type == MX_JSON_NUMBER) numbers[count++] = v;
    return mx_schema_number_values(c, numbers, count, negative);
}

static const mx_shape *of_enum(mx_schema_compiler *c, const mx_json *node, const mx_json *list, bool negative) {
    if (list->type != MX_JSON_ARRAY) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"enum\" must be an array");
        return NULL;
    }
    mx_string_part *text = mx_schema_take(c, sizeof *text);
    mx_shape *s = copy_of(c, c->none);
    if (!text || !s) return NULL;
    *text = (mx_string_part){enum_strings(c, list), 0, -1};
    mx_regular *numbers = enum_numbers(c, list, negative);
    if (c->status) return NULL;
    if (negative) {
        *s = *c->any;
        s->strings = (mx_parts){0};
        mx_string_complement(c, text, &s->strings);
        s->number = mx_schema_without(c, c->number_plain, numbers);
    } else {
        if (!mx_regular_is_empty(text->language)) mx_parts_add(c, &s->strings, text);
        if (!mx_regular_is_empty(numbers)) s->number = numbers;
    }
    const mx_shape *all = s;
    for (const mx_json *v = list->child; v && !c->status; v = v->next) {
        if (v->type == MX_JSON_STRING || v->type == MX_JSON_NUMBER) continue;
        const mx_shape *one = of_value(c, v, negative);
        if (negative || !one) {
            all = mx_shape_and(c, all, one);
            continue;
        }
        s->constants |= one->constants;
        for (int i = 0; i < one->arrays.count; i++) mx_parts_add(c, &s->arrays, one->arrays.at[i]);
        for (int i = 0; i < one->objects.count; i++) mx_parts_add(c, &s->objects, one->objects.at[i]);
    }
    return all;
}

/* ---- type -------------------------------------------------------------------------------------------------------- */
/* Adds the type to `s`, or (negative) takes it away. */
static bool add_type(mx_schema_compiler *c, mx_shape *s, const mx_json *type, bool negative) {
    unsigned constants = 0;
    if (mx_json_is_string(type, "null")) constants = MX_SHAPE_NULL;
    if (mx_json_is_string(type, "boolean")) constants = MX_SHAPE_TRUE | MX_SHAPE_FALSE;
    if (constants) {
        s->constants = negative ? s->constants & ~constants : s->constants | constants;
    } else if (mx_json_is_string(type, "string")) {
        s->strings = negative ? (mx_parts){0} : c->any->strings;
    } else if (mx_json_is_string(type, "array")) {
        s->arrays = negative ? (mx_parts){0} : c->any->arrays;
    } else if (mx_json_is_string(type, "number")) {
        s->number = negative ? NULL : c->number_full;
    } else if (mx_json_is_string(type, "integer")) {
        if (negative && s->number)
            s->number = mx_schema_without(c, c->number_plain, c->integer_value);
        else if (!negative && s->number != c->number_full)
            s->number = c->integer;
    } else if (mx_json_is_string(type, "object")) {
        s->objects = (mx_parts){0};
        mx_object_part *o = negative ? NULL : mx_schema_take(c, sizeof *o);
        if (!o) return negative;
        *o = *c->any_object;
        o->typed = true;
        mx_parts_add(c, &s->objects, c->options.openai_strict ? o : c->any_object);
    } else
        return false;
    return true;
}

static const mx_shape *of_type(mx_schema_compiler *c, const mx_json *node, const mx_json *type, bool negative) {
    mx_shape *s = copy_of(c, negative ? c->any : c->none);
    const mx_json *one = type->type == MX_JSON_ARRAY ? type->child : type;
    for (; s && one && !c->status; one = type == one ? NULL : one->next)
        if (!add_type(c, s, one, negative))
            mx_schema_fail(c, MX_INVALID_ARGUMENT, node,
                           "\"type\" must be null, boolean, object, array, number, integer or string, or an array of "
                           "these");
    return s;
}

/* ---- keywords that apply other schemas to the same value --------------------------------------------------------- */
static const mx_shape *sub(mx_schema_compiler *c, const mx_json *node, bool negative) {
    return mx_schema_expand(c, mx_schema_literal_of(c, node, false) ^ negative);
}

static const mx_json *list_of(mx_schema_compiler *c, const mx_json *node, const char *keyword) {
    const mx_json *v = mx_json_get(node, keyword);
    if (!v || c->status) return NULL;
    if (v->type != MX_JSON_ARRAY || !v->count) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"%s\" must be an array of at least one schema", keyword);
        return NULL;
    }
    return v;
}

static const mx_shape *all_of(mx_schema_compiler *c, const mx_json *list, bool negative) {
    const mx_shape *s = negative ? c->none : c->any;
    for (const mx_json *v = list->child; v && s; v = v->next)
        s = negative ? mx_shape_or(c, s, sub(c, v, true)) : mx_shape_and(c, s, sub(c, v, false));
    return s;
}

/* Where annotations matter, a value that several alternatives take has been seen by all of them. */
static const mx_shape *any_of(mx_schema_compiler *c, const mx_json *node, const mx_json *list, bool negative) {
    const mx_shape *s = negative ? c->any : c->none;
    if (negative || !c->unevaluated || list->count == 1) {
        for (const mx_json *v = list->child; v && s; v = v->next)
            s = negative ? mx_shape_and(c, s, sub(c, v, true)) : mx_shape_or(c, s, sub(c, v, false));
        return s;
    }
    if (list->count > MOST_BRANCHES_SEEN) {
        mx_schema_fail(
            c, MX_UNSUPPORTED, node,
            "\"anyOf\" of more than %d in a schema that has unevaluatedProperties or unevaluatedItems is not "
            "supported",
            MOST_BRANCHES_SEEN);
        return NULL;
    }
    for (unsigned set = 1; set < 1u << list->count && s; set++) {
        const mx_shape *both = c->any;
        unsigned i = 0;
        for (const mx_json *v = list->child; v && both; v = v->next, i++)
            if (set >> i & 1) both = mx_shape_and(c, both, sub(c, v, false));
        s = mx_shape_or(c, s, both);
    }
    return s;
}

/* Members that can only be one text: what tells the alternatives of most schemas apart, at once. */
enum { MOST_TAGS = 4 };
typedef struct tag {
    const mx_member *member;
    const mx_json *text;
} tag;
typedef struct tags {
    tag at[MOST_TAGS];
    int count;
} tags;

static const mx_json *only_text(const mx_schema_compiler *c, mx_goal goal) {
    const mx_schema_goal *g = &c->goals[goal];
    if (g->count != 1) return NULL;
    const mx_schema_literal *l = &c->literals[g->literals[0]];
    if (l->negative) return NULL;
    if (!l->value && mx_json_get(l->node, "nullable")) return NULL;
    const mx_json *value = l->value ? l->node : mx_json_get(l->node, "const");
    const mx_json *list = value ? NULL : mx_json_get(l->node, "enum");
    if (list && list->type == MX_JSON_ARRAY && list->count == 1) value = list->child;
    return value && value->type == MX_JSON_STRING ? value : NULL;
}

static tags tags_of(const mx_schema_compiler *c, const mx_shape *s) {
    tags t = {0};
    if (s->constants || s->number || s->strings.count || s->arrays.count || s->objects.count != 1) return t;
    const mx_object_part *o = s->objects.at[0];
    for (int i = 0; i < o->count && t.count < MOST_TAGS; i++) {
        const mx_json *text = only_text(c, o->named[i].goal);
        if (text) t.at[t.count++] = (tag){&o->named[i], text};
    }
    return t;
}

static bool apart(const tags *a, const tags *b) {
    for (int i = 0; i < a->count; i++)
        for (int j = 0; j < b->count; j++) {
            const mx_member *m = a->at[i].member, *n = b->at[j].member;
            const mx_json *x = a->at[i].text, *y = b->at[j].text;
            if ((m->required || n->required) && m->size == n->size && !memcmp(m->key, n->key, m->size) &&
                (x->size != y->size || memcmp(x->text, y->text, x->size) != 0))
                return true;
        }
    return false;
}

/* Exactly one. Where two alternatives have no value in common, as they should not, nothing is to be taken away. */
static const mx_shape *one_of(mx_schema_compiler *c, const mx_json *list, bool negative) {
    const mx_shape **shapes = mx_schema_take(c, list->count * sizeof *shapes);
    const mx_json **nodes = mx_schema_take(c, list->count * sizeof *nodes);
    tags *told = mx_schema_take(c, list->count * sizeof *told);
    if (!shapes || !nodes || !told) return NULL;
    uint32_t n = 0;
    for (const mx_json *v = list->child; v; v = v->next) {
        shapes[n] = sub(c, v, false);
        if (!shapes[n]) return NULL;
        told[n] = tags_of(c, shapes[n]);
        nodes[n++] = v;
    }
    const mx_shape *result = c->none, *neither = c->any;
    for (uint32_t i = 0; i < n && !c->status; i++) {
        const mx_shape *alone = shapes[i];
        if (negative) neither = mx_shape_and(c, neither, sub(c, nodes[i], true));
        for (uint32_t j = negative ? i + 1 : 0; j < n && !c->status; j++) {
            if (i == j || apart(&told[i], &told[j])) continue;
            const mx_shape *both = mx_shape_and(c, shapes[i], shapes[j]);
            if (!both || mx_schema_surely_empty(c, both)) continue;
            if (negative)
                result = mx_shape_or(c, result, mx_shape_unannotated(c, both));
            else
                alone = mx_shape_and(c, alone, sub(c, nodes[j], true));
        }
        if (!negative) result = mx_shape_or(c, result, alone);
    }
    return negative ? mx_shape_or(c, result, neither) : result;
}

static const mx_shape *if_then_else(mx_schema_compiler *c, const mx_json *node, bool negative) {
    const mx_json *condition = mx_json_get(node, "if"), *then = mx_json_get(node, "then");
    const mx_json *otherwise = mx_json_get(node, "else");
    const mx_shape *yes = sub(c, condition, false), *no = sub(c, condition, true);
    if (negative) {
        yes = then ? mx_shape_and(c, yes, sub(c, then, true)) : c->none;
        no = otherwise ? mx_shape_and(c, no, sub(c, otherwise, true)) : c->none;
    } else {
        if (then) yes = mx_shape_and(c, yes, sub(c, then, false));
        if (otherwise) no = mx_shape_and(c, no, sub(c, otherwise, false));
    }
    return mx_shape_or(c, yes, no);
}

/* An object that has, or does not have, this member. Whatever is no object has none. */
static const mx_shape *has_member(mx_schema_compiler *c, const char *key, size_t size, bool has) {
    mx_object_part *o = mx_schema_take(c, sizeof *o);
    mx_member *named = mx_schema_take(c, sizeof *named);
    mx_shape *s = copy_of(c, has ? c->none : c->any);
    if (!o || !named || !s) return NULL;
    *named = (mx_member){key, size, has ? MX_GOAL_ANY : MX_GOAL_NEVER, has, false};
    *o = *c->any_object;
    o->named = named;
    o->count = 1;
    s->objects = (mx_parts){0};
    mx_parts_add(c, &s->objects, o);
    return s;
}

static const mx_shape *requires(mx_schema_compiler *c, const mx_json *node, const mx_json *names, bool negative) {
    const mx_shape *s = negative ? c->none : c->any;
    if (names->type != MX_JSON_ARRAY) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"dependentRequired\" must have arrays of names");
        return NULL;
    }
    for (const mx_json *v = names->child; v && s; v = v->next) {
        if (v->type != MX_JSON_STRING) {
            mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"dependentRequired\" must have arrays of names");
            return NULL;
        }
        const mx_shape *one = has_member(c, v->text, v->size, !negative);
        s = negative ? mx_shape_or(c, s, one) : mx_shape_and(c, s, one);
    }
    return s;
}

static const mx_shape *dependent(mx_schema_compiler *c, const mx_json *node, const mx_json *list, bool schemas,
                                 bool negative) {
    const mx_shape *s = negative ? c->none : c->any;
    if (list->type != MX_JSON_OBJECT) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"%s\" must be an object", list->key);
        return NULL;
    }
    for (const mx_json *m = list->child; m && s; m = m->next) {
        const bool names = !schemas || (m->type == MX_JSON_ARRAY && mx_json_get(node, "dependencies") == list);
        const mx_shape *what = names ? requires(c, node, m, negative) : sub(c, m, negative);
        const mx_shape *with = mx_shape_and(c, has_member(c, m->key, m->key_size, true), what);
        if (negative)
            s = mx_shape_or(c, s, with);
        else
            s = mx_shape_and(c, s, mx_shape_or(c, has_member(c, m->key, m->key_size, false), with));
    }
    return s;
}

/* ---- unevaluated ------------------------------------------------------------------------------------------------- */
/* Members that nothing has seen must be of `goal`. */
static const mx_object_part *close_object(mx_schema_compiler *c, const mx_object_part *a, mx_goal goal) {
    mx_object_part *o = mx_schema_take(c, sizeof *o);
    mx_member *named = mx_schema_take(c, (size_t)a->count * sizeof *named);
    mx_key_class *others = mx_schema_take(c, (size_t)a->other_count * sizeof *others);
    if (!o || !named || !others) return NULL;
    *o = *a;
    for (int i = 0; i < a->count; i++) {
        named[i] = a->named[i];
        if (!named[i].evaluated) named[i].goal = mx_schema_goal_and(c, named[i].goal, goal);
        named[i].evaluated = true;
    }
    for (int i = 0; i < a->other_count; i++) {
        others[i] = a->others[i];
        if (!others[i].evaluated) others[i].goal = mx_schema_goal_and(c, others[i].goal, goal);
        others[i].evaluated = true;
    }
    o->named = named;
    o->others = others;
    return o;
}

static const mx_array_part *close_array(mx_schema_compiler *c, const mx_array_part *a, mx_goal goal,
                                        const mx_json *node) {
    if (a->evaluated == INT64_MAX) return a;
    if (a->partly) {
        mx_schema_fail(c, MX_UNSUPPORTED, node, "\"unevaluatedItems\" beside \"contains\" is not supported");
        return NULL;
    }
    mx_array_part *s = mx_schema_take(c, sizeof *s);
    const int count = a->evaluated > a->count ? (int)a->evaluated : a->count;
    mx_goal *prefix = mx_schema_take(c, (size_t)count * sizeof *prefix);
    if (!s || !prefix) return NULL;
    *s = *a;
    for (int i = 0; i < count; i++) {
        prefix[i] = i < a->count ? a->prefix[i] : a->rest;
        if (i >= a->evaluated) prefix[i] = mx_schema_goal_and(c, prefix[i], goal);
    }
    s->prefix = prefix;
    s->count = count;
    s->rest = mx_schema_goal_and(c, a->rest, goal);
    s->evaluated = INT64_MAX;
    return s;
}

static const mx_shape *unevaluated(mx_schema_compiler *c, const mx_json *node, const mx_shape *a) {
    const mx_json *items = mx_json_get(node, "unevaluatedItems");
    const mx_json *properties = mx_json_get(node, "unevaluatedProperties");
    mx_shape *s = copy_of(c, a);
    if (!s) return NULL;
    if (items) {
        s->arrays = (mx_parts){0};
        const mx_goal goal = mx_schema_goal_valid(c, items);
        for (int i = 0; i < a->arrays.count && !c->status; i++)
            mx_parts_add(c, &s->arrays, close_array(c, a->arrays.at[i], goal, node));
    }
    if (properties) {
        s->objects = (mx_parts){0};
        const mx_goal goal = mx_schema_goal_valid(c, properties);
        for (int i = 0; i < a->objects.count && !c->status; i++)
            mx_parts_add(c, &s->objects, close_object(c, a->objects.at[i], goal));
    }
    return c->status ? NULL : s;
}

/* ---- schemas ----------------------------------------------------------------------------------------------------- */
static const char *const known[] = {"$ref",
                                    "$defs",
                                    "definitions",
                                    "$id",
                                    "$schema",
                                    "$anchor",
                                    "$dynamicAnchor",
                                    "$comment",
                                    "type",
                                    "enum",
                                    "const",
                                    "properties",
                                    "required",
                                    "additionalProperties",
                                    "patternProperties",
                                    "propertyNames",
                                    "minProperties",
                                    "maxProperties",
                                    "items",
                                    "prefixItems",
                                    "minItems",
                                    "maxItems",
                                    "contains",
                                    "minContains",
                                    "maxContains",
                                    "uniqueItems",
                                    "minLength",
                                    "maxLength",
                                    "pattern",
                                    "format",
                                    "minimum",
                                    "maximum",
                                    "exclusiveMinimum",
                                    "exclusiveMaximum",
                                    "multipleOf",
                                    "allOf",
                                    "anyOf",
                                    "oneOf",
                                    "not",
                                    "if",
                                    "then",
                                    "else",
                                    "dependentRequired",
                                    "dependentSchemas",
                                    "dependencies",
                                    "unevaluatedItems",
                                    "unevaluatedProperties",
                                    "nullable"};
static const char *const annotations[] = {
    "title",        "description", "default",         "example",          "examples",      "deprecated",
    "readOnly",     "writeOnly",   "contentEncoding", "contentMediaType", "contentSchema", "discriminator",
    "externalDocs", "xml",         "propertyOrdering"};

static bool is_among(const mx_json *member, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strlen(names[i]) == member->key_size && !memcmp(names[i], member->key, member->key_size)) return true;
    return false;
}

bool mx_schema_annotates(const mx_json *member) {
    return (member->key_size > 1 && !strncmp(member->key, "x-", 2)) ||
           is_among(member, annotations, sizeof annotations / sizeof *annotations);
}

static void check_keywords(mx_schema_compiler *c, const mx_json *node) {
    for (const mx_json *m = node->child; m && !c->status; m = m->next) {
        if (!mx_schema_annotates(m) && !is_among(m, known, sizeof known / sizeof *known))
            mx_schema_fail(c, MX_UNSUPPORTED, node, "\"%.60s\" is not supported", m->key);
    }
    const mx_json *dialect = mx_json_get(node, "$schema");
    if (dialect && (dialect->type != MX_JSON_STRING || (strncmp(dialect->text, "https://json-schema.org/", 24) != 0 &&
                                                        strncmp(dialect->text, "http://json-schema.org/", 23) != 0)))
        mx_schema_fail(c, MX_UNSUPPORTED, node,
                       "\"$schema\": \"%.100s\" is not supported: https://json-schema.org/"
                       "draft/2020-12/schema is",
                       dialect->type == MX_JSON_STRING ? dialect->text : "");
}

/* Adds what one keyword says: intersected, or (negative) its opposites united. */
static void combine(mx_schema_compiler *c, const mx_shape **all, const mx_shape *one, bool negative) {
    if (!*all || !one) {
        *all = NULL;
        return;
    }
    *all = negative ? mx_shape_or(c, *all, one) : mx_shape_and(c, *all, one);
}

static void combine_types(mx_schema_compiler *c, const mx_json *node, const mx_shape **all, bool negative) {
    const bool strict = c->options.openai_strict;
    if (negative) c->options.openai_strict = false; /* it says what a valid value is like */
    const mx_string_part *string = mx_schema_string_part(c, node);
    if (string) combine(c, all, only_strings(c, string, negative), negative);
    mx_regular *numbers = mx_schema_number_language(c, node);
    if (numbers) combine(c, all, only_numbers(c, numbers, negative), negative);
    const mx_array_part *array = mx_schema_array_part(c, node);
    if (array) combine(c, all, only_arrays(c, array, negative), negative);
    const mx_object_part *object = mx_schema_object_part(c, node);
    if (object) combine(c, all, only_objects(c, object, negative), negative);
    c->options.openai_strict = strict;
}

static void combine_schemas(mx_schema_compiler *c, const mx_json *node, const mx_shape **all, bool negative) {
    const mx_json *v;
    if ((v = mx_json_get(node, "$ref"))) {
        const mx_json *target = mx_schema_resolve(c, node, v);
        if (target) combine(c, all, sub(c, target, negative), negative);
    }
    if ((v = list_of(c, node, "allOf"))) combine(c, all, all_of(c, v, negative), negative);
    if ((v = list_of(c, node, "anyOf"))) combine(c, all, any_of(c, node, v, negative), negative);
    if ((v = list_of(c, node, "oneOf"))) combine(c, all, one_of(c, v, negative), negative);
    if ((v = mx_json_get(node, "not"))) combine(c, all, mx_shape_unannotated(c, sub(c, v, !negative)), negative);
    if (mx_json_get(node, "if")) combine(c, all, if_then_else(c, node, negative), negative);
    if ((v = mx_json_get(node, "dependentRequired"))) combine(c, all, dependent(c, node, v, false, negative), negative);
    if ((v = mx_json_get(node, "dependentSchemas"))) combine(c, all, dependent(c, node, v, true, negative), negative);
    if ((v = mx_json_get(node, "dependencies"))) combine(c, all, dependent(c, node, v, true, negative), negative);
}

/* OpenAPI 3.0's "nullable": null is valid too, whatever the other keywords say. */
static const mx_shape *or_null(mx_schema_compiler *c, const mx_json *node, const mx_shape *all, bool negative) {
    const mx_json *nullable = mx_json_get(node, "nullable");
    if (nullable && nullable->type != MX_JSON_BOOL)
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"nullable\" must be true or false");
    if (!nullable || !nullable->boolean || c->status || !all) return all;
    mx_shape *s = copy_of(c, all);
    if (!s) return NULL;
    s->constants = negative ? s->constants & ~(unsigned)MX_SHAPE_NULL : s->constants | MX_SHAPE_NULL;
    return s;
}

static const mx_shape *of_schema(mx_schema_compiler *c, const mx_json *node, bool negative) {
    if (node->type == MX_JSON_BOOL) return node->boolean != negative ? c->any : c->none;
    if (node->type != MX_JSON_OBJECT) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "a schema must be an object, true or false");
        return NULL;
    }
    check_keywords(c, node);
    const mx_shape *all = negative ? c->none : c->any;
    const mx_json *v;
    if ((v = mx_json_get(node, "type"))) combine(c, &all, of_type(c, node, v, negative), negative);
    if ((v = mx_json_get(node, "enum"))) combine(c, &all, of_enum(c, node, v, negative), negative);
    if ((v = mx_json_get(node, "const"))) combine(c, &all, of_value(c, v, negative), negative);
    if (!c->status) combine_types(c, node, &all, negative);
    if (!c->status) combine_schemas(c, node, &all, negative);
    const mx_json *rest = mx_json_get(node, "unevaluatedItems");
    if (!rest) rest = mx_json_get(node, "unevaluatedProperties");
    if (rest && !c->status && negative)
        mx_schema_fail(c, MX_UNSUPPORTED, node, "\"%s\" is not supported where its opposite is asked", rest->key);
    if (rest && !c->status) all = unevaluated(c, node, all);
    if (negative) all = mx_shape_unannotated(c, all);
    all = or_null(c, node, all, negative);
    return c->status ? NULL : all;
}

/* NULL: the status is set. While one looks into values only to find out whether there are any (`trying`), what is
 * still being expanded is anything (and `blocked` says so): what was made of it is not kept. */
const mx_shape *mx_schema_expand(mx_schema_compiler *c, mx_literal literal) {
    if (c->status) return NULL;
    const mx_schema_literal l = c->literals[literal];
    if (l.shape) return l.shape;
    if (l.busy && c->trying) {
        c->blocked = true;
        return c->any;
    }
    if (l.busy) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, l.node, "refers to itself before any value is read");
        return NULL;
    }
    if (c->depth == MOST_DEPTH) {
        mx_schema_fail(c, MX_UNSUPPORTED, l.node, "more than %d references from one to the next", MOST_DEPTH);
        return NULL;
    }
    c->depth++;
    c->literals[literal].busy = true;
    const bool before = c->blocked;
    const mx_json *outer = c->current;
    c->blocked = false;
    c->current = l.node;
    const mx_shape *shape = l.value ? of_value(c, l.node, l.negative) : of_schema(c, l.node, l.negative);
    c->literals[literal].busy = false;
    c->current = outer;
    c->depth--;
    if (!c->blocked) c->literals[literal].shape = shape;
    c->blocked |= before;
    return shape;
}

/* ---- goals ------------------------------------------------------------------------------------------------------- */
/* OpenAI's "strict": what no property is named for must not be there. */
static const mx_shape *strictly(mx_schema_compiler *c, const mx_shape *a) {
    mx_shape *s = copy_of(c, a);
    if (!s) return NULL;
    s->objects = (mx_parts){0};
    for (int i = 0; i < a->objects.count; i++) {
        const mx_object_part *o = a->objects.at[i];
        mx_parts_add(c, &s->objects, o->typed ? close_object(c, o, MX_GOAL_NEVER) : o);
    }
    return s;
}

static const mx_shape *settle(mx_schema_compiler *c, const mx_shape *a) {
    mx_shape *s = copy_of(c, a);
    if (!s) return NULL;
    s->objects = (mx_parts){0};
    for (int i = 0; i < a->objects.count; i++) mx_object_settle(c, a->objects.at[i], &s->objects);
    return s;
}

const mx_shape *mx_schema_goal_shape(mx_schema_compiler *c, mx_goal goal) {
    if (c->status) return NULL;
    if (c->goals[goal].shape) return c->goals[goal].shape;
    const mx_schema_goal g = c->goals[goal];
    const bool before = c->blocked;
    c->blocked = false;
    const mx_shape *all = c->any;
    for (int i = 0; i < g.count && all; i++) {
        const mx_shape *one = mx_schema_expand(c, g.literals[i]);
        const mx_schema_literal *l = &c->literals[g.literals[i]];
        if (one && c->options.openai_strict && !l->value && !l->negative) one = strictly(c, one);
        all = mx_shape_and(c, all, one);
    }
    if (all) all = settle(c, all);
    if (c->status) return NULL;
    if (!c->blocked) c->goals[goal].shape = all;
    c->blocked |= before;
    return all;
}

/* false: there is no room. */
static bool add_value(mx_schema_value *values, int *count, int most, mx_schema_word text) {
    if (*count == most) return false;
    values[(*count)++] = (mx_schema_value){{text}, 1};
    return true;
}

static bool add_number(mx_schema_compiler *c, mx_schema_value *values, mx_schema_word *shortest, int *count, int first,
                       int most, mx_schema_word text) {
    mx_schema_word is;
    if (!mx_schema_shortest(c, text, &is)) return false;
    for (int i = first; i < *count; i++)
        if (shortest[i].size == is.size && !memcmp(shortest[i].text, is.text, is.size)) {
            if (values[i].count == MX_SCHEMA_SPELLINGS) return false;
            values[i].texts[values[i].count++] = text;
            return true;
        }
    if (!add_value(values, count, most, text)) return false;
    shortest[*count - 1] = is;
    return true;
}

static bool add_string_value(mx_schema_compiler *c, mx_schema_value *values, int *count, int most,
                             mx_schema_word word) {
    mx_bytes text = {0};
    char *copy = mx_bytes_add_json(&text, word.text, word.size) ? mx_schema_take(c, text.size) : NULL;
    if (copy) memcpy(copy, text.data, text.size);
    const size_t size = text.size;
    mx_bytes_free(&text);
    return copy && add_value(values, count, most, (mx_schema_word){copy, size});
}

int mx_schema_values(mx_schema_compiler *c, mx_goal goal, mx_schema_value *values, int most) {
    const mx_shape *s = c->goals[goal].shape;
    if (c->status || !s || s->arrays.count || s->objects.count) return -1;
    static const char *const names[] = {"null", "false", "true"};
    const int room = MX_SCHEMA_SPELLINGS * most;
    mx_schema_word *words = mx_schema_take(c, (size_t)room * sizeof *words);
    mx_schema_word *shortest = mx_schema_take(c, (size_t)most * sizeof *shortest);
    if (!words || !shortest) return -1;
    int n = 0;
    for (int i = 0; i < 3; i++)
        if (s->constants >> i & 1 && !add_value(values, &n, most, (mx_schema_word){names[i], strlen(names[i])}))
            return -1;
    const int first = n, numbers = s->number ? mx_schema_enumerate(c, s->number, words, room) : 0;
    if (numbers < 0) return -1;
    for (int i = 0; i < numbers; i++)
        if (!add_number(c, values, shortest, &n, first, most, words[i])) return -1;
    for (int i = 0; i < s->strings.count; i++) {
        const mx_string_part *part = s->strings.at[i];
        if (part->least > 0 || part->most >= 0) return -1;
        const int found = mx_schema_enumerate(c, part->language, words, most - n);
        if (found < 0) return -1;
        for (int j = 0; j < found; j++)
            if (!add_string_value(c, values, &n, most, words[j])) return -1;
    }
    return n;
}
