#ifndef MX_CUDA_PRODUCTS_CUH
#define MX_CUDA_PRODUCTS_CUH

#include "kernels/cuda/cuda_kernels.h"

/* Private to matmul*.cu: the kernels, by what they are made for. Which one works on a row leaves its bits as they are.
 */

/* Of the 8 * tiles activation rows a block has room for: 1, 2, 4 or 8 tiles. */
void mx_few_launch(const mx_cuda_matmul *m, int tiles, mx_gpu_stream *s);
void mx_many_launch(const mx_cuda_matmul *m, mx_gpu_stream *s);

#endif
