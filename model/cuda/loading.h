#ifndef MX_MODEL_CUDA_LOADING_H
#define MX_MODEL_CUDA_LOADING_H

#include "model/cuda/cuda_private.h"
#include "model/synthetic_private.h"

/* Private to loading: weights.c says what comes from where and where it lies on the device, transfer.c brings it there.
 */

/* One tensor of the checkpoint (MXFP4: blocks and scales together) on its way: rows of a matrix, or of each expert's,
 * or values that become fp32. */
typedef struct mx_cuda_item {
    const char *name; /* as in Hugging Face's layout, in a layer behind "model.layers.N." */
    int layer;        /* -1: in none */
    bool values;      /* a vector, or each expert's: laid by mx_cuda_lay_bias, cols is 1 */
    mx_format file;   /* what `data` is */
    mx_format from; /* what the device is given: the same, or BF16 for F16 and F32 of a matrix, where they are equal */
    int64_t experts, rows, cols;       /* experts: 1 for what is outside of them */
    const uint8_t *data, *scales;      /* of expert 0, rows without gaps; scales: MXFP4 alone */
    int64_t data_stride, scale_stride; /* from expert to expert, bytes */
    /* Instead of data and scales: numbers to be made on the device. */
    const mx_synthetic_tensor *made, *made_scales;

    mx_row_order order;
    int head_dim;
    int64_t row_base;
    uint8_t *to, *to_scales; /* on the device; values: floats */
    int64_t to_stride, to_scale_stride;
} mx_cuda_item;

enum { MX_CUDA_ITEM_NAME = 160 };
void mx_cuda_item_name(const mx_cuda_item *item, char out[MX_CUDA_ITEM_NAME]); /* in full */

/* Brings all items to the device, in pieces of whole rows, each of at most `most` bytes (0: the usual size) or one
 * row. Their places are
 * zeroed (`memory`, `bytes`: all of it) before. `checkpoint`: to whom the items' data belong; NULL: nobody. Fills
 * `loaded` but for the seconds. After a failure nothing is queued any more. */
mx_status mx_cuda_transfer(const mx_cuda_item *item, int items, void *memory, uint64_t bytes, uint64_t most,
                           const mx_checkpoint *checkpoint, const mx_cuda_load_options *options, mx_cuda_loaded *loaded,
                           mx_error *error);

/* mx_cuda_weights_load with pieces of another size. */
mx_status mx_cuda_weights_load_by(const mx_weights *w, const mx_cuda_load_options *options, uint64_t most,
                                  mx_cuda_weights **out, mx_cuda_loaded *loaded, mx_error *error);

#endif
