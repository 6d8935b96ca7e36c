#ifndef MX_SPECULATE_H
#define MX_SPECULATE_H

#include <stdbool.h>
#include <stdint.h>

/* Prompt lookup: the tokens that followed where the end of the sequence occurred before are guessed to follow again.
 * Nothing here can change an answer: a guess that is not what would have been drawn is dropped. */

/* All places of a sequence, by the two tokens before them. */
typedef struct mx_lookup {
    int32_t *last;   /* [heads] hash of two tokens -> the last position behind them, 0: none */
    int32_t *before; /* [most + 1] of a position: the last one before it with the same hash, 0: none */
    int64_t heads;   /* a power of two */
    int64_t most;
    int64_t added; /* tokens that are in it */
} mx_lookup;

/* For one sequence at a time, of at most `most` tokens: 4 bytes a token and 128 KiB, touched as the sequence grows.
 * false: no memory. */
bool mx_lookup_init(mx_lookup *l, int64_t most);
void mx_lookup_reset(mx_lookup *l); /* for another sequence; allocates nothing */
void mx_lookup_free(mx_lookup *l);  /* all zeros allowed */
/* Up to `most` tokens that may follow tokens [count], all of them from there; *matched gets how many tokens at its end
 * were found before, 2 or more, the longest such match among the last places that were looked at, or 0. The sequence
 * may have grown since the last call, by any number of tokens, or have lost its end. Allocates nothing; what is new
 * costs time once. */
int mx_lookup_draft(mx_lookup *l, const int32_t *tokens, int64_t count, int32_t *draft, int most, int *matched);

/* Whether a draft pays. A further row is not free: with a mixture of experts it reads further experts' weights. */

/* What steps without prompt rows take, by their rows: relative to each other, for how fast the machine is changes. */
enum { MX_DRAFT_ROWS = 16 }; /* in steps of more, a further row costs what it brings */
typedef struct mx_draft_cost {
    double level;                    /* seconds of a step, by its `shape`, just now; 0: none was measured */
    double shape[MX_DRAFT_ROWS + 1]; /* 0 below 1 */
} mx_draft_cost;
/* How often a token that followed a match was the right one, by the match's length; of one request. */
enum { MX_DRAFT_CLASSES = 8 };
typedef struct mx_draft_luck {
    double right[MX_DRAFT_CLASSES], tried[MX_DRAFT_CLASSES]; /* what is long ago counts less */
} mx_draft_luck;

/* Both begin as all zeros. A step without prompt rows took so long: `rows` counts decoding and drafted ones. */
void mx_draft_measured(mx_draft_cost *cost, int rows, double seconds);
/* The first `accepted` of the `drafted` tokens behind a match were right. */
void mx_draft_checked(mx_draft_luck *luck, int matched, int drafted, int accepted);
/* How many of at most `most` drafted tokens behind a match are worth it, in a step that has `rows` rows without them,
 * this request's own included: as many as make the most tokens a second. 0: none. A luck that says no is forgotten
 * slowly, so that it is tried again. */
int mx_draft_length(const mx_draft_cost *cost, mx_draft_luck *luck, int matched, int rows, int most);

#endif
