#ifndef MX_GRAMMAR_PLAN_H
#define MX_GRAMMAR_PLAN_H

#include "grammar/grammar_private.h"

/* What is found out about the expressions of a builder before machines are made of them. All arrays are by number of
 * expression. */
typedef struct mx_plan {
    const mx_grammar_builder *b;
    mx_regular_view *view;  /* [regulars] */
    uint32_t *same_regular; /* [regulars]; the first that is the same language */
    bool *nullable;         /* the empty text is of it */
    bool *productive;       /* a text is of it */
    bool *pure;             /* calls nothing, however it is built, and has no loop */
    bool *finite;           /* [regulars]; no loop */
    uint32_t *size;         /* states, about, where everything but calls is spelled out; at most MX_PLAN_SIZE */
    uint32_t *uses;
    uint32_t *depth; /* of expressions within expressions */
    bool *plain;     /* [rules]; a rule that calls nothing, so that it may be written out within a loop */
    bool *spelled;   /* [rules]; a rule that is so small that it is written where it is used */
} mx_plan;
enum {
    MX_PLAN_SIZE = 1 << 30,
    MX_PLAN_SMALL = 16,  /* states of what is spelled out wherever it is used */
    MX_PLAN_COPIES = 64, /* states of a repeat that is spelled out rather than counted */
    MX_PLAN_LOOP = 4096, /* states of a loop that is one machine of its own */
    MX_PLAN_DEPTH = 200, /* levels of expressions in one machine */
};

mx_status mx_grammar_plan_make(const mx_grammar_builder *b, mx_plan *p, mx_error *error);
void mx_grammar_plan_free(mx_plan *p);
/* Is a repeat counted at run time? Else it is spelled out. */
bool mx_plan_counts(const mx_plan *p, const mx_expr_node *repeat);
/* Is an expression a loop of plain bytes, which is a machine of its own? */
bool mx_plan_loops(const mx_plan *p, const mx_expr_node *e);

#endif
