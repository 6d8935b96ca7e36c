#ifndef MX_TESTS_CUDA_TARGET_H
#define MX_TESTS_CUDA_TARGET_H

/* Where a test's kernels run. Its source is built twice: with the emulation (suite cuda), and, where the plugin is
 * built, with nvcc's kernels for a real GPU (suite gpu; MX_TARGET_GPU is defined). There
 *
 * - the first GPU is taken; without one main returns SKIPPED and says why;
 * - mx_emulation_set_order does nothing: a loop over the orders repeats the same, which must give the same bits;
 * - memory that nobody wrote is anything, and free memory is no exact number, since the driver takes its own;
 * - numbers may differ from the CPU's where a test says so by EMULATED: tensor cores cut a sum of fp32 off where the
 *   emulation rounds it, and expf, exp2, cos and sin are right to an ulp or two, not to the bit. */
#include <stdbool.h>
#include <stdio.h>

#include "kernels/cuda/gpu.h"
#include "tests/cuda/emulation/order.h"

enum { SKIPPED = 77 };

#ifdef MX_TARGET_GPU
enum { EMULATED = 0 };
#else
enum { EMULATED = 1 };
#endif

static inline bool no_device(void) {
    mx_error error;
    int count;
    if (!mx_gpu_count(&count, &error)) return false;
    fprintf(stderr, "skipped: %s\n", error.text);
    return true;
}

#endif
