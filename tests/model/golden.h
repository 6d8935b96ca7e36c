#ifndef MX_TESTS_GOLDEN_H
#define MX_TESTS_GOLDEN_H

#include <stdbool.h>
#include <stdint.h>

#include "model/model.h"

/* The float64 oracle's goldens, and how far from them others are. */
typedef struct golden_case {
    char name[64];
    const int32_t *ids, *rows, *experts; /* experts [layers, T, top_k] or NULL */
    const float *logits;                 /* [row_count, vocab] */
    int count, row_count;
} golden_case;

/* The case at or behind *index of the checkpoint's tensors, which goes behind it. false: there is none. */
bool golden_next(const mx_checkpoint *ck, int *index, golden_case *g);

/* Mean over the rows of KL(truth || ours). */
double golden_mean_kl(const float *truth, const float *ours, int rows, int vocab);

/* Mean KL of transformers in BF16, of "stories" the lesser of that and llama.cpp's (its least of all chats), as they
 * were measured against the same goldens. */
typedef struct golden_other {
    const char *checkpoint, *name;
    double kl;
} golden_other;
enum { GOLDEN_OTHERS = 26 };
extern const golden_other golden_others[GOLDEN_OTHERS];
int golden_others_of(const char *checkpoint, const char *name); /* -1: it has none */

#endif
