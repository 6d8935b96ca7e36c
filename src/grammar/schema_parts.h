#ifndef MX_GRAMMAR_SCHEMA_PARTS_H
#define MX_GRAMMAR_SCHEMA_PARTS_H

#include "grammar/schema.h"

/* How schema*.c compile. Internal to them.
 *
 * A schema is expanded to a `shape`: for every type of value the union of `parts`, each a plain conjunction (one range
 * of lengths, one list of members ...). Shapes have a whole algebra: union, intersection, and the complement of each
 * part is a union of parts again. So allOf, anyOf, oneOf, not, if, const and enum are exact, whatever stands beside
 * them. Values within values are not expanded but are `goals`: conjunctions of literals, each "valid (or not valid)
 * against this schema" or "equal (or not equal) to this value". Goals are interned, so recursion ends. At last the
 * goals that no value reaches are found, and a rule of the grammar is written for each other one.
 *
 * Errors are sticky: the first one stays in `status` and everything after it does nothing and may return NULL. All
 * memory but that of languages lives until the end in one arena; languages are owned by the compiler. */
typedef struct mx_schema_compiler mx_schema_compiler;

typedef int mx_goal; /* index of compiler.goals */
enum { MX_GOAL_ANY = 0, MX_GOAL_NEVER = 1 };
typedef int mx_literal; /* index of compiler.literals; its negation is the same with the lowest bit turned */

typedef struct mx_string_part {
    mx_regular *language; /* of the text without quotes and escapes */
    int64_t least, most;  /* code points, most < 0: no limit */
} mx_string_part;

/* The number of elements i >= from that are of the literal is from least to most (most < 0: no limit). */
typedef struct mx_array_contains {
    mx_literal literal;
    int64_t from, least, most;
} mx_array_contains;

typedef struct mx_array_part {
    const mx_goal *prefix; /* [count] */
    int count;
    mx_goal rest;
    int64_t least, most; /* elements, most < 0: no limit */
    const mx_array_contains *contains;
    int contains_count;
    bool unique;
    int64_t evaluated; /* elements that keywords beside unevaluatedItems have seen; INT64_MAX: all */
    bool partly;       /* contains has seen some: no automaton of ours says which */
    const mx_json *unique_place;
} mx_array_part;

typedef struct mx_member {
    const char *key;
    size_t size;
    mx_goal goal;
    bool required, evaluated;
} mx_member;

/* Keys that are no member's of `named`, and what their values must be of. */
typedef struct mx_key_class {
    mx_regular *keys;
    mx_goal goal;
    bool evaluated;
} mx_key_class;

/* At least one member has such a key and such a value. */
typedef struct mx_key_exists {
    mx_regular *keys;
    mx_goal goal;
} mx_key_exists;

typedef struct mx_object_part {
    const mx_member *named; /* [count] */
    int count;
    const mx_key_class *others; /* [other_count]; disjoint, and every key is of one */
    int other_count;
    int64_t least, most;         /* members */
    const mx_key_exists *exists; /* [exists_count] */
    int exists_count;
    bool typed; /* "type" or "properties" said that objects are meant (openai_strict closes those) */
} mx_object_part;

typedef struct mx_parts { /* of one type; a union */
    const void **at;
    int count, room;
} mx_parts;

enum { MX_SHAPE_NULL = 1, MX_SHAPE_FALSE = 2, MX_SHAPE_TRUE = 4 };
typedef struct mx_shape {
    unsigned constants;
    mx_regular *number; /* texts of numbers; NULL: none */
    mx_parts strings, arrays, objects;
} mx_shape;

typedef struct mx_schema_literal {
    const mx_json *node;
    bool value;    /* equal to `node`, else valid against it */
    bool negative; /* not so */
    bool busy;
    const mx_shape *shape; /* NULL: not yet */
} mx_schema_literal;

typedef struct mx_schema_goal {
    const mx_literal *literals;
    int count;
    uint64_t hash;
    const mx_shape *shape;
    bool busy, fruitful, queued, has_rule;
    mx_rule rule;
} mx_schema_goal;

struct mx_schema_compiler {
    const mx_json *root;
    const char *name;
    mx_schema_options options;
    mx_error *error;
    mx_status status;
    const mx_json *current; /* the schema that is being expanded: the place of messages that have none */

    struct mx_schema_block *blocks; /* of the arena */
    mx_regular **languages;         /* owned */
    int language_count, language_room;
    mx_schema_literal *literals;
    int literal_count, literal_room;
    mx_schema_goal *goals;
    int goal_count, goal_room;
    int32_t *literal_table, *goal_table; /* hash tables of index + 1; powers of two */
    int literal_table_size, goal_table_size;
    int trying; /* see mx_schema_expand */
    bool blocked;
    int depth;        /* of schemas that apply to the same value */
    int64_t work;     /* bytes of the arena */
    int64_t written;  /* bytes of the grammar, at least, for the languages in it */
    int64_t entries;  /* of member lists written */
    bool unevaluated; /* some schema has unevaluatedItems or unevaluatedProperties: annotations matter */
    struct mx_schema_refs *refs;

    struct mx_schema_memo { /* things made before, by hash; a power of two of slots, key 0 is free */
        uint64_t key;
        int64_t index; /* of languages, or an expression */
    } * memo;
    int memo_count, memo_size;

    mx_regular *all_text;
    mx_regular *number_full, *number_plain; /* with and without exponents */
    mx_regular *integer, *integer_value;    /* as "integer" spells them, and with .0 too */
    mx_regular *number_limit;               /* how long numbers may be written */
    int digits, fraction;                   /* in numbers without bounds */
    const mx_array_part *any_array;
    const mx_object_part *any_object;
    const mx_string_part *any_string;
    const mx_shape *any, *none;

    mx_grammar_builder *builder;
    mx_goal *queue; /* goals that wait for their rules */
    int queue_count, queue_room;
    mx_expr comma, colon, open_object, close_object, open_array, close_array, empty_object, empty_array;
    mx_expr free_string, quote, character;
};

/* ---- schema.c: memory, errors, languages ------------------------------------------------------------------------ */
void *mx_schema_take(mx_schema_compiler *c, size_t size); /* zeroed; NULL: status is set */
/* Sets the status, unless it is set; the message names the place of `node` in the schema. */
void mx_schema_fail(mx_schema_compiler *c, mx_status status, const mx_json *node, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Takes over the result of a function of regular.h. */
mx_regular *mx_schema_own(mx_schema_compiler *c, const mx_json *node, mx_status status, mx_regular *language,
                          const mx_error *error);
/* NULL as an operand gives NULL. */
mx_regular *mx_schema_and(mx_schema_compiler *c, mx_regular *a, mx_regular *b);
mx_regular *mx_schema_or(mx_schema_compiler *c, mx_regular *a, mx_regular *b);
mx_regular *mx_schema_not(mx_schema_compiler *c, mx_regular *a);
mx_regular *mx_schema_without(mx_schema_compiler *c, mx_regular *a, mx_regular *b);
mx_regular *mx_schema_regex(mx_schema_compiler *c, const char *pattern); /* of the whole text */
/* What was made before under this key: -1: nothing. */
int64_t mx_schema_recall(const mx_schema_compiler *c, uint64_t key);
void mx_schema_remember(mx_schema_compiler *c, uint64_t key, int64_t index);
static inline uint64_t mx_schema_mix(uint64_t h, uint64_t v) {
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}
/* A finite set of texts: sorted and freed of doubles in place. */
typedef struct mx_schema_word {
    const char *text;
    size_t size;
} mx_schema_word;
mx_regular *mx_schema_words(mx_schema_compiler *c, mx_schema_word *words, int count);
/* The words of a finite language, at most `most`: their number, or -1 where there are more. */
int mx_schema_enumerate(mx_schema_compiler *c, mx_regular *language, mx_schema_word *words, int most);

/* ---- schema_refs.c: $id, $anchor, $ref, places ------------------------------------------------------------------ */
void mx_schema_index(mx_schema_compiler *c); /* walks all schemas once; checks nothing */
void mx_schema_refs_free(struct mx_schema_refs *refs);
const mx_json *mx_schema_resolve(mx_schema_compiler *c, const mx_json *node, const mx_json *ref);
void mx_schema_place(mx_bytes *out, const mx_json *root, const mx_json *node); /* "#/properties/a" */

/* ---- schema_merge.c: goals and the algebra of shapes ------------------------------------------------------------ */
mx_literal mx_schema_literal_of(mx_schema_compiler *c, const mx_json *node, bool value);
mx_goal mx_schema_goal_of(mx_schema_compiler *c, mx_literal literal);
mx_goal mx_schema_goal_and(mx_schema_compiler *c, mx_goal a, mx_goal b);
static inline mx_goal mx_schema_goal_valid(mx_schema_compiler *c, const mx_json *node) {
    return mx_schema_goal_of(c, mx_schema_literal_of(c, node, false));
}
mx_shape *mx_shape_new(mx_schema_compiler *c);
bool mx_parts_add(mx_schema_compiler *c, mx_parts *parts, const void *part);
const mx_shape *mx_shape_and(mx_schema_compiler *c, const mx_shape *a, const mx_shape *b);
const mx_shape *mx_shape_or(mx_schema_compiler *c, const mx_shape *a, const mx_shape *b);
const mx_shape *mx_shape_unannotated(mx_schema_compiler *c, const mx_shape *a); /* nothing counts as evaluated */
/* Is there surely no value of it? Looks into values within values; false where that takes too long. */
bool mx_schema_surely_empty(mx_schema_compiler *c, const mx_shape *a);
/* Part by part; complements are added to `out` as unions. */
const mx_object_part *mx_object_and(mx_schema_compiler *c, const mx_object_part *a, const mx_object_part *b);
void mx_object_complement(mx_schema_compiler *c, const mx_object_part *a, mx_parts *out);
const mx_array_part *mx_array_and(mx_schema_compiler *c, const mx_array_part *a, const mx_array_part *b);
void mx_array_complement(mx_schema_compiler *c, const mx_array_part *a, mx_parts *out);
const mx_string_part *mx_string_and(mx_schema_compiler *c, const mx_string_part *a, const mx_string_part *b);
void mx_string_complement(mx_schema_compiler *c, const mx_string_part *a, mx_parts *out);

/* ---- schema_keywords.c: schemas and values to shapes ------------------------------------------------------------ */
const mx_shape *mx_schema_expand(mx_schema_compiler *c, mx_literal literal);
const mx_shape *mx_schema_goal_shape(mx_schema_compiler *c, mx_goal goal);

/* ---- what keywords say of one type: NULL where they say nothing (or the status is set) -------------------------- */
const mx_string_part *mx_schema_string_part(mx_schema_compiler *c, const mx_json *node);
mx_regular *mx_schema_number_language(mx_schema_compiler *c, const mx_json *node);
const mx_array_part *mx_schema_array_part(mx_schema_compiler *c, const mx_json *node);
const mx_object_part *mx_schema_object_part(mx_schema_compiler *c, const mx_json *node);
/* Numbers as they stand in the schema, and their shortest spellings; or with every number of zeros behind them. */
mx_regular *mx_schema_number_values(mx_schema_compiler *c, const mx_json *const *numbers, int count,
                                    bool every_spelling);
/* The one text that all spellings of a number share. */
bool mx_schema_shortest(mx_schema_compiler *c, mx_schema_word number, mx_schema_word *out);
void mx_schema_number_setup(mx_schema_compiler *c);
/* All string parts as one language. */
mx_regular *mx_schema_string_language(mx_schema_compiler *c, const mx_parts *strings);
mx_regular *mx_schema_lengths(mx_schema_compiler *c, const mx_json *node, int64_t least, int64_t most);
/* A count of a keyword ("minItems"): a whole number >= 0. false: absent, or the status is set. */
bool mx_schema_count(mx_schema_compiler *c, const mx_json *node, const char *keyword, int64_t *out);

/* ---- can there be values, and how they are written -------------------------------------------------------------- */
typedef bool mx_goal_test(void *context, mx_schema_compiler *c, mx_goal goal);
bool mx_object_fruitful(mx_schema_compiler *c, const mx_object_part *a, mx_goal_test *test, void *context);
bool mx_array_fruitful(mx_schema_compiler *c, const mx_array_part *a, mx_goal_test *test, void *context);
typedef void mx_goal_visit(mx_schema_compiler *c, mx_goal goal);
void mx_array_goals(mx_schema_compiler *c, const mx_array_part *a, mx_goal_visit *visit);
/* Member lists with what must exist among the others written out: added to `out`. */
void mx_object_settle(mx_schema_compiler *c, const mx_object_part *a, mx_parts *out);
void mx_schema_count_written(mx_schema_compiler *c, mx_regular *language); /* one more that the grammar has */
mx_expr mx_schema_write_goal(mx_schema_compiler *c, mx_goal goal);
mx_expr mx_schema_write_string(mx_schema_compiler *c, const mx_string_part *a);
mx_expr mx_schema_write_texts(mx_schema_compiler *c, mx_regular *language); /* as JSON strings */
mx_expr mx_schema_write_array(mx_schema_compiler *c, const mx_array_part *a);
mx_expr mx_schema_write_object(mx_schema_compiler *c, const mx_object_part *a);
mx_expr mx_schema_optional(mx_schema_compiler *c, mx_expr e);
mx_expr mx_schema_pair(mx_schema_compiler *c, mx_expr a, mx_expr b);
bool mx_schema_annotates(const mx_json *member);               /* is it a keyword that says nothing of values? */
bool mx_schema_can(const mx_schema_compiler *c, mx_goal goal); /* has it values? After the search for that */
/* The constants, numbers and strings of a goal where it has no more than `most` values and nothing else: -1 otherwise.
 * A number has several texts. */
enum { MX_SCHEMA_SPELLINGS = 4 };
typedef struct mx_schema_value {
    mx_schema_word texts[MX_SCHEMA_SPELLINGS]; /* in JSON */
    int count;
} mx_schema_value;
int mx_schema_values(mx_schema_compiler *c, mx_goal goal, mx_schema_value *values, int most);

#endif
