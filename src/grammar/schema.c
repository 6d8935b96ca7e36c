#include "grammar/schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/regular_private.h"
#include "grammar/schema_parts.h"

enum { BLOCK_SIZE = 1 << 16, MOST_GOALS = 50000, MOST_SPACES = 40 };
/* One schema's: steps of all its languages together (about a second), and bytes of its parts and of its grammar. */
static const int64_t MOST_WORK = 150000000, MOST_MEMORY = 64 << 20;

struct mx_schema_block {
    struct mx_schema_block *next;
    size_t used, size;
    _Alignas(16) char data[];
};

void *mx_schema_take(mx_schema_compiler *c, size_t size) {
    size = (size + 15) / 16 * 16;
    struct mx_schema_block *b = c->blocks;
    if (!b || b->size - b->used < size) {
        size_t n = size > BLOCK_SIZE ? size : BLOCK_SIZE;
        c->work += (int64_t)n;
        if (c->work > MOST_MEMORY) {
            mx_schema_fail(c, MX_UNSUPPORTED, NULL, "too complicated: its parts take more than %lld MiB",
                           (long long)(MOST_MEMORY >> 20));
            return NULL;
        }
        b = calloc(1, sizeof *b + n);
        if (!b) {
            mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
            return NULL;
        }
        *b = (struct mx_schema_block){.next = c->blocks, .size = n};
        c->blocks = b;
    }
    void *p = b->data + b->used;
    b->used += size;
    return p;
}

void mx_schema_fail(mx_schema_compiler *c, mx_status status, const mx_json *node, const char *format, ...) {
    if (c->status) return;
    c->status = status;
    char text[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    mx_bytes place = {0};
    if (!node) node = c->current;
    if (node) mx_schema_place(&place, c->root, node);
    if (place.size > 300) { /* the end says more than the beginning */
        memmove(place.data + 3, place.data + place.size - 297, 298);
        memcpy(place.data, "...", 3);
    }
    if (place.size)
        mx_fail(c->error, status, "%s: %s: %s", c->name, place.data, text);
    else
        mx_fail(c->error, status, "%s: %s", c->name, text);
    mx_bytes_free(&place);
}

/* ---- languages --------------------------------------------------------------------------------------------------- */
mx_regular *mx_schema_own(mx_schema_compiler *c, const mx_json *node, mx_status status, mx_regular *language,
                          const mx_error *error) {
    if (status) {
        mx_schema_fail(c, status, node, "%s", error->text);
        return NULL;
    }
    if (c->language_count == c->language_room) {
        int room = c->language_room ? 2 * c->language_room : 64;
        mx_regular **more = realloc(c->languages, (size_t)room * sizeof *more);
        if (!more) {
            mx_regular_free(language);
            mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
            return NULL;
        }
        c->languages = more;
        c->language_room = room;
    }
    return c->languages[c->language_count++] = language;
}

mx_regular *mx_schema_and(mx_schema_compiler *c, mx_regular *a, mx_regular *b) {
    if (c->status || !a || !b) return NULL;
    if (a == b || b == c->all_text) return a;
    if (a == c->all_text) return b;
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_intersect(a, b, &r, &error);
    return mx_schema_own(c, NULL, status, r, &error);
}

mx_regular *mx_schema_or(mx_schema_compiler *c, mx_regular *a, mx_regular *b) {
    if (c->status || !a || !b) return NULL;
    if (a == b || a == c->all_text) return a;
    if (b == c->all_text) return b;
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_union(a, b, &r, &error);
    return mx_schema_own(c, NULL, status, r, &error);
}

mx_regular *mx_schema_not(mx_schema_compiler *c, mx_regular *a) {
    if (c->status || !a) return NULL;
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_complement(a, &r, &error);
    return mx_schema_own(c, NULL, status, r, &error);
}

mx_regular *mx_schema_without(mx_schema_compiler *c, mx_regular *a, mx_regular *b) {
    return mx_schema_and(c, a, mx_schema_not(c, b));
}

mx_regular *mx_schema_regex(mx_schema_compiler *c, const char *pattern) {
    if (c->status) return NULL;
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_parse(pattern, strlen(pattern), true, &r, &error);
    return mx_schema_own(c, NULL, status, r, &error);
}

int64_t mx_schema_recall(const mx_schema_compiler *c, uint64_t key) {
    if (!c->memo_size) return -1;
    for (uint64_t slot = key;; slot++) {
        const struct mx_schema_memo *m = &c->memo[slot & (uint64_t)(c->memo_size - 1)];
        if (m->key == key) return m->index;
        if (!m->key) return -1;
    }
}

static void put(struct mx_schema_memo *memo, int size, struct mx_schema_memo new) {
    uint64_t slot = new.key;
    while (memo[slot & (uint64_t)(size - 1)].key) slot++;
    memo[slot & (uint64_t)(size - 1)] = new;
}

void mx_schema_remember(mx_schema_compiler *c, uint64_t key, int64_t index) {
    if (c->status || !key) return;
    if (2 * c->memo_count >= c->memo_size) {
        const int size = c->memo_size ? 2 * c->memo_size : 256;
        struct mx_schema_memo *more = calloc((size_t)size, sizeof *more);
        if (!more) return; /* it is only slower */
        for (int i = 0; i < c->memo_size; i++)
            if (c->memo[i].key) put(more, size, c->memo[i]);
        free(c->memo);
        c->memo = more;
        c->memo_size = size;
    }
    put(c->memo, c->memo_size, (struct mx_schema_memo){key, index});
    c->memo_count++;
}

static int by_text(const void *x, const void *y) {
    const mx_schema_word *a = x, *b = y;
    const size_t n = a->size < b->size ? a->size : b->size;
    const int order = n ? memcmp(a->text, b->text, n) : 0;
    return order ? order : (a->size > b->size) - (a->size < b->size);
}

/* A tree of the words, which is made minimal. `words` are sorted: a word leaves the last one's path where they part. */
static mx_status words_tree(const mx_schema_word *words, int count, mx_regular **out, mx_error *error) {
    mx_raw raw = {.classes = 1};
    for (int i = 0; i < count; i++) /* class 0: bytes of no word */
        for (size_t j = 0; j < words[i].size; j++) {
            uint8_t *class = &raw.class_of[(uint8_t)words[i].text[j]];
            if (!*class) *class = (uint8_t)raw.classes++;
        }
    size_t longest = 0;
    for (int i = 0; i < count; i++) longest = words[i].size > longest ? words[i].size : longest;
    int *path = malloc((longest + 1) * sizeof *path);
    mx_status status = path ? mx_raw_add(&raw, false, error) : mx_fail(error, MX_NO_MEMORY, "no memory for its texts");
    if (path) path[0] = 0;
    for (int i = 0; !status && i < count; i++) {
        const mx_schema_word *w = &words[i], *before = i ? &words[i - 1] : NULL;
        size_t same = 0;
        while (before && same < w->size && same < before->size && w->text[same] == before->text[same]) same++;
        for (size_t j = same; !status && j < w->size; j++) {
            status = mx_raw_add(&raw, false, error);
            if (status) break;
            raw.next[(size_t)path[j] * (size_t)raw.classes + raw.class_of[(uint8_t)w->text[j]]] = raw.states - 1;
            path[j + 1] = raw.states - 1;
        }
        if (!status) raw.accepting[path[w->size]] = true;
    }
    if (!status) status = mx_raw_minimal(&raw, out, error);
    mx_raw_free(&raw);
    free(path);
    return status;
}

/* Many words are too many states for one tree, but not for a minimal automaton: in pieces. */
mx_regular *mx_schema_words(mx_schema_compiler *c, mx_schema_word *words, int count) {
    enum { PIECE = 60000 }; /* bytes */
    if (c->status) return NULL;
    if (count) qsort(words, (size_t)count, sizeof *words, by_text);
    mx_regular *all = NULL;
    for (int i = 0; i < count || !all;) {
        int end = i;
        for (size_t bytes = 0; end < count && (end == i || bytes + words[end].size < PIECE); end++)
            bytes += words[end].size;
        mx_regular *r = NULL;
        mx_error error;
        mx_status status = words_tree(count ? words + i : NULL, end - i, &r, &error);
        r = mx_schema_own(c, NULL, status, r, &error);
        all = all ? mx_schema_or(c, all, r) : r;
        if (!all) return NULL;
        i = end;
    }
    return all;
}

typedef struct walk {
    mx_schema_compiler *c;
    mx_regular_view view;
    mx_schema_word *words;
    int found, most;
    char text[4096];
} walk;

static bool walk_words(walk *w, int state, size_t size) {
    if (w->view.accepting[state]) {
        char *copy = w->found < w->most ? mx_schema_take(w->c, size + 1) : NULL;
        if (!copy) return false;
        memcpy(copy, w->text, size);
        w->words[w->found++] = (mx_schema_word){copy, size};
    }
    for (int byte = 0; byte < 256; byte++) {
        const int next = w->view.next[(size_t)state * (size_t)w->view.classes + w->view.class_of[byte]];
        if (next < 0) continue;
        if (size == sizeof w->text) return false;
        w->text[size] = (char)byte;
        if (!walk_words(w, next, size + 1)) return false;
    }
    return true;
}

int mx_schema_enumerate(mx_schema_compiler *c, mx_regular *language, mx_schema_word *words, int most) {
    if (c->status) return -1;
    if (mx_regular_is_empty(language)) return 0;
    walk w = {.c = c, .view = mx_regular_look(language), .words = words, .most = most};
    return walk_words(&w, 0, 0) ? w.found : -1;
}

/* ---- expressions ------------------------------------------------------------------------------------------------- */
mx_expr mx_schema_pair(mx_schema_compiler *c, mx_expr a, mx_expr b) {
    return mx_expr_sequence(c->builder, (const mx_expr[]){a, b}, 2);
}

mx_expr mx_schema_optional(mx_schema_compiler *c, mx_expr e) {
    return mx_expr_repeat(c->builder, e, 0, 1);
}

bool mx_schema_can(const mx_schema_compiler *c, mx_goal goal) {
    return c->goals[goal].fruitful;
}

/* An expression that many places use. */
static mx_expr shared(mx_schema_compiler *c, const char *name, mx_expr e) {
    mx_rule rule = mx_rule_add(c->builder, name);
    mx_rule_set(c->builder, rule, e);
    return mx_expr_rule(c->builder, rule);
}

static mx_expr regex_expr(mx_schema_compiler *c, const char *pattern) {
    mx_regular *language = mx_schema_regex(c, pattern);
    return language ? mx_expr_regular(c->builder, language) : 0;
}

static void write_setup(mx_schema_compiler *c) {
    mx_grammar_builder *b = c->builder;
    if (c->options.spaces == MX_SPACES_NONE) {
        c->comma = mx_expr_string(b, ",");
        c->colon = mx_expr_string(b, ":");
        c->open_object = mx_expr_string(b, "{");
        c->close_object = mx_expr_string(b, "}");
        c->open_array = mx_expr_string(b, "[");
        c->close_array = mx_expr_string(b, "]");
    } else {
        char pattern[64];
        c->colon = regex_expr(c, ": ?");
        static const char *const open[] = {",", "\\{", "\\["}, *const close[] = {"\\}", "\\]"};
        mx_expr *const opens[] = {&c->comma, &c->open_object, &c->open_array};
        mx_expr *const closes[] = {&c->close_object, &c->close_array};
        for (int i = 0; i < 3; i++) {
            snprintf(pattern, sizeof pattern, "%s( |\\n( {0,%d}|\\t{0,%d}))?", open[i], MOST_SPACES, MOST_SPACES / 2);
            *opens[i] = shared(c, open[i], regex_expr(c, pattern));
        }
        for (int i = 0; i < 2; i++) {
            snprintf(pattern, sizeof pattern, "( |\\n( {0,%d}|\\t{0,%d}))?%s", MOST_SPACES, MOST_SPACES / 2, close[i]);
            *closes[i] = shared(c, close[i], regex_expr(c, pattern));
        }
    }
    c->empty_object = mx_expr_string(b, "{}");
    c->empty_array = mx_expr_string(b, "[]");
    c->quote = mx_expr_string(b, "\"");
    /* A character as a JSON string may have it: surrogates only in pairs. */
#define CHARACTER                                                                                                      \
    "[^\"\\\\\\u0000-\\u001f]|\\\\([\"\\\\/bfnrt]|u([0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|"            \
    "[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
    c->character = shared(c, "character", regex_expr(c, CHARACTER));
    c->free_string = shared(c, "string", regex_expr(c, "\"(" CHARACTER ")*\""));
}

void mx_schema_count_written(mx_schema_compiler *c, mx_regular *language) {
    enum { BYTES = 8 }; /* of a grammar, for each transition at least */
    const mx_regular_view v = mx_regular_look(language);
    for (size_t i = 0; i < (size_t)v.states * (size_t)v.classes; i++) c->written += BYTES * (v.next[i] >= 0);
    if (c->written > MOST_MEMORY)
        mx_schema_fail(c, MX_UNSUPPORTED, NULL,
                       "too complicated: with the texts (\"pattern\", lengths, \"enum\") and numbers of this the "
                       "grammar takes more than %lld MiB",
                       (long long)(MOST_MEMORY >> 20));
}

/* The alternatives of a value, those that have values. */
static mx_expr write_shape(mx_schema_compiler *c, const mx_shape *s) {
    mx_grammar_builder *b = c->builder;
    const int room = 4 + s->strings.count + s->arrays.count + s->objects.count;
    mx_expr *choices = mx_schema_take(c, (size_t)room * sizeof *choices);
    if (!choices) return 0;
    int n = 0;
    for (int i = 0; i < s->objects.count; i++)
        if (mx_object_fruitful(c, s->objects.at[i], NULL, NULL))
            choices[n++] = mx_schema_write_object(c, s->objects.at[i]);
    for (int i = 0; i < s->arrays.count; i++)
        if (mx_array_fruitful(c, s->arrays.at[i], NULL, NULL)) choices[n++] = mx_schema_write_array(c, s->arrays.at[i]);
    for (int i = 0; i < s->strings.count; i++) choices[n++] = mx_schema_write_string(c, s->strings.at[i]);
    if (s->number) {
        mx_regular *limited = mx_schema_and(c, s->number, c->number_limit);
        if (!limited) return 0;
        mx_schema_count_written(c, limited);
        if (!mx_regular_is_empty(limited)) choices[n++] = mx_expr_regular(b, limited);
    }
    if (s->constants & MX_SHAPE_NULL) choices[n++] = mx_expr_string(b, "null");
    if (s->constants & MX_SHAPE_FALSE) choices[n++] = mx_expr_string(b, "false");
    if (s->constants & MX_SHAPE_TRUE) choices[n++] = mx_expr_string(b, "true");
    return n == 1 ? choices[0] : mx_expr_choice(b, choices, n);
}

/* A rule for every goal, which ends recursion; the grammar's compiler spells small ones out where they are used. */
mx_expr mx_schema_write_goal(mx_schema_compiler *c, mx_goal goal) {
    if (c->status) return 0;
    mx_schema_goal *g = &c->goals[goal];
    if (!g->shape) { /* whatever is written was looked at */
        mx_schema_fail(c, MX_INVALID_STATE, NULL, "value %d was not expanded", goal);
        return 0;
    }
    if (!g->has_rule) {
        char name[32];
        snprintf(name, sizeof name, "value %d", goal);
        g->rule = mx_rule_add(c->builder, name);
        g->has_rule = true;
        c->queue[c->queue_count++] = goal; /* room: one for every goal */
    }
    return mx_expr_rule(c->builder, g->rule);
}

/* ---- which goals have values ------------------------------------------------------------------------------------- */
static void visit(mx_schema_compiler *c, mx_goal goal) {
    if (c->status || c->goals[goal].queued) return;
    if (c->queue_count == c->queue_room) {
        int room = c->queue_room ? 2 * c->queue_room : 64;
        mx_goal *more = realloc(c->queue, (size_t)room * sizeof *more);
        if (!more) {
            mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
            return;
        }
        c->queue = more;
        c->queue_room = room;
    }
    c->goals[goal].queued = true;
    c->queue[c->queue_count++] = goal;
}

static void visit_shape(mx_schema_compiler *c, const mx_shape *s) {
    for (int i = 0; i < s->arrays.count; i++) mx_array_goals(c, s->arrays.at[i], visit);
    for (int i = 0; i < s->objects.count; i++) {
        const mx_object_part *o = s->objects.at[i];
        for (int j = 0; j < o->count; j++) visit(c, o->named[j].goal);
        for (int j = 0; j < o->other_count; j++) visit(c, o->others[j].goal);
        for (int j = 0; j < o->exists_count; j++) visit(c, o->exists[j].goal);
    }
}

static bool shape_fruitful(mx_schema_compiler *c, const mx_shape *s) {
    if (s->constants || s->strings.count) return true;
    if (s->number) return true;
    for (int i = 0; i < s->arrays.count; i++)
        if (mx_array_fruitful(c, s->arrays.at[i], NULL, NULL)) return true;
    for (int i = 0; i < s->objects.count; i++)
        if (mx_object_fruitful(c, s->objects.at[i], NULL, NULL)) return true;
    return false;
}

/* Where a goal's first schema is, for messages. */
static const mx_json *place_of(const mx_schema_compiler *c, mx_goal goal) {
    const mx_schema_goal *g = &c->goals[goal];
    return g->count ? c->literals[g->literals[0]].node : NULL;
}

/* Every goal that is reached, expanded; then a least fixed point: a goal has values where one of its parts has, given
 * those that surely have. */
static void find_fruitful(mx_schema_compiler *c, mx_goal root) {
    visit(c, root);
    for (int i = 0; i < c->queue_count && !c->status; i++) {
        if (c->queue_count > MOST_GOALS)
            mx_schema_fail(c, MX_UNSUPPORTED, NULL, "too complicated: more than %d kinds of values", MOST_GOALS);
        c->current = place_of(c, c->queue[i]);
        const mx_shape *s = mx_schema_goal_shape(c, c->queue[i]);
        if (s) visit_shape(c, s);
    }
    if (!c->status) c->current = NULL;
    for (bool changed = true; changed && !c->status;) {
        changed = false;
        for (int i = c->queue_count - 1; i >= 0 && !c->status; i--) { /* what is reached later is deeper: first */
            mx_schema_goal *g = &c->goals[c->queue[i]];
            if (!g->fruitful && shape_fruitful(c, g->shape)) c->goals[c->queue[i]].fruitful = changed = true;
        }
    }
}

static mx_expr write_all(mx_schema_compiler *c, mx_goal root) {
    c->queue_count = 0;
    mx_expr expr = mx_schema_write_goal(c, root);
    for (int i = 0; i < c->queue_count && !c->status; i++) {
        const mx_schema_goal *g = &c->goals[c->queue[i]];
        mx_rule rule = g->rule;
        c->current = place_of(c, c->queue[i]);
        mx_rule_set(c->builder, rule, write_shape(c, g->shape));
    }
    if (!c->status) c->current = NULL;
    return expr;
}

/* ---- the compiler ------------------------------------------------------------------------------------------------ */
static void setup(mx_schema_compiler *c) {
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_length(0, -1, &r, &error);
    c->all_text = mx_schema_own(c, NULL, status, r, &error);
    mx_schema_number_setup(c);
    mx_string_part *string = mx_schema_take(c, sizeof *string);
    mx_array_part *array = mx_schema_take(c, sizeof *array);
    mx_object_part *object = mx_schema_take(c, sizeof *object);
    mx_key_class *keys = mx_schema_take(c, sizeof *keys);
    mx_shape *any = mx_shape_new(c);
    c->none = mx_shape_new(c);
    if (c->status) return;
    *string = (mx_string_part){c->all_text, 0, -1};
    *array = (mx_array_part){.rest = MX_GOAL_ANY, .most = -1};
    *keys = (mx_key_class){c->all_text, MX_GOAL_ANY, false};
    *object = (mx_object_part){.others = keys, .other_count = 1, .most = -1};
    c->any_string = string;
    c->any_array = array;
    c->any_object = object;
    any->constants = MX_SHAPE_NULL | MX_SHAPE_FALSE | MX_SHAPE_TRUE;
    any->number = c->number_full;
    mx_parts_add(c, &any->strings, string);
    mx_parts_add(c, &any->arrays, array);
    mx_parts_add(c, &any->objects, object);
    c->any = any;
}

static void finish(mx_schema_compiler *c) {
    mx_grammar_builder_free(c->builder);
    for (int i = 0; i < c->language_count; i++) mx_regular_free(c->languages[i]);
    free(c->languages);
    free(c->literals);
    free(c->goals);
    free(c->literal_table);
    free(c->goal_table);
    free(c->queue);
    free(c->memo);
    mx_schema_refs_free(c->refs);
    for (struct mx_schema_block *b = c->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
}

static mx_status compile(mx_schema_compiler *c, mx_goal root, mx_grammar **out) {
    if (!c->status) find_fruitful(c, root);
    if (!c->status && !mx_schema_can(c, root))
        mx_schema_fail(c, MX_INVALID_ARGUMENT, NULL, "no value is valid against it");
    if (c->status) return c->status;
    c->builder = mx_grammar_builder_create();
    mx_goal *queue = realloc(c->queue, (size_t)(c->goal_count + 1) * sizeof *queue);
    if (queue) c->queue = queue;
    if (!c->builder || !queue) {
        mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
        return c->status;
    }
    write_setup(c);
    mx_expr expr = write_all(c, root);
    if (c->status) return c->status;
    mx_error error;
    mx_status status = mx_grammar_compile(c->builder, expr, out, &error);
    if (status) mx_schema_fail(c, status, NULL, "%s", error.text);
    if (!status && mx_grammar_bytes(*out) > (uint64_t)MOST_MEMORY) {
        mx_schema_fail(c, MX_UNSUPPORTED, NULL, "too complicated: its grammar takes %llu MiB, at most %lld are allowed",
                       (unsigned long long)(mx_grammar_bytes(*out) >> 20), (long long)(MOST_MEMORY >> 20));
        mx_grammar_free(*out);
        *out = NULL;
    }
    return c->status;
}

static const mx_schema_options default_options;

mx_status mx_schema_compile(const mx_json *schema, const char *name, const mx_schema_options *options, mx_grammar **out,
                            mx_error *error) {
    *out = NULL;
    mx_schema_compiler c = {
        .root = schema, .name = name, .options = options ? *options : default_options, .error = error};
    const int64_t before = mx_regular_allow(MOST_WORK);
    mx_schema_index(&c);
    setup(&c);
    mx_goal root = c.status ? 0 : mx_schema_goal_valid(&c, schema);
    mx_status status = compile(&c, root, out);
    finish(&c);
    mx_regular_allow(before);
    return status;
}

mx_status mx_schema_any_object(const mx_schema_options *options, mx_grammar **out, mx_error *error) {
    static const mx_json object = {.type = MX_JSON_STRING, .text = "object", .size = 6, .key = "type", .key_size = 4};
    mx_json type = object, schema = {.type = MX_JSON_OBJECT, .count = 1, .child = &type};
    mx_schema_options open = options ? *options : default_options;
    open.openai_strict = false;
    return mx_schema_compile(&schema, "json_object", &open, out, error);
}
