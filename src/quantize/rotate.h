#ifndef MX_QUANTIZE_ROTATE_H
#define MX_QUANTIZE_ROTATE_H

#include "quantize/source.h"

/* Rotation of a gpt-oss model that leaves what it computes as it is, so that outliers of single channels are spread
 * over their neighbours before weights are quantised (QuaRot, arXiv 2404.00456, whose R1 and R2 these are; by blocks as
 * in MR-GPTQ, arXiv 2509.23202, because 2880 is no power of two).
 *
 * The residual stream's channels turn by blocks of mx_hadamard_size(hidden, 128): the embedding and what o and down
 * write are turned; q, k, v, router, gate, up and lm_head turn back what they read. RMSNorm does not see it once its
 * gain is in the matrices that read it, and is 1. The heads' values turn by blocks of mx_hadamard_size(head_dim, 128)
 * in v's rows, and back in o's columns. What goes into down is left alone: swiglu lies between. Tied embeddings become
 * two matrices: lm_head has the last norm's gain in it. */

/* Puts what turns them in front of the modules' `read`, and new vectors in place of norms and biases (the source's from
 * then on). A tied lm_head becomes one more module: source.c keeps room for it. The rotation must live as long as the
 * source is read.
 *
 * What is NaN or infinite would spread over its block. In vectors it is refused by name (MX_INVALID_FILE); in matrices
 * it spreads, and is refused when they are quantised. With `mend` NaN becomes 0 and infinity the largest finite number
 * of its vector or row before anything is turned; of vectors the log says so. */
typedef struct mx_rotation mx_rotation;
mx_status mx_rotate(mx_source *source, bool mend, mx_rotation **out, mx_error *error);
void mx_rotation_free(mx_rotation *r); /* NULL allowed */

/* How many numbers of the module `mend` has changed, for which it reads all of it. */
int64_t mx_rotation_mended(const mx_module *m, mx_pool *pool);

/* The inverse, for a whole matrix in memory: w [rows, cols] of a module becomes what it would be in the model as it
 * was; nothing, where it was not rotated. Columns whose gain is 0 are not known any more, nor needed: they become 0. */
void mx_rotation_undo(const mx_module *m, float *w);

#endif
