/* Repositories whose experts are in 16 bits ("-BF16") or 32: mlp.experts.gate_up_proj [experts, in, 2 * intermediate]
 * and down_proj [experts, in, out], transposed against all other weights (transformers multiplies x W there). They
 * become [experts, out, in] as the kernels read them, in the type that they have, or of BF16 MXFP4 blocks and scales.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/checkpoint_private.h"
#include "model/quantize/quantize.h"
#include "model/show.h"

enum { TILE = 32 }; /* rows and columns that are turned at once: an MXFP4 block each */

/* ---- turned, in their type
 * -------------------------------------------------------------------------------------------- */

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

/* The same of numbers of 4 bytes. */
static void make_turned32(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    for (int64_t e = 0; e < count; e++) {
        const uint8_t *from = r->from + (uint64_t)(first + e) * r->from_stride;
        uint8_t *to = out + (uint64_t)e * (uint64_t)(r->rows * r->cols) * 4;
        for (int64_t n0 = 0; n0 < r->rows; n0 += TILE)
            for (int64_t k0 = 0; k0 < r->cols; k0 += TILE) {
                uint32_t tile[TILE][TILE];
                const int rows = r->rows - n0 < TILE ? (int)(r->rows - n0) : TILE;
                for (int k = 0; k < TILE; k++)
                    for (int n = 0; n < rows; n++) tile[n][k] = mx_load_u32(from + ((k0 + k) * r->rows + n0 + n) * 4);
                for (int n = 0; n < rows; n++) memcpy(to + ((n0 + n) * r->cols + k0) * 4, tile[n], sizeof tile[n]);
            }
    }
}

/* ---- rounded to MXFP4 ------------------------------------------------------------------------------------------- */

/* Either output may be NULL. A block with an infinity or a NaN gets a scale that is NaN, which the search for such
 * scales refuses. */
static void round_both(const mx_recipe *r, int64_t first, int64_t count, uint8_t *blocks, uint8_t *scales) {
    const int64_t per_row = r->cols / TILE, per_slice = r->rows * per_row;
    for (int64_t e = 0; e < count; e++) {
        const uint8_t *from = r->from + (uint64_t)(first + e) * r->from_stride;
        for (int64_t n0 = 0; n0 < r->rows; n0 += TILE)
            for (int64_t b = 0; b < per_row; b++) {
                uint16_t tile[TILE][TILE];
                const int rows = load_tile(tile, r, from, n0, b * TILE);
                const int64_t at = e * per_slice + n0 * per_row + b;
                mx_quantize_mxfp4((const uint16_t(*)[TILE])tile, rows, (mx_scale_rule)r->factor,
                                  blocks ? blocks + 16 * at : NULL, 16 * per_row, scales ? scales + at : NULL, per_row);
            }
    }
}

static void round_blocks(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    round_both(r, first, count, out, NULL);
}

static void round_scales(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    round_both(r, first, count, NULL, out);
}

bool mx_recipe_rounds(const mx_recipe *r) {
    return r->make == round_blocks || r->make == round_scales;
}

/* ---- what no block can hold -------------------------------------------------------------------------------------- */

static const mx_tensor *find_stored(const mx_checkpoint *ck, const char *name, size_t length) {
    for (int i = 0; i < ck->safetensors_count; i++)
        for (int j = 0; j < ck->safetensors[i].count; j++) {
            const mx_tensor *t = &ck->safetensors[i].tensor[j];
            if (strlen(t->name) == length && !memcmp(t->name, name, length) && t->dtype == MX_DTYPE_BF16) return t;
        }
    return NULL;
}

/* The first number of block `at` of the scales [experts, out, in / 32] that is none. */
static mx_status refuse_number(const mx_tensor *from, const mx_tensor *scales, int64_t at, mx_error *error) {
    const int64_t per_row = scales->shape[2], rows = scales->shape[1];
    const int64_t expert = at / per_row / rows, row = at / per_row % rows;
    int64_t col = at % per_row * TILE;
    uint16_t bits = 0;
    for (int k = 0; k < TILE; k++) {
        bits = mx_load_u16(from->data + (uint64_t)expert * from->slice_stride + ((col + k) * rows + row) * 2);
        if ((bits & 0x7F80) != 0x7F80) continue;
        col += k;
        break;
    }
    return mx_fail(
        error, MX_INVALID_FILE,
        "%s: %s: expert %lld, row %lld, column %lld is %s: MXFP4 has no such number; mxrun quantize MODEL OUT "
        "--allow-nonfinite makes NaN 0 and infinity the largest of its block",
        from->file, from->name, (long long)expert, (long long)row, (long long)col,
        bits & 0x7F     ? "NaN"
        : bits & 0x8000 ? "-infinity"
                        : "infinity");
}

mx_status mx_experts16_blame(const mx_checkpoint *ck, mx_status status, mx_error *error) {
    for (int i = 0; i < ck->count && ck->rounded; i++) {
        const mx_tensor *t = &ck->tensor[i];
        if (t->recipe || t->dtype != MX_DTYPE_U8 || t->dims != 3 || !mx_ends_with(t->name, "_scales")) continue;
        const mx_tensor *from = find_stored(ck, t->name, strlen(t->name) - strlen("_scales"));
        const uint8_t *nan = from ? memchr(t->data, 255, t->bytes) : NULL;
        if (nan) return refuse_number(from, t, nan - t->data, error);
    }
    return status;
}

/* ---- rules by name ------------------------------------------------------------------------------------------------
 */

/* What a rounding is to those who open checkpoints and to the quantiser. */
static const struct {
    mx_expert_form form;
    mx_scale_rule rule;
    const char *name; /* the rule's */
} ways[] = {[MX_ROUND_NONE] = {MX_EXPERTS_IN_PLACE, MX_RULE_OCP, ""},
            [MX_ROUND_OCP] = {MX_EXPERTS_MXFP4, MX_RULE_OCP, "ocp"},
            [MX_ROUND_OVERFLOW] = {MX_EXPERTS_OVERFLOW, MX_RULE_OVERFLOW, "overflow"},
            [MX_ROUND_SEARCH] = {MX_EXPERTS_SEARCH, MX_RULE_SEARCH, "search"}};
enum { WAYS = sizeof ways / sizeof *ways };

static mx_scale_rule rule_of(mx_expert_form form) {
    int way = WAYS - 1;
    while (way && ways[way].form != form) way--;
    return ways[way].rule;
}

mx_expert_form mx_experts_form(mx_rounding rounding) {
    return ways[rounding].form;
}

const char *mx_rounding_name(mx_rounding rounding) {
    return ways[rounding].name;
}

mx_status mx_rounding_parse(const char *text, mx_rounding *out, mx_error *error) {
    mx_quantize_recipe r = {.rule = MX_RULE_OCP};
    const bool known =
        !strcmp(text, "mxfp4") || (!strncmp(text, "mxfp4:", 6) && !mx_quantize_recipe_parse(text + 6, &r, NULL) &&
                                   !r.four_over_six && !r.tensor_search && !r.gptq && !r.hadamard);
    for (int way = MX_ROUND_OCP; known && way < WAYS; way++)
        if (ways[way].rule == r.rule) {
            *out = (mx_rounding)way;
            return MX_OK;
        }
    return mx_fail(error, MX_INVALID_ARGUMENT,
                   "%.60s: expected mxfp4, or mxfp4:ocp (the same), mxfp4:overflow or mxfp4:search; other formats and "
                   "recipes are for mxrun quantize",
                   text);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Replaces tensor `index`. */
static mx_status turn(mx_checkpoint *ck, int index, mx_expert_form form, mx_error *error) {
    const mx_tensor whole = ck->tensor[index];
    const int64_t experts = whole.shape[0], cols = whole.shape[1], rows = whole.shape[2];
    const bool dense = whole.dtype == MX_DTYPE_BF16 || whole.dtype == MX_DTYPE_F16 || whole.dtype == MX_DTYPE_F32;
    if (!dense || cols % TILE || !whole.bytes) {
        char shape[120];
        return mx_fail(error, dense ? MX_INVALID_FILE : MX_UNSUPPORTED,
                       "%s: %s: is %s %s, expected BF16, F16 or F32 [experts, in, out] with in a multiple of 32",
                       whole.file, whole.name, whole.dtype_name,
                       mx_show_shape(shape, sizeof shape, whole.shape, whole.dims));
    }
    if (mx_experts_rounded(form) && whole.dtype != MX_DTYPE_BF16)
        return mx_fail(
            error, MX_UNSUPPORTED,
            "%s: %s: is %s, and experts are rounded to MXFP4 while they are read from BF16 only: "
            "mxrun quantize MODEL FOLDER writes a model with such experts (and mxrun convert a GGUF of that)",
            whole.file, whole.name, whole.dtype_name);
    mx_recipe recipe = {.make = whole.dtype == MX_DTYPE_F32 ? make_turned32 : make_turned,
                        .from = whole.data,
                        .from_stride = whole.slice_stride,
                        .from_bytes = mx_tensor_slice_bytes(&whole),
                        .rows = rows,
                        .cols = cols,
                        .factor = rule_of(form),
                        .dtype = whole.dtype};
    bool ok = true;
    for (int part = 0; part < (mx_experts_rounded(form) ? 2 : 1) && ok; part++) {
        static const char *const ends[] = {"_blocks", "_scales"};
        mx_tensor *t =
            mx_checkpoint_add(ck, whole.file, "%s%s", whole.name, !mx_experts_rounded(form) ? ".weight" : ends[part]);
        if (!t) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", whole.file);
        if (!mx_experts_rounded(form)) {
            mx_tensor_form(t, whole.dtype, 3, (int64_t[]){experts, rows, cols});
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
        ck->rounded += mx_experts_rounded(form);
    }
    return status;
}
