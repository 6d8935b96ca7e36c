#ifndef MX_MODEL_SYNTHETIC_H
#define MX_MODEL_SYNTHETIC_H

#include <signal.h>

#include "base/progress.h"
#include "model/model.h"

/* Models of random weights with the exact shapes, types and bytes of real ones, for measuring machines. Every byte is a
 * function of the seed, the tensor's name and its place in the tensor: a model in memory and one on disk are the same,
 * on any machine, with any number of threads.
 *
 * The numbers are such that activations stay as in a trained model: products keep the size of a normalised row, the
 * residual stream grows slowly, router logits spread over the experts, nothing comes near a type's ends. */

/* "gpt-oss-20b", "gpt-oss-120b", or the path of a config.json (or of its folder). `layers` above 0: so many of its
 * layers, from the front. */
mx_status mx_synthetic_config(const char *what, int layers, mx_config *out, mx_error *error);

/* Bytes of all tensors. */
uint64_t mx_synthetic_bytes(const mx_config *c);

/* Makes the weights in memory, in huge pages where the system gives them; free with mx_weights_close. `progress` (may
 * be NULL) was started with the model's bytes. MX_NO_MEMORY before anything is made when the memory that is free does
 * not hold them; MX_CANCELLED soon after *stop (may be NULL) is no longer 0. A pool of several nodes brings each node's
 * part of every matrix into its memory; MX_NUMA_INTERLEAVE takes pages from all of them in turn. */
mx_status mx_synthetic_weights(const mx_config *c, uint64_t seed, mx_pool *pool, mx_numa numa, mx_progress *progress,
                               const volatile sig_atomic_t *stop, mx_weights **out, mx_error *error);

/* The same model without its numbers, which no memory could hold or a GPU makes by itself: every tensor has its type
 * and shape, and is zeros that take no memory. Nothing may be computed with it. */
mx_status mx_synthetic_shape(const mx_config *c, mx_weights **out, mx_error *error);

/* Writes the same weights to `folder`, which must not exist or be empty, in the Hugging Face layout: .safetensors of at
 * most 5 GB, their index, config.json and generation_config.json. The folder appears when everything is on the disk; a
 * run that fails or is stopped leaves nothing behind. Needs little memory; MX_IO beforehand where the disk has no room.
 */
mx_status mx_synthetic_save(const mx_config *c, uint64_t seed, mx_pool *pool, mx_progress *progress,
                            const volatile sig_atomic_t *stop, const char *folder, mx_error *error);

#endif
