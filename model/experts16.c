/* Repositories whose experts are in 16 bits ("-BF16"): mlp.experts.gate_up_proj [experts, in, 2 * intermediate] and
 * down_proj [experts, in, out], transposed against all other weights (transformers multiplies x W there). They become
 * [experts, out, in] as the kernels read them, in BF16, or MXFP4 blocks and scales. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/checkpoint_private.h"
#include "model/show.h"

enum { TILE = 32 }; /* rows and columns that are turned at once: an MXFP4 block each */

/* ---- turned, in BF16 -------------------------------------------------------------------------------------------- */

/* The 32 x 32 values at row n0 (out), column k0 (in) of the result; outside of `rows` nothing is read. */
static int load_tile(uint16_t tile[TILE][TILE], const mx_recipe *r, const uint8_t *from, int64_t n0, int64_t k0) {
    const int count = r->rows - n0 < TILE ? (int)(r->rows - n0) : TILE;
    for (int k = 0; k < TILE; k++) {
        const uint8_t *at = from + ((k0 + k) * r->rows + n0) * 2;
        for (int n = 0; n < count; n++) tile[n][k] = mx_load_u16(at + 2 * n);
    }
    return count;
}

static void make_turned(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    for (int64_t e = 0; e < count; e++) {
        const uint8_t *from = r->from + (uint64_t)(first + e) * r->from_stride;
        uint8_t *to = out + (uint64_t)e * (uint64_t)(r->rows * r->cols) * 2;
        for (int64_t n0 = 0; n0 < r->rows; n0 += TILE)
            for (int64_t k0 = 0; k0 < r->cols; k0 += TILE) {
                uint16_t tile[TILE][TILE];
                const int rows = load_tile(tile, r, from, n0, k0);
                for (int n = 0; n < rows; n++) memcpy(to + ((n0 + n) * r->cols + k0) * 2, tile[n], sizeof tile[n]);
            }
    }
}

/* ---- rounded to MXFP4 ------------------------------------------------------------------------------------------- */

/* OCP MX v1.0, section 6.3: the scale is 2^(floor(log2(largest)) - 2), 2 being the exponent of E2M1's largest; values
 * round to the nearest, ties to the even code, and saturate at 6. A block of zeros has the scale 2^0. The largest is a
 * BF16 value: its exponent field is floor(log2) + 127, but for subnormals, which round to a scale of 2^-127. With an
 * infinity or a NaN in it a block is NaN, which the search for such scales refuses. */
static uint8_t block_scale(const uint16_t block[TILE]) {
    int16_t largest = 0;
    for (int i = 0; i < TILE; i++) {
        const int16_t magnitude = block[i] & 0x7FFF;
        largest = magnitude > largest ? magnitude : largest;
    }
    const int exponent = largest >> 7;
    if (exponent == 255) return 255;
    return !largest ? 127 : exponent > 2 ? (uint8_t)(exponent - 2) : 0;
}

/* 0, 0.5, 1, 1.5, 2, 3, 4, 6: what lies in the middle of two goes to the even code. Written for the compiler to make
 * vectors of. */
static void round_block(const uint16_t block[TILE], uint8_t scale, uint8_t out[16]) {
    const float per_scale = ldexpf(1.0f, 127 - scale);
    int32_t code[TILE];
    for (int i = 0; i < TILE; i++) {
        const uint32_t bits = (uint32_t)(block[i] & 0x7FFF) << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        x *= per_scale;
        code[i] = (x > 0.25f) + (x >= 0.75f) + (x > 1.25f) + (x >= 1.75f) + (x > 2.5f) + (x >= 3.5f) + (x > 5.0f) +
                  (block[i] >> 15 << 3);
    }
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
}

/* Either output may be NULL. */
static void round_both(const mx_recipe *r, int64_t first, int64_t count, uint8_t *blocks, uint8_t *scales) {
    const int64_t per_row = r->cols / TILE, per_slice = r->rows * per_row;
    for (int64_t e = 0; e < count; e++) {
        const uint8_t *from = r->from + (uint64_t)(first + e) * r->from_stride;
        for (int64_t n0 = 0; n0 < r->rows; n0 += TILE)
            for (int64_t b = 0; b < per_row; b++) {
                uint16_t tile[TILE][TILE];
                const int rows = load_tile(tile, r, from, n0, b * TILE);
                for (int n = 0; n < rows; n++) {
                    const int64_t at = e * per_slice + (n0 + n) * per_row + b;
                    const uint8_t scale = block_scale(tile[n]);
                    if (scales) scales[at] = scale;
                    if (blocks) round_block(tile[n], scale, blocks + 16 * at);
                }
            }
    }
}

static void round_blocks(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    round_both(r, first, count, out, NULL);
}

static void round_scales(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    round_both(r, first, count, NULL, out);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Replaces tensor `index`. */
static mx_status turn(mx_checkpoint *ck, int index, mx_expert_form form, mx_error *error) {
    const mx_tensor whole = ck->tensor[index];
    const int64_t experts = whole.shape[0], cols = whole.shape[1], rows = whole.shape[2];
    if (whole.dtype != MX_DTYPE_BF16 || cols % TILE || !whole.bytes) {
        char shape[120];
        return mx_fail(error, whole.dtype == MX_DTYPE_BF16 ? MX_INVALID_FILE : MX_UNSUPPORTED,
                       "%s: %s: is %s %s, expected BF16 [experts, in, out] with in a multiple of 32", whole.file,
                       whole.name, whole.dtype_name, mx_show_shape(shape, sizeof shape, whole.shape, whole.dims));
    }
    mx_recipe recipe = {.make = make_turned,
                        .from = whole.data,
                        .from_stride = whole.slice_stride,
                        .from_bytes = mx_tensor_slice_bytes(&whole),
                        .rows = rows,
                        .cols = cols,
                        .dtype = whole.dtype};
    bool ok = true;
    for (int part = 0; part < (form == MX_EXPERTS_MXFP4 ? 2 : 1) && ok; part++) {
        static const char *const ends[] = {"_blocks", "_scales"};
        mx_tensor *t =
            mx_checkpoint_add(ck, whole.file, "%s%s", whole.name, form != MX_EXPERTS_MXFP4 ? ".weight" : ends[part]);
        if (!t) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", whole.file);
        if (form != MX_EXPERTS_MXFP4) {
            mx_tensor_form(t, MX_DTYPE_BF16, 3, (int64_t[]){experts, rows, cols});
        } else {
            recipe.make = part ? round_scales : round_blocks;
            recipe.make_both = part ? NULL : round_both;
            mx_tensor_form(t, MX_DTYPE_U8, part ? 3 : 4, (int64_t[]){experts, rows, cols / TILE, 16});
        }
        ok = mx_tensor_made(ck, t, &recipe);
    }
    ck->tensor[index] = ck->tensor[--ck->count];
    return ok ? MX_OK : mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", whole.file);
}

mx_status mx_experts16_read(mx_checkpoint *ck, mx_expert_form form, mx_error *error) {
    mx_status status = MX_OK;
    for (int i = ck->count - 1; i >= 0 && !status; i--) {
        const mx_tensor *t = &ck->tensor[i];
        if (t->dims != 3 ||
            !(mx_ends_with(t->name, ".mlp.experts.gate_up_proj") || mx_ends_with(t->name, ".mlp.experts.down_proj")))
            continue;
        status = turn(ck, i, form, error);
        ck->rounded += form == MX_EXPERTS_MXFP4;
    }
    return status;
}
