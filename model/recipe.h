#ifndef MX_MODEL_RECIPE_H
#define MX_MODEL_RECIPE_H

#include "model/model.h"

/* Private to model/: how a tensor is made of what a file of another layout holds. One recipe makes one tensor, by
 * slices of its first dimension, each from the same slice of one or two sources. */
typedef struct mx_recipe mx_recipe;
struct mx_recipe {
    /* Slices first .. first + count to `out`, without gaps. Depends on nothing but the recipe; any thread. */
    void (*make)(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out);
    /* MXFP4's blocks and scales come from the same bytes: a recipe of blocks makes both at once. NULL: it makes one. */
    void (*make_both)(const mx_recipe *r, int64_t first, int64_t count, uint8_t *blocks, uint8_t *scales);
    const mx_tensor *scales;    /* with make_both, once there is room: the tensor that it makes, too */
    const uint8_t *from, *also; /* slice 0 of the sources; `also` NULL: there is one */
    const uint8_t *const *each; /* slices of the source that lie anywhere, instead of `from`; NULL: they do not */
    uint64_t from_stride, also_stride; /* bytes from one slice to the next */
    uint64_t from_bytes, also_bytes;   /* of one slice */
    int64_t rows, cols;                /* of one slice of the result */
    mx_dtype dtype;                    /* of the source, where it may differ */
    int64_t factor;                    /* bytes of a row, or what q and k are multiplied by */
};

#endif
