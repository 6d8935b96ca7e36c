#ifndef MX_GRAMMAR_REGULAR_PRIVATE_H
#define MX_GRAMMAR_REGULAR_PRIVATE_H

#include <stdatomic.h>

#include "grammar/regular.h"

/* What the parts of regular*.c share: characters as ranges, automata on their way to the minimal one, expressions as
 * trees. */

struct mx_regular {
    atomic_int references;
    int states, classes;
    uint8_t class_of[256];
    int32_t *next;   /* [states][classes], owned */
    bool *accepting; /* [states], owned */
    uint64_t hash;
};

/* Bounds on the way to a minimal automaton. What goes beyond is MX_UNSUPPORTED. All together keep any call well under
 * a second and under about 300 MB. */
enum {
    MX_RAW_STATES = 2 * MX_REGULAR_STATES,
    MX_RAW_CELLS = 16 << 20,      /* states * classes */
    MX_RAW_TRANSITIONS = 4 << 20, /* that lead somewhere */
    MX_NFA_NODES = 300000,
    MX_NFA_STEPS = 40 << 20, /* nodes visited while an automaton is made deterministic */
    MX_SETS_ITEMS = 6 << 20,
    MX_PATTERN_DEPTH = 200,    /* groups inside groups */
    MX_PATTERN_RANGES = 60000, /* of the different classes of characters in a pattern, together */
    MX_PATTERN_LOOKS = 64,
    MX_PATTERN_PROPERTIES = 16,  /* different \p{...} in a pattern */
    MX_PATTERN_SIZE = 256 << 10, /* bytes */
};

/* ---- regular.c --------------------------------------------------------------------------------------------------- */
mx_status mx_regular_spend(int64_t steps, mx_error *error); /* of what mx_regular_allow gave */

/* ---- regular_raw.c ----------------------------------------------------------------------------------------------- */
/* A deterministic automaton as it is found. State 0 is the start. */
typedef struct mx_raw {
    int states, classes, capacity;
    uint8_t class_of[256];
    int32_t *next;   /* [capacity][classes] */
    bool *accepting; /* [capacity] */
} mx_raw;
/* One more state, whose row is all -1. Set `classes` and `class_of` first. */
mx_status mx_raw_add(mx_raw *raw, bool accepting, mx_error *error);
void mx_raw_free(mx_raw *raw);
/* The minimal automaton of the same language, its states numbered as they are met in breadth from the start. */
mx_status mx_raw_minimal(const mx_raw *raw, mx_regular **out, mx_error *error);
/* Splits classes so that bytes of one class are of one class in `with` too. `scratch` is [65536] zeros, and again
 * after. */
void mx_refine(uint8_t *class_of, int *classes, const uint8_t *with, uint16_t *scratch);

/* Lists of numbers, each different one with an id that counts up from 0. All zeros is empty. */
typedef struct mx_sets {
    int64_t *items;
    size_t used, capacity;
    size_t *begin; /* [count + 1] */
    int count, room;
    int32_t *slots; /* [slot_count], a power of two; -1: free */
    size_t slot_count;
} mx_sets;
/* `*id` == count before the call: it is new. */
mx_status mx_sets_intern(mx_sets *s, const int64_t *items, size_t count, int *id, mx_error *error);
const int64_t *mx_sets_get(const mx_sets *s, int id, size_t *count);
void mx_sets_free(mx_sets *s);

/* ---- regular_utf8.c ---------------------------------------------------------------------------------------------- */
/* Characters: ranges of code points, first and last. All zeros is the empty set. */
typedef struct mx_range {
    uint32_t first, last;
} mx_range;
typedef struct mx_ranges {
    mx_range *data;
    size_t count, capacity;
} mx_ranges;
enum { MX_LAST_CHARACTER = 0x10FFFF };
bool mx_ranges_add(mx_ranges *r, uint32_t first, uint32_t last); /* false: no memory */
bool mx_ranges_add_all(mx_ranges *r, const mx_ranges *other);
void mx_ranges_sort(mx_ranges *r); /* in order, without overlap */
bool mx_ranges_invert(mx_ranges *r);
void mx_ranges_free(mx_ranges *r);
/* One character of these, in UTF-8. Surrogates are no characters. `r` is sorted. */
mx_status mx_regular_characters(const mx_ranges *r, mx_regular **out, mx_error *error);
/* One character, and any number of them: made once, kept for ever; not to be freed. */
mx_status mx_regular_any_character(const mx_regular **out, mx_error *error);
mx_status mx_regular_any(const mx_regular **out, mx_error *error);

/* ---- regular_nfa.c ----------------------------------------------------------------------------------------------- */
/* What stands before a place in the text. */
typedef enum mx_before { MX_BEFORE_START, MX_BEFORE_WORD, MX_BEFORE_OTHER, MX_BEFORES } mx_before;

typedef enum mx_node_kind {
    MX_NODE_SPLIT,    /* to x and y; y < 0: to x alone */
    MX_NODE_MACHINE,  /* state (index - y) of machine x; where it accepts also to z */
    MX_NODE_BEGIN,    /* to x at the beginning of the text */
    MX_NODE_END,      /* to x at its end */
    MX_NODE_WORD,     /* to x between a word and what is none */
    MX_NODE_NOT_WORD, /* to x elsewhere */
    MX_NODE_LOOK,     /* to x where the rest of the text is of look y */
    MX_NODE_ACCEPT,
} mx_node_kind;
typedef struct mx_node {
    mx_node_kind kind;
    int32_t x, y, z;
} mx_node;

/* The rest of a text is, or is not, of a language. What it is may depend on what stands before. */
typedef struct mx_look {
    bool negative;
    mx_regular *of[MX_BEFORES]; /* owned */
} mx_look;

/* A nondeterministic automaton whose parts are deterministic ones. */
typedef struct mx_nfa {
    mx_node *nodes;
    int node_count, node_capacity;
    const mx_regular **machines; /* borrowed */
    mx_sets machine_numbers;     /* their addresses */
    bool **leaf;                 /* [machine_count][states]: no word goes on */
    int machine_count, machine_capacity;
    mx_look *looks;
    int look_count, look_capacity;
    bool words;    /* some node asks for words */
    int64_t steps; /* that were taken; from its value before on */
    int tail;      /* the first node of a machine behind which all is well, whatever follows; -1: none */
} mx_nfa;
void mx_nfa_init(mx_nfa *nfa);
void mx_nfa_free(mx_nfa *nfa);
mx_status mx_nfa_add(mx_nfa *nfa, mx_node_kind kind, int x, int y, int z, int *node, mx_error *error);
/* The automaton as a part: enters at `*entry`, and from each accepting state goes on at `exit`. It is borrowed until
 * mx_nfa_free. */
mx_status mx_nfa_add_machine(mx_nfa *nfa, const mx_regular *machine, int exit, int *entry, mx_error *error);
/* Whatever follows. */
mx_status mx_nfa_add_tail(mx_nfa *nfa, int *entry, mx_error *error);
mx_status mx_nfa_add_look(mx_nfa *nfa, const mx_look *look, int *index, mx_error *error); /* takes what look owns */
/* `before`: what stands before the text. */
mx_status mx_nfa_minimal(mx_nfa *nfa, int entry, mx_before before, mx_regular **out, mx_error *error);

/* ---- regular_parse.c --------------------------------------------------------------------------------------------- */
typedef enum mx_tree_kind {
    MX_TREE_EMPTY,
    MX_TREE_CHARACTERS, /* one of set `set` */
    MX_TREE_SEQUENCE,   /* of children */
    MX_TREE_CHOICE,     /* of children */
    MX_TREE_REPEAT,     /* of the child; most < 0: no limit */
    MX_TREE_BEGIN,
    MX_TREE_END,
    MX_TREE_WORD,
    MX_TREE_NOT_WORD,
    MX_TREE_LOOK, /* the child is ahead; `negative`: is not */
} mx_tree_kind;
typedef struct mx_tree mx_tree;
struct mx_tree {
    mx_tree_kind kind;
    bool negative;
    bool context; /* it, or something in it, asks what stands before */
    int set;
    int look, look_of; /* index of a look, in the nfa of that serial number; 0: in none yet */
    int64_t least, most;
    mx_tree *child, *next;
};

typedef struct mx_pattern {
    mx_tree *root;
    mx_tree **owned; /* every node */
    int owned_count, owned_capacity;
    mx_regular **sets; /* [set_count] the different classes of characters */
    mx_sets ranges;    /* what they are: mx_range as numbers */
    int set_count, set_capacity;
} mx_pattern;
/* A tree at most MX_PATTERN_DEPTH * 4 deep. mx_pattern_free also after a failure. */
mx_status mx_pattern_parse(const char *pattern, size_t size, mx_pattern *out, mx_error *error);
void mx_pattern_free(mx_pattern *p);

/* ---- regular_property.c ------------------------------------------------------------------------------------------ */
/* Adds the characters of \p{name}. MX_INVALID_ARGUMENT: there is none. */
mx_status mx_property_add(const char *name, size_t size, mx_ranges *out, mx_error *error);

#endif
