#ifndef MX_GRAMMAR_PRIVATE_H
#define MX_GRAMMAR_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "grammar/grammar.h"

/* What src/grammar's own files know of a grammar: the expressions of a builder and the automaton made of them.
 *
 * The automaton is a set of machines that call each other. A machine's states go from one to the next by bytes, may
 * call a machine (whose text comes first, then the state behind the call) and may complete the machine. A machine
 * completes only behind at least one byte: where the empty text is of it, whoever calls it also has what stands behind
 * the call. So nothing ever turns in a circle without reading. Every state can still reach the end of its machine. */

/* ---- expressions ------------------------------------------------------------------------------------------------- */
typedef enum mx_expr_kind {
    MX_EXPR_TEXT,     /* bytes[first .. first + count) */
    MX_EXPR_REGULAR,  /* regulars[first] */
    MX_EXPR_NEVER,    /* nothing */
    MX_EXPR_SEQUENCE, /* items[first .. first + count) */
    MX_EXPR_CHOICE,   /* items[first .. first + count) */
    MX_EXPR_REPEAT,   /* items[first], least to most times */
    MX_EXPR_RULE,     /* rules[first] */
} mx_expr_kind;

typedef struct mx_expr_node {
    mx_expr_kind kind;
    uint32_t first, count;
    int64_t least, most; /* REPEAT; most < 0: no limit */
} mx_expr_node;

typedef struct mx_rule_entry {
    char *name;
    mx_expr body; /* 0: not set */
} mx_rule_entry;

/* Expressions and rules are numbered from 1: entry 0 of `expr` and `rule` is not used. The items of an expression have
 * lower numbers than it has, but for rules, which may go anywhere. */
struct mx_grammar_builder {
    mx_expr_node *expr;
    mx_rule_entry *rule;
    mx_expr *item;
    mx_regular **regular;
    uint8_t *byte;
    size_t exprs, rules, items, regulars, bytes;
    size_t expr_room, rule_room, item_room, regular_room, byte_room;
    bool failed; /* a call had no memory, or got 0 */
};

/* ---- the automaton ----------------------------------------------------------------------------------------------- */
enum { MX_STATE_ROW = 1, MX_STATE_ACCEPTS = 2, MX_STATE_CALLS = 4 };
#define MX_DEAD UINT32_MAX

typedef struct mx_state {
    uint32_t base;    /* of its transitions: cell[base + class], where that cell is this state's */
    uint32_t call;    /* its calls: call[call .. those of the next state) */
    uint32_t machine; /* it is of this one */
    uint32_t flags;
} mx_state;

typedef struct mx_cell {
    uint32_t state, next;
} mx_cell;

typedef struct mx_call {
    uint32_t machine; /* MX_DEAD: none, `state` is simply another state that one is in as well */
    uint32_t state;   /* behind the call */
} mx_call;

/* A counted machine reads its text again and again, `least` to `most` times. */
typedef struct mx_machine {
    uint32_t start, states; /* the first state is not always the start */
    uint32_t first;
    uint32_t least, most; /* counted; most UINT32_MAX: no limit, and counts stop at `least` */
    bool counted;
    bool nullable; /* the empty text is of it */
    bool simple;   /* calls nothing, one state at a time; where it is counted, nothing goes on behind its end */
} mx_machine;

/* What the tokens that may come in a state depend on, as a hash, so that states of different grammars share masks. */
typedef struct mx_state_key {
    uint64_t low, high;
} mx_state_key;

/* Of a state the first one that behaves as it does for so many bytes (mx_alike_bytes[level]): it takes the same texts
 * that are no longer, and may end behind the same of them. The state itself where there is none before it. */
enum { MX_ALIKE_LEVELS = 5 };
extern const uint32_t mx_alike_bytes[MX_ALIKE_LEVELS]; /* ascending */
typedef struct mx_alike {
    uint32_t state[MX_ALIKE_LEVELS];
} mx_alike;

struct mx_grammar {
    atomic_int references;
    uint64_t id; /* of this grammar alone in this process */
    uint8_t class_of[256];
    uint32_t classes, states, machines, cells, calls;
    mx_state *state; /* [states + 1] */
    mx_cell *cell;   /* [cells], the last 256 of no state */
    mx_call *call;
    mx_machine *machine;   /* the first is the grammar */
    mx_alike *alike;       /* [states]; NULL: no machine is large enough */
    pthread_mutex_t lock;  /* of writing `key` */
    atomic_uchar *has_key; /* [states] */
    mx_state_key *key;     /* [states] */
};

/* The state behind this byte, or MX_DEAD. */
static inline uint32_t mx_next_state(const mx_grammar *g, uint32_t state, uint8_t byte) {
    const mx_cell *c = &g->cell[g->state[state].base + g->class_of[byte]];
    return c->state == state ? c->next : MX_DEAD;
}

/* Is count iterations in, at the end of one more, the whole finished, may it go on, and with which count? */
static inline uint32_t mx_count_up(const mx_machine *m, uint32_t count, bool *more, bool *whole) {
    uint32_t next = count + 1;
    if (m->most == UINT32_MAX) {
        if (next > m->least) next = m->least;
        *more = true;
    } else {
        *more = next < m->most;
    }
    *whole = next >= m->least;
    return next;
}

/* ---- compiling --------------------------------------------------------------------------------------------------- */
/* What a machine under construction is made of, before it has one state at a time (NFA). States are numbered within
 * the machine. */
typedef enum mx_nfa_kind { MX_NFA_SPLIT, MX_NFA_BYTE, MX_NFA_ROW, MX_NFA_CALL, MX_NFA_ACCEPT } mx_nfa_kind;
typedef struct mx_nfa_state {
    uint8_t kind;
    uint8_t byte;
    uint32_t a;       /* SPLIT, BYTE, CALL: the next state; ROW: that which state 0 of the regular language became */
    uint32_t b;       /* SPLIT: another one or MX_DEAD; ROW: which state of it; CALL: which machine */
    uint32_t regular; /* ROW */
} mx_nfa_state;

typedef struct mx_nfa {
    mx_nfa_state *state;
    uint32_t count, room;
    mx_regular_view *view; /* of all regular languages of the builder */
} mx_nfa;

/* Transitions of a state under construction. */
typedef struct mx_range {
    uint32_t target;
    uint8_t low, high; /* inclusive */
} mx_range;

/* All machines' states, numbered through. */
typedef struct mx_draft_state {
    uint32_t range, ranges, call, calls, machine;
    bool accepts;
} mx_draft_state;
typedef struct mx_draft {
    mx_draft_state *state;
    mx_range *range;
    mx_call *call;
    size_t states, ranges, calls;
    size_t state_room, range_room, call_room;
} mx_draft;

/* Makes room for one more element; false: no memory. */
bool mx_grow(void **data, size_t *room, size_t count, size_t size);
#define MX_PUSH(array, count, room, ...)                                                                               \
    (mx_grow((void **)&(array), &(room), (count), sizeof *(array)) && ((array)[(count)++] = (__VA_ARGS__), true))

/* Adds the states of a machine that begins in `start` to the draft: one state at a time (DFA) where that does not take
 * many times as many, else as they are. */
mx_status mx_determine(const mx_nfa *n, uint32_t start, uint32_t machine, mx_draft *d, uint32_t *first,
                       mx_error *error);
/* The same of a machine that is one regular language; end >= 0: and then this byte, with which no text of the language
 * goes on. */
mx_status mx_determine_regular(const mx_regular_view *v, int end, uint32_t machine, mx_draft *d, uint32_t *first,
                               mx_error *error);
/* Fills `alike`, for the simple machines that are large and not counted; false: no memory. */
bool mx_find_alike(const mx_draft *d, mx_grammar *g);
/* The grammar of the draft and its machines, which it takes over. */
mx_status mx_pack(const mx_draft *d, mx_machine *machine, uint32_t machines, mx_grammar **out, mx_error *error);

#endif
