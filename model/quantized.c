/* What the tensors of a quantised module are: the table of docs/quantized.md, by names, types and shapes. */
#include "model/quantized.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/mx.h"
#include "model/show.h"

enum part {
    WEIGHT,
    PACKED,
    E2M3,
    E3M2,
    AMXFP4,
    DATA_PARTS,
    SCALE = DATA_PARTS,
    GLOBAL,
    SCALE_2,
    ZERO,
    SHAPE,
    ORDER,
    SCALE_INV,
    PRE_QUANT,
    PARTS
};
static const char *const names[PARTS] = {
    [WEIGHT] = "weight",
    [PACKED] = "weight_packed",
    [E2M3] = "weight_e2m3",
    [E3M2] = "weight_e3m2",
    [AMXFP4] = "weight_amxfp4",
    [SCALE] = "weight_scale",
    [GLOBAL] = "weight_global_scale",
    [SCALE_2] = "weight_scale_2",
    [ZERO] = "weight_zero_point",
    [SHAPE] = "weight_shape",
    [ORDER] = "weight_g_idx",
    [SCALE_INV] = "weight_scale_inv",
    [PRE_QUANT] = "pre_quant_scale",
};

typedef struct module {
    mx_checkpoint *ck;
    const char *model, *name;
    const mx_tensor *part[PARTS];
    bool used[PARTS];
    int64_t experts, rows, cols; /* experts 0: no dimension of them */
    mx_block_tensor *out;
    mx_error *error;
} module;

static const mx_tensor *find(const mx_checkpoint *ck, const char *name, enum part p) {
    char full[MX_TENSOR_NAME];
    return snprintf(full, sizeof full, "%s.%s", name, names[p]) < (int)sizeof full ? mx_checkpoint_find(ck, full)
                                                                                   : NULL;
}

static bool is_plain(mx_dtype dtype) {
    return dtype == MX_DTYPE_BF16 || dtype == MX_DTYPE_F16 || dtype == MX_DTYPE_F32 || dtype == MX_DTYPE_Q8_0 ||
           dtype == MX_DTYPE_MXFP4;
}

bool mx_module_quantized(const mx_checkpoint *ck, const char *name) {
    const mx_tensor *weight = find(ck, name, WEIGHT);
    if (weight && (weight->dtype == MX_DTYPE_U8 || weight->dtype == MX_DTYPE_I8 || weight->dtype == MX_DTYPE_F8_E4M3 ||
                   weight->dtype == MX_DTYPE_F8_E5M2))
        return true;
    for (int p = WEIGHT + 1; p < PARTS; p++)
        if (find(ck, name, (enum part)p)) return true;
    return false;
}

/* ---- errors -------------------------------------------------------------------------------------------------------
 */

__attribute__((format(printf, 3, 4))) static mx_status wrong(const module *m, enum part p, const char *format, ...) {
    char expected[200], shape[120];
    const mx_tensor *t = m->part[p];
    va_list list;
    va_start(list, format);
    vsnprintf(expected, sizeof expected, format, list);
    va_end(list);
    return mx_fail(m->error, MX_INVALID_FILE, "%s: %s: is %s %s, expected %s", t->file, t->name, t->dtype_name,
                   mx_show_shape(shape, sizeof shape, t->shape, t->dims), expected);
}

static mx_status missing(const module *m, enum part p) {
    const mx_tensor *data = m->out->data;
    if (data)
        return mx_fail(m->error, MX_INVALID_FILE,
                       "%s: %s is %s, but tensor %s.%s is missing: is the download complete?", data->file, data->name,
                       data->dtype_name, m->name, names[p]);
    return mx_fail(m->error, MX_INVALID_FILE, "%s: tensor %s.%s is missing: is the download complete?", m->model,
                   m->name, names[p]);
}

/* "[32, " or "[": the begin of an expected shape. */
static const char *lead(const module *m, char out[32]) {
    snprintf(out, 32, m->experts ? "[%lld, " : "[", (long long)m->experts);
    return out;
}

static bool has_shape(const module *m, enum part p, int dims, int64_t rows, int64_t cols) {
    const mx_tensor *t = m->part[p];
    const int first = m->experts ? 1 : 0;
    if (t->dims != dims + first || (first && t->shape[0] != m->experts)) return false;
    return (dims < 1 || t->shape[first] == rows) && (dims < 2 || t->shape[first + 1] == cols);
}

/* ---- the parts ----------------------------------------------------------------------------------------------------
 */

/* Elements in `p`, `width` of its elements a row. */
static mx_status take_data(module *m, enum part p, mx_format format, const char *type, int64_t width) {
    char begin[32];
    mx_block_tensor *b = m->out;
    const mx_tensor *t = m->part[p];
    m->used[p] = true;
    if (m->cols % 32 || !has_shape(m, p, 2, m->rows, width))
        return wrong(m, p, "%s %s%lld, %lld] for a matrix of %lld columns", type, lead(m, begin), (long long)m->rows,
                     (long long)width, (long long)m->cols);
    b->data = t;
    b->coded = format;
    b->matrix = (mx_matrix){.format = format,
                            .rows = m->rows,
                            .cols = m->cols,
                            .data = t->data,
                            .row_stride = mx_columns_bytes(format, m->cols)};
    b->data_stride = m->experts ? (int64_t)t->slice_stride : 0;
    return MX_OK;
}

static bool is_type(const mx_tensor *t, mx_scale_type type) {
    return type == MX_SCALE_E8M0   ? t->dtype == MX_DTYPE_U8 || t->dtype == MX_DTYPE_F8_E8M0
           : type == MX_SCALE_E4M3 ? t->dtype == MX_DTYPE_F8_E4M3
                                   : t->dtype == MX_DTYPE_BF16;
}

/* Scales of blocks, of one of these sizes (0 at the end). `sides`: two for each. */
static mx_status take_scales(module *m, mx_scale_type type, bool sides, const int *sizes) {
    static const char *const types[] = {
        [MX_SCALE_E8M0] = "U8 or F8_E8M0", [MX_SCALE_E4M3] = "F8_E4M3", [MX_SCALE_BF16] = "BF16"};
    const mx_tensor *t = m->part[SCALE];
    mx_block_tensor *b = m->out;
    char text[100] = "", begin[32];
    if (!t) return missing(m, SCALE);
    m->used[SCALE] = true;
    for (const int *size = sizes; *size && is_type(t, type); size++) {
        const int64_t per_row = m->cols / *size * (sides ? 2 : 1);
        if (m->cols % *size || !has_shape(m, SCALE, 2, m->rows, per_row)) continue;
        b->blocks = (mx_blocks){.columns = *size, .scale = type, .sides = sides};
        b->scale = t;
        b->matrix.scales = t->data;
        b->matrix.scale_stride = mx_row_scale_bytes(&b->blocks, m->cols);
        b->scale_stride = m->experts ? (int64_t)t->slice_stride : 0;
        return MX_OK;
    }
    for (const int *size = sizes; *size; size++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", size == sizes ? "" : " or ", *size);
    return wrong(m, SCALE, "%s %s%lld, %s%lld / %s]", types[type], lead(m, begin), (long long)m->rows,
                 sides ? "2 * " : "", (long long)m->cols, text);
}

/* A number for the matrix, or, where `of_rows`, for each row. */
static mx_status take_post(module *m, enum part p, bool of_rows, bool divides) {
    const mx_tensor *t = m->part[p];
    mx_block_tensor *b = m->out;
    char begin[32];
    if (!t) return missing(m, p);
    m->used[p] = true;
    const bool one = has_shape(m, p, 0, 0, 0) || has_shape(m, p, 1, 1, 0),
               rows = of_rows && !one && (has_shape(m, p, 2, m->rows, 1) || has_shape(m, p, 1, m->rows, 0));
    if ((!rows && !one) || (t->dtype != MX_DTYPE_F32 && (!of_rows || t->dtype != MX_DTYPE_BF16))) {
        if (!of_rows) return wrong(m, p, "F32 %s1]", lead(m, begin));
        return wrong(m, p, "F32 or BF16 %s1], %s%lld] or %s%lld, 1], or U8 or F8_E8M0 %s%lld, %lld / 32]",
                     lead(m, begin), begin, (long long)m->rows, begin, (long long)m->rows, begin, (long long)m->rows,
                     (long long)m->cols);
    }
    const int64_t count = rows ? m->rows : 1;
    b->posts = mx_checkpoint_alloc(m->ck, (size_t)((m->experts ? m->experts : 1) * count) * sizeof *b->posts);
    if (!b->posts) return mx_fail(m->error, MX_NO_MEMORY, "%s: no memory for its scales", m->model);
    b->post = t;
    b->divides = divides;
    b->matrix.post = b->posts;
    b->matrix.post_step = rows;
    b->post_stride = m->experts ? count : 0;
    return MX_OK;
}

/* INT8's zeros as they are, INT4's packed along the rows. */
static mx_status take_zeros(module *m) {
    const mx_tensor *t = m->part[ZERO];
    mx_block_tensor *b = m->out;
    char begin[32];
    if (!t) return MX_OK;
    m->used[ZERO] = true;
    const bool packed = b->coded == MX_INT4;
    const int64_t rows = packed ? (m->rows + 7) / 8 : m->rows, per_row = m->cols / b->blocks.columns;
    if (t->dtype != (packed ? MX_DTYPE_I32 : MX_DTYPE_I8) || !has_shape(m, ZERO, 2, rows, per_row))
        return wrong(m, ZERO, "%s %s%lld, %lld]", packed ? "I32" : "I8", lead(m, begin), (long long)rows,
                     (long long)per_row);
    b->zero = t;
    b->blocks.zeros = true;
    b->matrix.zero_stride = per_row;
    if (packed) {
        b->zeros = mx_checkpoint_alloc(m->ck, (size_t)((m->experts ? m->experts : 1) * m->rows * per_row));
        if (!b->zeros) return mx_fail(m->error, MX_NO_MEMORY, "%s: no memory for its zero points", m->model);
    }
    b->matrix.zeros = packed ? b->zeros : (const int8_t *)t->data;
    b->zero_stride = !m->experts ? 0 : packed ? m->rows * per_row : (int64_t)t->slice_stride;
    return MX_OK;
}

static mx_status take_shape(module *m) {
    char begin[32];
    if (!m->part[SHAPE]) return MX_OK;
    m->used[SHAPE] = true;
    m->out->shape = m->part[SHAPE];
    if (m->part[SHAPE]->dtype != MX_DTYPE_I64 || !has_shape(m, SHAPE, 1, 2, 0))
        return wrong(m, SHAPE, "I64 %s2]", lead(m, begin));
    return MX_OK;
}

/* ---- the formats --------------------------------------------------------------------------------------------------
 */

static const int of_16[] = {16, 0}, of_32[] = {32, 0}, of_fp4[] = {32, 16, 64, 0}, of_integers[] = {32, 64, 128, 0};

static mx_status read_packed(module *m) {
    const mx_tensor *t = m->part[PACKED], *scale = m->part[SCALE];
    if (t->dtype == MX_DTYPE_I32) {
        mx_status status = take_data(m, PACKED, MX_INT4, "I32", m->cols / 8);
        if (!status) status = take_scales(m, MX_SCALE_BF16, false, of_integers);
        if (!status) status = take_zeros(m);
        return status ? status : take_shape(m);
    }
    if (t->dtype != MX_DTYPE_U8) {
        char begin[32];
        return wrong(m, PACKED, "U8 %s%lld, %lld] (FP4) or I32 with %lld (INT4)", lead(m, begin), (long long)m->rows,
                     (long long)m->cols / 2, (long long)m->cols / 8);
    }
    if (has_shape(m, PACKED, 2, m->rows, m->cols / 4 * 3)) { /* compressed-tensors' MXFP6 */
        mx_status status = take_data(m, PACKED, MX_E2M3, "U8", m->cols / 4 * 3);
        return status ? status : take_scales(m, MX_SCALE_E8M0, false, of_32);
    }
    mx_status status = take_data(m, PACKED, MX_E2M1, "U8", m->cols / 2);
    if (status) return status;
    if (scale && scale->dtype == MX_DTYPE_F8_E4M3) {
        status = take_scales(m, MX_SCALE_E4M3, false, of_16);
        return status ? status : take_post(m, GLOBAL, false, true);
    }
    return take_scales(m, MX_SCALE_E8M0, false, of_fp4);
}

static mx_status read_weight(module *m) {
    const mx_tensor *t = m->part[WEIGHT], *scale = m->part[SCALE];
    mx_status status;
    switch (t->dtype) {
    case MX_DTYPE_U8: /* ModelOpt's NVFP4 */
        status = take_data(m, WEIGHT, MX_E2M1, "U8", m->cols / 2);
        if (!status) status = take_scales(m, MX_SCALE_E4M3, false, of_16);
        return status ? status : take_post(m, SCALE_2, false, false);
    case MX_DTYPE_I8:
        status = take_data(m, WEIGHT, MX_INT8, "I8", m->cols);
        if (!status) status = take_scales(m, MX_SCALE_BF16, false, of_integers);
        return status ? status : take_zeros(m);
    case MX_DTYPE_F8_E4M3:
    case MX_DTYPE_F8_E5M2:
        status = take_data(m, WEIGHT, t->dtype == MX_DTYPE_F8_E4M3 ? MX_E4M3 : MX_E5M2, t->dtype_name, m->cols);
        if (status) return status;
        if (!scale && m->part[SCALE_INV]) return MX_OK; /* which is refused, by its name */
        if (scale && is_type(scale, MX_SCALE_E8M0)) return take_scales(m, MX_SCALE_E8M0, false, of_32);
        return take_post(m, SCALE, true, false);
    default:
        return MX_OK;
    }
}

static mx_status read_data(module *m) {
    mx_status status;
    if (m->part[PACKED]) return read_packed(m);
    if (m->part[WEIGHT]) return read_weight(m);
    if (m->part[AMXFP4]) {
        status = take_data(m, AMXFP4, MX_E2M1, "U8", m->cols / 2);
        return status ? status : take_scales(m, MX_SCALE_E8M0, true, of_32);
    }
    const enum part p = m->part[E2M3] ? E2M3 : E3M2;
    if (!m->part[p]) return missing(m, WEIGHT);
    status = take_data(m, p, p == E2M3 ? MX_E2M3 : MX_E3M2, "U8", m->cols / 4 * 3);
    return status ? status : take_scales(m, MX_SCALE_E8M0, false, of_32);
}

/* What stands there and means something that was not taken into account. */
static mx_status check_rest(const module *m) {
    for (int p = WEIGHT; p < PARTS; p++) {
        const mx_tensor *t = m->part[p];
        if (!t || m->used[p]) continue;
        const char *why = p == ORDER ? "columns in an order of their own (act-order): quantise the model without it"
                          : p == SCALE_INV ? "scales for blocks of rows and columns: take another form of the model"
                          : p == PRE_QUANT
                              ? "activations are to be multiplied by it (AWQ): take another form of the model"
                              : "with the other tensors of its module it is none of the formats of "
                                "docs/quantized.md";
        return mx_fail(m->error, MX_UNSUPPORTED, "%s: %s (%s) is not supported: %s", t->file, t->name, t->dtype_name,
                       why);
    }
    return MX_OK;
}

mx_status mx_module_read(mx_checkpoint *ck, const char *model, const char *name, int64_t experts, int64_t rows,
                         int64_t cols, mx_block_tensor *out, mx_error *error) {
    *out = (mx_block_tensor){.experts = experts};
    module m = {.ck = ck,
                .model = model,
                .name = name,
                .experts = experts,
                .rows = rows,
                .cols = cols,
                .out = out,
                .error = error};
    for (int p = WEIGHT; p < PARTS; p++) m.part[p] = find(ck, name, (enum part)p);
    mx_status status = read_data(&m);
    if (!status) status = check_rest(&m);
    if (status) return status;
    out->matrix.blocks = out->blocks;
    if (out->coded == MX_E2M1 && out->blocks.columns == 32 && !out->blocks.sides && !out->matrix.post) {
        out->matrix.format = MX_MXFP4;
        out->matrix.blocks = (mx_blocks){0};
    }
    return MX_OK;
}

/* ---- what it is ----------------------------------------------------------------------------------------------------
 */

void mx_weight_name(char out[MX_WEIGHT_NAME], const mx_matrix *w) {
    static const char *const plain[MX_FORMATS] = {
        [MX_F32] = "F32",         [MX_F16] = "F16",          [MX_BF16] = "BF16",       [MX_MXFP4] = "MXFP4",
        [MX_Q8_0] = "Q8_0",       [MX_MXFP4_GGML] = "MXFP4", [MX_E2M1] = "MXFP4",      [MX_E2M3] = "MXFP6 E2M3",
        [MX_E3M2] = "MXFP6 E3M2", [MX_E4M3] = "MXFP8 E4M3",  [MX_E5M2] = "MXFP8 E5M2", [MX_INT8] = "INT8",
        [MX_INT4] = "INT4"};
    const mx_blocks *b = &w->blocks;
    const bool float8 = w->format == MX_E4M3 || w->format == MX_E5M2;
    if (w->format == MX_E2M1 && b->sides)
        snprintf(out, MX_WEIGHT_NAME, "AMXFP4");
    else if (w->format == MX_E2M1 && b->scale == MX_SCALE_E4M3)
        snprintf(out, MX_WEIGHT_NAME, "NVFP4");
    else if (float8 && !b->columns)
        snprintf(out, MX_WEIGHT_NAME, "FP8 %s%s", plain[w->format] + 6, w->post && w->post_step ? " channel" : "");
    else if (mx_is_integer_format(w->format) || (w->format == MX_E2M1 && b->columns))
        snprintf(out, MX_WEIGHT_NAME, "%s of %d%s", plain[w->format], b->columns, b->zeros ? " asymmetric" : "");
    else
        snprintf(out, MX_WEIGHT_NAME, "%s", plain[w->format]);
}

const mx_tensor *mx_checkpoint_quantized(const mx_checkpoint *ck) {
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        const bool weight = mx_ends_with(t->name, ".weight");
        if (weight && t->dims >= 2 && !is_plain(t->dtype)) return t;
        for (int p = WEIGHT + 1; !weight && p < DATA_PARTS; p++) {
            const size_t n = strlen(names[p]), all = strlen(t->name);
            if (all > n && t->name[all - n - 1] == '.' && !strcmp(t->name + all - n, names[p])) return t;
        }
    }
    return NULL;
}

mx_format mx_checkpoint_format(const mx_checkpoint *ck, const char *name) {
    static const mx_format of_dtype[MX_DTYPE_OTHER + 1] = {
        [MX_DTYPE_U8] = MX_E2M1,      [MX_DTYPE_BF16] = MX_BF16,    [MX_DTYPE_F16] = MX_F16,
        [MX_DTYPE_F32] = MX_F32,      [MX_DTYPE_Q8_0] = MX_Q8_0,    [MX_DTYPE_MXFP4] = MX_MXFP4_GGML,
        [MX_DTYPE_F8_E4M3] = MX_E4M3, [MX_DTYPE_F8_E5M2] = MX_E5M2, [MX_DTYPE_I8] = MX_INT8,
        [MX_DTYPE_I32] = MX_BF16,     [MX_DTYPE_I64] = MX_BF16,     [MX_DTYPE_F8_E8M0] = MX_BF16,
        [MX_DTYPE_OTHER] = MX_BF16};
    const mx_tensor *t = find(ck, name, PACKED), *scale = find(ck, name, SCALE);
    if (t && t->dtype == MX_DTYPE_I32) return MX_INT4;
    const int64_t bytes = scale && scale->bytes ? (int64_t)(t ? t->bytes / scale->bytes : 0) : 0;
    /* Scales of 32 columns: 16 bytes of MXFP4, 24 of compressed-tensors' MXFP6. */
    if (t && scale && scale->dtype != MX_DTYPE_F8_E4M3 && bytes == 24) return MX_E2M3;
    if (t) return scale && scale->dtype != MX_DTYPE_F8_E4M3 && bytes == 16 ? MX_MXFP4 : MX_E2M1;
    if (find(ck, name, E2M3)) return MX_E2M3;
    if (find(ck, name, E3M2)) return MX_E3M2;
    if (find(ck, name, AMXFP4)) return MX_E2M1;
    t = find(ck, name, WEIGHT);
    return t ? of_dtype[t->dtype] : MX_BF16;
}
