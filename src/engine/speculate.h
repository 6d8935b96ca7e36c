#ifndef MX_SPECULATE_H
#define MX_SPECULATE_H

#include <stdbool.h>
#include <stdint.h>

/* Prompt lookup: the tokens that followed the last time the sequence's last few tokens occurred are guessed to follow
 * again. Nothing here can change an answer: a guess that is not what would have been drawn is dropped. */

/* Where every n-gram of a sequence ended last. */
typedef struct mx_lookup {
    int32_t *slot; /* hash of n tokens -> position behind them, 0: none */
    int64_t slots; /* a power of two */
    int64_t added; /* tokens that are in it */
} mx_lookup;

/* For sequences of at most `most` tokens. false: no memory. */
bool mx_lookup_init(mx_lookup *l, int64_t most);
void mx_lookup_free(mx_lookup *l);
/* Up to `most` tokens that may follow tokens [count]; adds what is new since the last call. Allocates nothing. */
int mx_lookup_draft(mx_lookup *l, const int32_t *tokens, int64_t count, int32_t *draft, int most);

/* Whether drafting pays, learnt from what was measured: how often this request's drafts were right, and what a step
 * with so many rows takes. */
typedef struct mx_draft_cost {
    double seconds[17]; /* of a step with 1 .. 16 decode rows and nothing else, running mean; 0: not known */
} mx_draft_cost;
typedef struct mx_draft_luck {
    double accepted; /* of the drafted tokens, running mean */
    int64_t drafted;
    int64_t rest; /* steps until it may try again */
} mx_draft_luck;
void mx_draft_measured(mx_draft_cost *cost, int rows, double seconds);
void mx_draft_checked(mx_draft_luck *luck, int drafted, int accepted);
/* How many of at most `most` drafted tokens are worth it beside `rows` decode rows; 0: none. */
int mx_draft_length(const mx_draft_cost *cost, mx_draft_luck *luck, int rows, int most);

#endif
