#include "convert/makes.h"

#include <string.h>

#include "base/bytes.h"

static const char not_bf16[] = "holds numbers of F32 that are none of BF16, and the layout has BF16 only";

uint64_t mx_dtype_bytes(mx_dtype dtype, uint64_t count) {
    switch (dtype) {
    case MX_DTYPE_U8:
    case MX_DTYPE_F8_E8M0:
    case MX_DTYPE_F8_E4M3:
    case MX_DTYPE_F8_E5M2:
    case MX_DTYPE_I8:
        return count;
    case MX_DTYPE_BF16:
    case MX_DTYPE_F16:
        return 2 * count;
    case MX_DTYPE_F32:
    case MX_DTYPE_I32:
        return 4 * count;
    case MX_DTYPE_I64:
        return 8 * count;
    case MX_DTYPE_Q8_0:
        return count / 32 * 34;
    default:
        return 0;
    }
}

/* Slices as they lie in the file where they do, else made in `scratch`. */
static const uint8_t *view(const mx_tensor *t, int64_t first, int64_t count, uint8_t *scratch) {
    if (!t->recipe && (t->slice_stride == mx_tensor_slice_bytes(t) || count == 1))
        return t->data + (uint64_t)first * t->slice_stride;
    mx_tensor_slices(t, first, count, scratch);
    return scratch;
}

static int64_t slices_of(const mx_tensor *t) {
    return t->dims ? t->shape[0] : 1;
}

static uint64_t elements_of_slice(const mx_tensor *t) {
    uint64_t n = 1;
    for (int i = 1; i < t->dims; i++) n *= (uint64_t)t->shape[i];
    return n;
}

/* ---- elements -----------------------------------------------------------------------------------------------------
 */

static void widen(uint8_t *out, const uint8_t *from, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)mx_load_u16(from + 2 * i) << 16;
        memcpy(out + 4 * i, &bits, 4);
    }
}

static bool narrow(uint8_t *out, const uint8_t *from, uint64_t n) {
    uint32_t lost = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t bits = mx_load_u32(from + 4 * i);
        const uint16_t high = (uint16_t)(bits >> 16);
        lost |= bits & 0xFFFF;
        memcpy(out + 2 * i, &high, 2);
    }
    return !lost;
}

static void half_to_single(uint8_t *out, const uint8_t *from, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        const float v = mx_f16_to_f32(mx_load_u16(from + 2 * i));
        memcpy(out + 4 * i, &v, 4);
    }
}

/* 8 bits times the 11 of an F16 scale: exact in the 24 of F32. */
static void q8_to_single(uint8_t *out, const uint8_t *from, uint64_t n) {
    for (uint64_t i = 0; i < n / 32; i++, from += 34) {
        const float scale = mx_f16_to_f32(mx_load_u16(from));
        for (int j = 0; j < 32; j++, out += 4) {
            const float v = (float)(int8_t)from[2 + j] * scale;
            memcpy(out, &v, 4);
        }
    }
}

/* n elements; NULL, or what is wrong. */
static const char *convert(uint8_t *out, mx_dtype to, const uint8_t *from, mx_dtype as, uint64_t n) {
    if (to == MX_DTYPE_F32 && as == MX_DTYPE_BF16)
        widen(out, from, n);
    else if (to == MX_DTYPE_F32 && as == MX_DTYPE_F16)
        half_to_single(out, from, n);
    else if (to == MX_DTYPE_F32 && as == MX_DTYPE_Q8_0)
        q8_to_single(out, from, n);
    else if (to == MX_DTYPE_BF16 && as == MX_DTYPE_F32)
        return narrow(out, from, n) ? NULL : not_bf16;
    else
        return "is of a type that the layout does not have (mxrun knows no exact way)";
    return NULL;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------
 */

static const char *rows(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source) {
    int64_t skipped = 0;
    for (int i = 0; i < m->froms && count; i++) {
        const mx_tensor *t = m->from[i];
        const int64_t begin = first - skipped, here = slices_of(t) - begin < count ? slices_of(t) - begin : count;
        skipped += slices_of(t);
        if (here <= 0) continue;
        *source = i;
        if (t->dtype == m->dtype) {
            mx_tensor_slices(t, begin, here, out);
        } else {
            const char *wrong =
                convert(out, m->dtype, view(t, begin, here, scratch), t->dtype, (uint64_t)here * elements_of_slice(t));
            if (wrong) return wrong;
        }
        out += (uint64_t)here * m->slice_bytes;
        first += here;
        count -= here;
    }
    return NULL;
}

/* Numbers of less than a byte, whose slices end within one. */
static const char *whole(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source) {
    (void)first;
    (void)count;
    (void)scratch;
    (void)source;
    memcpy(out, m->from[0]->data, m->slice_bytes);
    return NULL;
}

mx_made mx_make_rows(const mx_tensor *t, const mx_tensor *also, const mx_tensor *last, mx_dtype dtype) {
    mx_made m = {.make = rows, .dtype = dtype, .from = {t, also, last}};
    while (m.froms < 3 && m.from[m.froms]) m.slices += slices_of(m.from[m.froms++]);
    m.slice_bytes = dtype == t->dtype ? mx_tensor_slice_bytes(t) : mx_dtype_bytes(dtype, elements_of_slice(t));
    m.scratch = mx_tensor_slice_bytes(t);
    if (m.froms == 1 && dtype == MX_DTYPE_OTHER && m.slice_bytes * (uint64_t)m.slices != t->bytes)
        return (mx_made){.make = whole, .from = {t}, .froms = 1, .dtype = dtype, .slices = 1, .slice_bytes = t->bytes};
    return m;
}

static const char *every(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source) {
    (void)source;
    const mx_tensor *t = m->from[0];
    const uint64_t row = mx_tensor_slice_bytes(t) / (uint64_t)m->rows;
    const uint64_t made = m->slice_bytes / (uint64_t)(m->rows / m->parts);
    for (int64_t e = first; e < first + count; e++) {
        const uint8_t *from = view(t, e, 1, scratch);
        for (int64_t n = m->part; n < m->rows; n += m->parts, out += made) {
            const char *wrong = NULL;
            if (t->dtype == m->dtype)
                memcpy(out, from + (uint64_t)n * row, row);
            else
                wrong = convert(out, m->dtype, from + (uint64_t)n * row, t->dtype, (uint64_t)m->cols);
            if (wrong) return wrong;
        }
    }
    return NULL;
}

mx_made mx_make_every(const mx_tensor *t, int part, int parts, mx_dtype dtype) {
    mx_made m = {.make = every, .from = {t}, .froms = 1, .dtype = dtype, .part = part, .parts = parts, .cols = 1};
    m.slices = t->shape[0];
    m.rows = t->shape[1];
    if (t->dims > 2) m.cols = t->shape[2];
    m.slice_bytes = (uint64_t)(m.rows / parts) * mx_dtype_bytes(dtype, (uint64_t)m.cols);
    m.scratch = mx_tensor_slice_bytes(t);
    return m;
}

static const char *every_of(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch,
                            int *source) {
    (void)first;
    (void)count;
    (void)source;
    const uint64_t row = m->slice_bytes / (uint64_t)(m->rows / m->parts);
    const uint8_t *from = view(m->from[0], m->of, 1, scratch);
    for (int64_t n = m->part; n < m->rows; n += m->parts, out += row) memcpy(out, from + (uint64_t)n * row, row);
    return NULL;
}

mx_made mx_make_every_of(const mx_tensor *t, int64_t of, int part, int parts) {
    mx_made m = {.make = every_of, .from = {t}, .froms = 1, .slices = 1, .part = part, .parts = parts, .of = of};
    m.rows = t->shape[1];
    m.scratch = mx_tensor_slice_bytes(t);
    m.slice_bytes = m.scratch / (uint64_t)parts;
    return m;
}

/* ---- experts ------------------------------------------------------------------------------------------------------
 */

/* Bytes of elements 2 j and 2 j + 1, to nibbles: the low ones of byte i are element i, the high ones i + 16. Here four
 * bytes, eight elements, as eight low nibbles. */
static uint64_t spread_nibbles(uint32_t bytes) {
    uint64_t x = bytes;
    x = (x | x << 16) & 0x0000FFFF0000FFFF;
    x = (x | x << 8) & 0x00FF00FF00FF00FF;
    return (x | x << 4) & 0x0F0F0F0F0F0F0F0F;
}

static void reorder(uint8_t out[16], const uint8_t block[16]) {
    for (int i = 0; i < 2; i++) {
        const uint64_t both =
            spread_nibbles(mx_load_u32(block + 4 * i)) | spread_nibbles(mx_load_u32(block + 8 + 4 * i)) << 4;
        memcpy(out + 8 * i, &both, 8);
    }
}

static const char *mxfp4(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source) {
    (void)source;
    for (int64_t e = first; e < first + count; e++) {
        const uint8_t *blocks = view(m->from[0], e, 1, scratch);
        const uint8_t *scales = view(m->from[1], e, 1, scratch + mx_tensor_slice_bytes(m->from[0]));
        for (int64_t n = m->part; n < m->rows; n += m->parts)
            for (int64_t b = n * m->cols; b < (n + 1) * m->cols; b++, out += 17) {
                if (scales[b] == 0xFF) return "holds a block that is NaN: a weight in it is NaN or infinite";
                *out = scales[b];
                reorder(out + 1, blocks + 16 * b);
            }
    }
    return NULL;
}

mx_made mx_make_mxfp4(const mx_tensor *blocks, const mx_tensor *scales, int part, int parts) {
    mx_made m = {.make = mxfp4, .from = {blocks, scales}, .froms = 2, .part = part, .parts = parts};
    m.slices = blocks->shape[0];
    m.rows = blocks->shape[1];
    m.cols = blocks->shape[2];
    m.slice_bytes = (uint64_t)(m.rows / parts * m.cols) * 17;
    m.scratch = mx_tensor_slice_bytes(blocks) + mx_tensor_slice_bytes(scales);
    return m;
}

enum { TILE = 32 };

static const char *turned(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source) {
    (void)source;
    for (int64_t e = first; e < first + count; e++, out += m->slice_bytes) {
        const uint8_t *from = view(m->from[0], e, 1, scratch);
        for (int64_t n0 = 0; n0 < m->rows; n0 += TILE)
            for (int64_t k0 = 0; k0 < m->cols; k0 += TILE)
                for (int64_t n = n0; n < m->rows && n < n0 + TILE; n++)
                    for (int64_t k = k0; k < m->cols && k < k0 + TILE; k++)
                        memcpy(out + 2 * (k * m->rows + n), from + 2 * (n * m->cols + k), 2);
    }
    return NULL;
}

mx_made mx_make_turned(const mx_tensor *t) {
    mx_made m = {.make = turned, .from = {t}, .froms = 1};
    m.slices = t->shape[0];
    m.rows = t->shape[1];
    m.cols = t->shape[2];
    m.scratch = m.slice_bytes = mx_tensor_slice_bytes(t);
    return m;
}

/* ---- metal --------------------------------------------------------------------------------------------------------
 */

enum { HEAD = 64, SCALE_SHIFT = 14 };

/* Row 2 i + j of a head is row j * 32 + i of the checkpoint's. Halving and quartering must come back. */
static const char *qkv(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source) {
    const int64_t q = m->heads[0] * HEAD, qk = q + m->heads[1] * HEAD;
    for (int64_t n = first; n < first + count; n++) {
        const int64_t in_head = n % HEAD, row = n < qk ? n - in_head + in_head % 2 * (HEAD / 2) + in_head / 2 : n;
        *source = n < q ? 0 : n < qk ? 1 : 2;
        const mx_tensor *t = m->from[*source];
        const uint8_t *from = view(t, row - (n < q ? 0 : n < qk ? q : qk), 1, scratch);
        const float factor = n < q ? 0.5f : n < qk ? 0.25f : 1.0f;
        if (t->dtype == MX_DTYPE_F32) {
            if (!narrow(scratch, from, (uint64_t)m->cols)) return not_bf16;
            from = scratch;
        }
        for (int64_t i = 0; i < m->cols; i++, out += 2) {
            const uint16_t was = mx_load_u16(from + 2 * i);
            const uint16_t is = n < qk ? mx_f32_to_bf16(mx_bf16_to_f32(was) * factor) : was;
            if (n < qk && mx_f32_to_bf16(mx_bf16_to_f32(is) / factor) != was)
                return "holds numbers so small that they cannot be halved twice in BF16, as the layout wants";
            memcpy(out, &is, 2);
        }
    }
    return NULL;
}

mx_made mx_make_qkv(const mx_tensor *q, const mx_tensor *k, const mx_tensor *v) {
    mx_made m = {.make = qkv, .from = {q, k, v}, .froms = 3, .dtype = MX_DTYPE_BF16, .cols = 1};
    m.heads[0] = q->shape[0] / HEAD;
    m.heads[1] = k->shape[0] / HEAD;
    if (q->dims > 1) m.cols = q->shape[1];
    m.slices = q->shape[0] + k->shape[0] + v->shape[0];
    m.slice_bytes = 2 * (uint64_t)m.cols;
    m.scratch = mx_tensor_slice_bytes(q);
    return m;
}

static const char *raised(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source) {
    (void)source;
    for (int64_t e = first; e < first + count; e++) {
        const uint8_t *from = view(m->from[0], e, 1, scratch);
        for (uint64_t i = 0; i < m->slice_bytes; i++) {
            if (from[i] > 254 - SCALE_SHIFT) return "holds scales above 240, which the layout cannot raise by 14";
            *out++ = (uint8_t)(from[i] + SCALE_SHIFT);
        }
    }
    return NULL;
}

mx_made mx_make_raised(const mx_tensor *scales) {
    return (mx_made){.make = raised,
                     .from = {scales},
                     .froms = 1,
                     .slices = scales->shape[0],
                     .slice_bytes = mx_tensor_slice_bytes(scales),
                     .scratch = mx_tensor_slice_bytes(scales)};
}
