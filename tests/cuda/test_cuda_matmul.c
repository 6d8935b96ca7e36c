/* Laying weights out, and products: against what layout.h and scalar C say, and each kernel against the other. */
#include "device_memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"

static void *room(size_t bytes) {
    void *p = calloc(bytes + 1, 1);
    assert_non_null(p);
    return p;
}

static void store_u16(uint8_t *to, uint16_t v) {
    memcpy(to, &v, 2);
}

/* ---- matrices ---- */

typedef struct source { /* as it lies in a file, rows one after the other */
    mx_format format;
    int64_t rows, cols, row_stride;
    uint8_t *data, *scales; /* scales: MXFP4 */
    float *values;          /* [rows, cols] */
} source;

static void free_source(source *w) {
    free(w->data);
    free(w->scales);
    free(w->values);
}

static void widen_source(source *w) {
    for (int64_t row = 0; row < w->rows; row++) {
        const uint8_t *from = w->data + row * w->row_stride;
        float *to = w->values + row * w->cols;
        for (int64_t b = 0; b < w->cols / 32; b++, to += 32) {
            if (w->format == MX_MXFP4)
                mx_mxfp4_widen(to, from + 16 * b, w->scales[row * w->cols / 32 + b]);
            else if (w->format == MX_MXFP4_GGML)
                mx_mxfp4_ggml_widen(to, from + MX_MXFP4_GGML_BYTES * b);
            else if (w->format == MX_Q8_0)
                mx_q8_0_widen(to, from + MX_Q8_0_BYTES * b);
            else
                for (int i = 0; i < 32; i++) to[i] = mx_bf16_to_f32(mx_load_u16(from + 64 * b + 2 * i));
        }
    }
}

/* Scale bytes least .. most. */
static source make_source(rng *r, mx_format format, int64_t rows, int64_t cols, int least, int most) {
    source w = {format, rows, cols, mx_columns_bytes(format, cols) + 3, NULL, NULL, NULL};
    w.data = room((size_t)(rows * w.row_stride));
    w.scales = room((size_t)(rows * cols / 32));
    w.values = room((size_t)(rows * cols) * sizeof(float));
    for (int64_t i = 0; i < rows * w.row_stride; i++) w.data[i] = (uint8_t)rng_bits(r);
    for (int64_t i = 0; i < rows * cols / 32; i++) {
        uint8_t *block = w.data + i / (cols / 32) * w.row_stride + i % (cols / 32) * mx_columns_bytes(format, 32);
        const uint8_t scale = (uint8_t)(least + rng_below(r, most - least + 1));
        w.scales[i] = scale;
        if (format == MX_MXFP4_GGML) block[0] = scale;
        if (format == MX_Q8_0) store_u16(block, mx_f32_to_f16(rng_normal(r) * 0.01f));
        for (int k = 0; format == MX_BF16 && k < 32; k++)
            store_u16(block + 2 * k, mx_f32_to_bf16(rng_normal(r) * 0.3f));
    }
    widen_source(&w);
    return w;
}

static mx_cuda_format laid_format(mx_format format) {
    return format == MX_BF16 ? MX_CUDA_BF16 : format == MX_Q8_0 ? MX_CUDA_Q8_0 : MX_CUDA_MXFP4;
}

/* A matrix of zeros for `rows` x `cols`. */
static mx_cuda_matrix new_matrix(device *d, mx_format format, int64_t rows, int64_t cols, int experts) {
    const mx_cuda_format to = laid_format(format);
    mx_cuda_matrix m = {.format = to, .rows = rows, .cols = cols};
    m.data_stride = mx_cuda_data_bytes(to, rows, cols);
    m.scale_stride = mx_cuda_scale_bytes(to, rows, cols);
    m.bias_stride = mx_cuda_row_tiles(rows) * 16;
    uint8_t *zeros = room((size_t)(m.data_stride * experts));
    m.data = on_device(d, zeros, (size_t)(m.data_stride * experts));
    if (m.scale_stride) m.scales = on_device(d, zeros, (size_t)(m.scale_stride * experts));
    free(zeros);
    return m;
}

/* All rows of `w` to where `base` begins, in pieces of 7 and 16 and the rest. */
static void lay(device *d, const mx_cuda_matrix *m, int expert, const source *w, mx_row_order order, int head_dim,
                int64_t base) {
    const uint8_t *data = on_device(d, w->data, (size_t)(w->rows * w->row_stride));
    const uint8_t *scales = on_device(d, w->scales, (size_t)(w->rows * w->cols / 32));
    const int64_t ends[] = {7, 23, w->rows};
    for (int64_t piece = 0, first = 0; piece < 3; piece++) {
        const int64_t end = ends[piece] < w->rows ? ends[piece] : w->rows;
        mx_cuda_lay l = {.from = w->format,
                         .rows = data + first * w->row_stride,
                         .row_stride = w->row_stride,
                         .scales = scales + first * w->cols / 32,
                         .scale_stride = w->cols / 32,
                         .first = first,
                         .count = end - first,
                         .cols = w->cols,
                         .order = order,
                         .head_dim = head_dim,
                         .row_base = base,
                         .data = (uint8_t *)(uintptr_t)m->data + expert * m->data_stride,
                         .scale_data = (uint8_t *)(uintptr_t)m->scales + expert * m->scale_stride};
        mx_cuda_lay_rows(&l, d->stream);
        first = end;
    }
}

/* ---- laying out ---- */

/* The bits of code c of a word of eight, the lowest first: written down from layout.h. */
static const uint8_t code_bits[8][4] = {{6, 7, 8, 15},   {22, 23, 24, 31}, {0, 1, 2, 9},   {16, 17, 18, 25},
                                        {28, 29, 30, 5}, {12, 13, 14, 21}, {10, 3, 4, 11}, {26, 19, 20, 27}};

/* Of a laid-out matrix in host memory the weight at a laid-out row. */
static float unlaid(const mx_cuda_matrix *m, const uint8_t *data, const uint8_t *scales, int64_t row, int64_t col) {
    const int64_t unit = row / 16 * mx_cuda_units(m->cols) + col / 64;
    const int g = (int)(row % 8), high = (int)(row % 16 / 8), b = (int)(col % 64 / 32), t = (int)(col % 32 / 8),
              i = (int)(col % 8), lane = 4 * g + t;
    if (m->format == MX_CUDA_BF16)
        return mx_bf16_to_f32(mx_load_u16(data + unit * 2048 + ((b * 2 + i / 4) * 32 + lane) * 16 + i % 4 / 2 * 8 +
                                          high * 4 + i % 2 * 2));
    if (m->format == MX_CUDA_Q8_0)
        return mx_f16_to_f32(mx_load_u16(scales + unit * 64 + ((g * 2 + b) * 2 + high) * 2)) *
               (float)(int8_t)data[unit * 1024 + ((b * 32 + lane) * 2 + high) * 8 + i];
    static const float e2m1[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    const uint32_t word = mx_load_u32(data + unit * 512 + ((lane * 2 + b) * 2 + high) * 4);
    int code = 0;
    for (int bit = 0; bit < 4; bit++) code |= (int)(word >> code_bits[i][bit] & 1) << bit;
    const float v = ldexpf(e2m1[code & 7], scales[unit * 32 + (g * 2 + b) * 2 + high] - 127);
    return code & 8 ? -v : v;
}

/* Where row `row` of the file is expected. */
static int64_t expected_row(mx_row_order order, int head_dim, int64_t row) {
    const int64_t d = head_dim ? row % head_dim : 0, half = head_dim / 2;
    switch (order) {
    case MX_ROWS_GATE_UP:
        return row / 16 * 16 + row % 16 / 2 + (row % 2 ? 8 : 0);
    case MX_ROWS_GATE:
        return row / 8 * 16 + row % 8;
    case MX_ROWS_UP:
        return row / 8 * 16 + row % 8 + 8;
    case MX_ROWS_ROPE:
        return row / head_dim * head_dim + (d >= half ? 8 : 0) + (d % half / 8 * 16) + d % half % 8;
    default:
        return row;
    }
}

static const mx_format formats[] = {MX_BF16, MX_MXFP4, MX_MXFP4_GGML, MX_Q8_0};

static void test_lay(void **state) {
    (void)state;
    rng r = rng_seeded(1);
    static const struct {
        int64_t rows, cols;
        mx_row_order order;
        int head_dim;
        int64_t base;
    } cases[] = {{16, 32, MX_ROWS_PLAIN, 0, 0},     {40, 96, MX_ROWS_PLAIN, 0, 16}, {257, 160, MX_ROWS_PLAIN, 0, 0},
                 {40, 64, MX_ROWS_GATE_UP, 0, 0},   {20, 96, MX_ROWS_GATE, 0, 0},   {20, 96, MX_ROWS_UP, 0, 0},
                 {96, 192, MX_ROWS_ROPE, 32, 32},   {128, 64, MX_ROWS_ROPE, 64, 0}, {256, 96, MX_ROWS_ROPE, 128, 0},
                 {30, 2880, MX_ROWS_GATE_UP, 0, 0}, {48, 32, MX_ROWS_ROPE, 16, 16}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases * 4 * MX_EMULATION_ORDERS; i++) {
        mx_emulation_set_order((mx_emulation_order)(i % MX_EMULATION_ORDERS));
        const size_t c = i / MX_EMULATION_ORDERS / 4;
        device d = device_open();
        source w = make_source(&r, formats[i / MX_EMULATION_ORDERS % 4], cases[c].rows, cases[c].cols, 0, 254);
        const bool apart = cases[c].order == MX_ROWS_GATE || cases[c].order == MX_ROWS_UP;
        const int64_t rows = cases[c].base + w.rows * (apart ? 2 : 1);
        const mx_cuda_matrix m = new_matrix(&d, w.format, rows, w.cols, 1);
        lay(&d, &m, 0, &w, cases[c].order, cases[c].head_dim, cases[c].base);
        uint8_t *data = room((size_t)m.data_stride), *scales = room((size_t)m.scale_stride);
        from_device(&d, data, m.data, (size_t)m.data_stride);
        if (m.scales) from_device(&d, scales, m.scales, (size_t)m.scale_stride);
        const int64_t all_rows = mx_cuda_row_tiles(rows) * 16, all_cols = mx_cuda_padded(w.cols);
        float *expected = room((size_t)(all_rows * all_cols) * sizeof(float));
        for (int64_t row = 0; row < w.rows; row++) {
            const int64_t to = cases[c].base + expected_row(cases[c].order, cases[c].head_dim, row);
            memcpy(expected + to * all_cols, w.values + row * w.cols, (size_t)w.cols * sizeof(float));
        }
        for (int64_t at = 0; at < all_rows * all_cols; at++) {
            const float found = unlaid(&m, data, scales, at / all_cols, at % all_cols);
            if (memcmp(&found, &expected[at], 4))
                fail_msg("case %zu, format %d: laid-out row %d, column %d: %a, not %a", c, w.format,
                         (int)(at / all_cols), (int)(at % all_cols), (double)found, (double)expected[at]);
        }
        free(expected);
        free(data);
        free(scales);
        free_source(&w);
        device_close(&d);
    }
}

/* GGUF has gate and up apart. */
static void test_lay_apart(void **state) {
    (void)state;
    rng r = rng_seeded(2);
    device d = device_open();
    source both = make_source(&r, MX_MXFP4, 42, 96, 100, 130);
    source half[2];
    for (int h = 0; h < 2; h++) {
        half[h] = make_source(&r, MX_MXFP4, 21, 96, 100, 130);
        for (int i = 0; i < 21; i++) {
            memcpy(half[h].data + i * half[h].row_stride, both.data + (2 * i + h) * both.row_stride, 48);
            memcpy(half[h].scales + 3 * i, both.scales + 3 * (2 * i + h), 3);
        }
    }
    mx_cuda_matrix m[2];
    uint8_t *bytes[2];
    for (int i = 0; i < 2; i++) {
        m[i] = new_matrix(&d, MX_MXFP4, 42, 96, 1);
        if (i == 0) lay(&d, &m[0], 0, &both, MX_ROWS_GATE_UP, 0, 0);
        for (int h = 0; i == 1 && h < 2; h++) lay(&d, &m[1], 0, &half[h], h ? MX_ROWS_UP : MX_ROWS_GATE, 0, 0);
        bytes[i] = room((size_t)(m[i].data_stride + m[i].scale_stride));
        from_device(&d, bytes[i], m[i].data, (size_t)m[i].data_stride);
        from_device(&d, bytes[i] + m[i].data_stride, m[i].scales, (size_t)m[i].scale_stride);
    }
    assert_memory_equal(bytes[0], bytes[1], (size_t)(m[0].data_stride + m[0].scale_stride));
    for (int i = 0; i < 2; i++) {
        free(bytes[i]);
        free_source(&half[i]);
    }
    free_source(&both);
    device_close(&d);
}

static void test_lay_bias(void **state) {
    (void)state;
    rng r = rng_seeded(3);
    device d = device_open();
    static const mx_format from[] = {MX_F32, MX_BF16, MX_F16};
    for (int f = 0; f < 3; f++) {
        uint8_t bytes[300 * 4 + 1];
        float expected[320] = {0}, found[320];
        for (int i = 0; i < 300; i++) {
            const float v = rng_normal(&r);
            uint8_t *to = bytes + 1 + i * (f ? 2 : 4);
            if (f == 0) memcpy(to, &v, 4);
            if (f == 1) store_u16(to, mx_f32_to_bf16(v));
            if (f == 2) store_u16(to, mx_f32_to_f16(v));
            const int64_t row = 16 + expected_row(MX_ROWS_GATE_UP, 0, i);
            expected[row] = f == 0 ? v : f == 1 ? mx_bf16_to_f32(mx_load_u16(to)) : mx_f16_to_f32(mx_load_u16(to));
        }
        memset(found, 0, sizeof found);
        const uint8_t *values = on_device(&d, bytes, sizeof bytes);
        float *bias = on_device(&d, found, sizeof found);
        mx_cuda_lay_bias(bias, values + 1, from[f], 0, 21, MX_ROWS_GATE_UP, 0, 16, d.stream);
        mx_cuda_lay_bias(bias, values + 1 + 21 * (f ? 2 : 4), from[f], 21, 279, MX_ROWS_GATE_UP, 0, 16, d.stream);
        from_device(&d, found, bias, sizeof found);
        assert_memory_equal(found, expected, sizeof found);
    }
    device_close(&d);
}

static void test_largest_scale(void **state) {
    (void)state;
    rng r = rng_seeded(4);
    for (int order = 0; order < MX_EMULATION_ORDERS; order++) {
        mx_emulation_set_order((mx_emulation_order)order);
        for (int bytes = 1; bytes < 20000; bytes = bytes * 3 + 1) {
            device d = device_open();
            uint8_t scales[20000];
            for (int i = 0; i < bytes; i++) scales[i] = (uint8_t)rng_below(&r, 120);
            const int at = rng_below(&r, bytes);
            scales[at] = 120;
            uint32_t found = 0;
            uint32_t *word = on_device(&d, &found, 4);
            mx_cuda_largest_scale(on_device(&d, scales, (size_t)bytes), bytes, word, d.stream);
            from_device(&d, &found, word, 4);
            assert_int_equal(found, 120);
            device_close(&d);
        }
    }
}

/* ---- products ---- */

typedef enum kernel { FEW, MANY, CHOSEN } kernel;
static void run(kernel k, const mx_cuda_matmul *m, mx_gpu_stream *s) {
    if (k == FEW) mx_cuda_matmul_few(m, s);
    if (k == MANY) mx_cuda_matmul_many(m, s);
    if (k == CHOSEN) mx_cuda_matmul_run(m, s);
}

/* x [rows, cols] as terms on the device; x becomes their sum. */
static const uint16_t *make_terms(device *d, float *x, int64_t rows, int64_t cols, int terms, int64_t *x_term) {
    const int64_t padded = mx_cuda_padded(cols);
    *x_term = rows * padded + 64;
    uint16_t *out = room((size_t)(*x_term * terms) * 2);
    for (int64_t i = 0; i < rows * cols; i++) {
        float rest = x[i];
        x[i] = 0;
        for (int t = 0; t < terms; t++) {
            const uint16_t term = mx_f32_to_bf16(rest);
            out[t * *x_term + i / cols * padded + i % cols] = term;
            rest -= mx_bf16_to_f32(term);
            x[i] += mx_bf16_to_f32(term);
        }
    }
    const uint16_t *on = on_device(d, out, (size_t)(*x_term * terms) * 2);
    free(out);
    return on;
}

static float *random_floats(rng *r, int64_t count, float scale) {
    float *x = room((size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++) x[i] = rng_normal(r) * scale;
    return x;
}

/* What is asked for of one product. */
typedef struct product {
    mx_format format;
    bool wide;
    int terms;
    mx_cuda_epilogue epilogue;
    int rows, weight_rows, cols; /* QKV: weight_rows follow from what is below */
    bool bias;
    int heads, kv_heads, head_dim;
    mx_format kv;
    int y_terms;
} product;

enum { PAGES = 40, TABLE = 12 };

/* It, on the device, and what there is on the host. */
typedef struct made {
    device d;
    source w;
    float *x, *bias, *factor, *y, *cos, *sin;
    int32_t *position, *table, *tables;
    size_t y_bytes;   /* of y or y_terms */
    size_t kv_bytes;  /* of the pages */
    uint8_t *y_begin; /* what was in y before */
    mx_cuda_matmul m;
} made;

static mx_row_order order_of(const product *p) {
    return p->epilogue == MX_CUDA_SWIGLU ? MX_ROWS_GATE_UP : MX_ROWS_PLAIN;
}

static void make_weights(made *k, const product *p, rng *r) {
    k->w = make_source(r, p->format, p->weight_rows, p->cols, p->wide ? 118 : 112, p->wide ? 132 : 128);
    k->m.w = new_matrix(&k->d, p->format, p->weight_rows, p->cols, 1);
    k->m.w.wide_scales = p->wide;
    if (p->epilogue != MX_CUDA_QKV) {
        lay(&k->d, &k->m.w, 0, &k->w, order_of(p), 0, 0);
    } else { /* q, k and v one after the other */
        source part = k->w;
        const int64_t rope = (p->heads + p->kv_heads) * p->head_dim;
        part.rows = rope;
        lay(&k->d, &k->m.w, 0, &part, MX_ROWS_ROPE, p->head_dim, 0);
        part.rows = p->kv_heads * p->head_dim;
        part.data += rope * part.row_stride;
        part.scales += rope * part.cols / 32;
        lay(&k->d, &k->m.w, 0, &part, MX_ROWS_PLAIN, 0, rope);
    }
    k->bias = random_floats(r, p->weight_rows, p->bias ? 0.5f : 0.0f);
    if (!p->bias) return;
    float *nines = room((size_t)k->m.w.bias_stride * 4); /* of rows that are not there: seen nowhere */
    for (int64_t i = 0; i < k->m.w.bias_stride; i++) nines[i] = 9.0f;
    float *bias = on_device(&k->d, nines, (size_t)k->m.w.bias_stride * 4);
    const uint8_t *from = on_device(&k->d, k->bias, (size_t)p->weight_rows * 4);
    const int64_t rope = p->epilogue == MX_CUDA_QKV ? (p->heads + p->kv_heads) * p->head_dim : 0;
    if (rope) mx_cuda_lay_bias(bias, from, MX_F32, 0, rope, MX_ROWS_ROPE, p->head_dim, 0, k->d.stream);
    mx_cuda_lay_bias(bias, from + 4 * rope, MX_F32, 0, p->weight_rows - rope, order_of(p), 0, rope, k->d.stream);
    k->m.w.bias = bias;
    free(nines);
}

/* Rows of three sequences, every seventh a hole. */
static void make_pages(made *k, const product *p, rng *r) {
    const int64_t half = p->head_dim / 2;
    k->position = room((size_t)p->rows * 4);
    k->table = room((size_t)p->rows * 4);
    k->tables = room((size_t)(3 * TABLE) * 4);
    for (int i = 0; i < 3 * TABLE; i++) k->tables[i] = (i * 7 + 3) % PAGES;
    for (int i = 0; i < p->rows; i++) {
        k->position[i] = i % 7 == 5 ? -1 : 60 + i;
        k->table[i] = i * 3 / p->rows;
    }
    k->cos = random_floats(r, p->rows * half, 1);
    k->sin = random_floats(r, p->rows * half, 1);
    mx_cuda_pages *pages = &k->m.pages;
    pages->kv = p->kv;
    pages->page_bytes = mx_columns_bytes(p->kv, p->kv_heads * 2 * p->head_dim * 64);
    k->kv_bytes = (size_t)(PAGES * pages->page_bytes);
    pages->pages = on_device(&k->d, NULL, k->kv_bytes);
    pages->tables = on_device(&k->d, k->tables, (size_t)(3 * TABLE) * 4);
    pages->table_stride = TABLE;
    pages->table = on_device(&k->d, k->table, (size_t)p->rows * 4);
    pages->position = on_device(&k->d, k->position, (size_t)p->rows * 4);
    k->m.cos = on_device(&k->d, k->cos, (size_t)(p->rows * half) * 4);
    k->m.sin = on_device(&k->d, k->sin, (size_t)(p->rows * half) * 4);
    k->m.heads = p->heads;
    k->m.kv_heads = p->kv_heads;
    k->m.head_dim = p->head_dim;
}

static made make(const product *p, rng *r) {
    made k = {.d = device_open()};
    make_weights(&k, p, r);
    k.x = random_floats(r, (int64_t)p->rows * p->cols, 1);
    k.m.x = make_terms(&k.d, k.x, p->rows, p->cols, p->terms, &k.m.x_term);
    k.m.terms = p->terms;
    k.m.rows = p->rows;
    k.m.epilogue = p->epilogue;
    k.m.limit = 7.0f;
    k.m.alpha = 1.702f;
    k.factor = random_floats(r, p->rows, 1);
    if (p->epilogue == MX_CUDA_SCALE) k.m.factor = on_device(&k.d, k.factor, (size_t)p->rows * 4);
    if (p->epilogue == MX_CUDA_QKV) make_pages(&k, p, r);
    k.m.y_stride = p->epilogue == MX_CUDA_QKV ? p->heads * p->head_dim : p->weight_rows + 3;
    k.y = random_floats(r, p->rows * k.m.y_stride, 1);
    k.y_bytes = (size_t)(p->rows * k.m.y_stride) * 4;
    if (p->epilogue == MX_CUDA_SWIGLU) {
        k.m.y_terms_count = p->y_terms;
        k.m.y_term = p->rows * mx_cuda_padded(p->weight_rows / 2);
        k.y_bytes = (size_t)(p->y_terms * k.m.y_term) * 2;
    }
    k.y_begin = room(k.y_bytes);
    if (p->epilogue != MX_CUDA_SWIGLU) memcpy(k.y_begin, k.y, k.y_bytes);
    return k;
}

static void unmake(made *k) {
    device_close(&k->d);
    free_source(&k->w);
    void *all[] = {k->x, k->bias, k->factor, k->y, k->cos, k->sin, k->position, k->table, k->tables, k->y_begin};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Runs it: what is in y (or y_terms) then, and behind it what is in the pages. The caller frees it. */
static uint8_t *result(made *k, kernel which, int rows) {
    mx_cuda_matmul m = k->m;
    void *y = on_device(&k->d, k->y_begin, k->y_bytes);
    m.rows = rows;
    if (m.epilogue == MX_CUDA_SWIGLU)
        m.y_terms = y;
    else
        m.y = y;
    uint8_t *out = room(k->y_bytes + k->kv_bytes);
    if (k->kv_bytes) {
        mx_error error;
        assert_int_equal(mx_gpu_fill(m.pages.pages, 0x5a, k->kv_bytes, k->d.stream, &error), MX_OK);
    }
    run(which, &m, k->d.stream);
    from_device(&k->d, out, y, k->y_bytes);
    if (k->kv_bytes) from_device(&k->d, out + k->y_bytes, m.pages.pages, k->kv_bytes);
    k->d.buffers--; /* y: the tables of buffers are small */
    mx_gpu_free(y);
    return out;
}

/* ---- against scalar C ---- */

/* weight row n . activation row t + bias in double; *slack: what a sum in fp32 may be off, or one in a tensor core that
 * cuts off (target.h). */
static double sum_of(const made *k, int64_t n, int64_t t, double *slack) {
    const int64_t cols = k->w.cols;
    double sum = 0, size = fabs((double)k->bias[n]);
    for (int64_t i = 0; i < cols; i++) {
        const double v = (double)k->w.values[n * cols + i] * (double)k->x[t * cols + i];
        sum += v;
        size += fabs(v);
    }
    *slack = size * (EMULATED ? 0x1p-20 : 0x1p-18);
    return sum + (double)k->bias[n];
}

static void near(double found, double expected, double slack, const char *what, int64_t n, int64_t t) {
    if (!(fabs(found - expected) <= slack))
        fail_msg("%s, output row %d of activation row %d: %.9g, not %.9g (+- %g)", what, (int)n, (int)t, found,
                 expected, slack);
}

static float float_at(const uint8_t *bytes, int64_t i) {
    float v;
    memcpy(&v, bytes + 4 * i, 4);
    return v;
}

static void check_swiglu(const made *k, const product *p, const uint8_t *got, int64_t t, int64_t pair) {
    double slack_gate, slack_up;
    const double gate = sum_of(k, 2 * pair, t, &slack_gate), up = sum_of(k, 2 * pair + 1, t, &slack_up);
    const double expected = mx_swiglu((float)gate, (float)up, 7.0f, 1.702f);
    double found = 0;
    for (int term = 0; term < p->y_terms; term++)
        found +=
            mx_bf16_to_f32(mx_load_u16(got + 2 * (term * k->m.y_term + t * mx_cuda_padded(p->weight_rows / 2) + pair)));
    const double slack = 1.2 * slack_gate * 8 + slack_up * 7 + (1 + fabs(expected)) * 0x1p-20 +
                         fabs(expected) * ldexp(1, -8 * p->y_terms);
    near(found, expected, slack, "swiglu", pair, t);
    const int64_t padded = mx_cuda_padded(p->weight_rows / 2);
    for (int64_t i = p->weight_rows / 2; i < padded; i++) assert_int_equal(mx_load_u16(got + 2 * (t * padded + i)), 0);
}

/* Of row t, which is no hole, where a number lies in the pages. */
static int64_t kv_offset(const made *k, int64_t t, int kv_head, bool is_v, int64_t d) {
    const mx_cuda_pages *g = &k->m.pages;
    const int head_dim = k->m.head_dim, slot = k->position[t] % 64;
    const int32_t page = k->tables[k->table[t] * TABLE + k->position[t] / 64];
    const int64_t in =
        (int64_t)kv_head * 2 * head_dim * 64 + (is_v ? head_dim * 64 + d * 64 + slot : slot * head_dim + d);
    return page * g->page_bytes + mx_columns_bytes(g->kv, in);
}

static float kv_at(const made *k, const uint8_t *pages, int64_t t, int kv_head, bool is_v, int64_t d) {
    const uint8_t *at = pages + kv_offset(k, t, kv_head, is_v, d);
    const mx_format kv = k->m.pages.kv;
    return kv == MX_F32   ? float_at(at, 0)
           : kv == MX_F16 ? mx_f16_to_f32(mx_load_u16(at))
                          : mx_bf16_to_f32(mx_load_u16(at));
}

/* Dimension d of head `head` of q, k, v. */
static void check_head(const made *k, const product *p, const uint8_t *got, int64_t t, int head, int64_t d) {
    const int64_t half = p->head_dim / 2, n = (int64_t)head * p->head_dim + d;
    double slack, slack2 = 0, expected = sum_of(k, n, t, &slack);
    if (head < p->heads + p->kv_heads) {
        const double other = sum_of(k, d < half ? n + half : n - half, t, &slack2);
        const double c = (double)k->cos[t * half + d % half], s = (double)k->sin[t * half + d % half];
        expected = d < half ? expected * c - other * s : expected * c + other * s;
        slack = slack * fabs(c) + slack2 * fabs(s);
    }
    if (head < p->heads) {
        near((double)float_at(got, t * k->m.y_stride + n), expected, slack, "q", n, t);
        return;
    }
    const int kv_head = (head - p->heads) % p->kv_heads;
    const float found = kv_at(k, got + k->y_bytes, t, kv_head, head >= p->heads + p->kv_heads, d);
    slack += fabs(expected) * (p->kv == MX_F32 ? 0 : p->kv == MX_F16 ? 0x1p-11 : 0x1p-8) + 0x1p-24;
    if (p->kv == MX_F16 && fabs(expected) > 65504) expected = copysign(65504, expected);
    near((double)found, expected, slack, "k, v", n, t);
}

static void check_row(const made *k, const product *p, const uint8_t *got, int64_t t) {
    for (int64_t n = 0; n < p->weight_rows; n++) {
        if (p->epilogue == MX_CUDA_SWIGLU) {
            if (n % 2 == 0) check_swiglu(k, p, got, t, n / 2);
        } else if (p->epilogue == MX_CUDA_QKV) {
            if (k->position[t] >= 0) check_head(k, p, got, t, (int)(n / p->head_dim), n % p->head_dim);
        } else {
            double slack, expected = sum_of(k, n, t, &slack);
            const double before = (double)float_at(k->y_begin, t * k->m.y_stride + n);
            if (p->epilogue == MX_CUDA_SCALE) expected *= (double)k->factor[t], slack *= fabs((double)k->factor[t]) + 1;
            if (p->epilogue == MX_CUDA_ADD) expected += before, slack += fabs(before) * 0x1p-23;
            near((double)float_at(got, t * k->m.y_stride + n), expected, slack, "y", n, t);
        }
    }
    for (int64_t n = p->weight_rows; p->epilogue <= MX_CUDA_SCALE && n < k->m.y_stride; n++)
        assert_memory_equal(got + 4 * (t * k->m.y_stride + n), k->y_begin + 4 * (t * k->m.y_stride + n), 4);
}

/* What is in the pages when only rows 0 .. rows - 1 were stored, of `all` in which all are. The caller frees it. */
static uint8_t *pages_of_fewer(const made *k, const product *p, const uint8_t *all, int rows) {
    uint8_t *pages = room(k->kv_bytes);
    memcpy(pages, all, k->kv_bytes);
    for (int t = rows; t < p->rows; t++) {
        for (int64_t i = 0; k->position[t] >= 0 && i < 2 * p->kv_heads * p->head_dim; i++) {
            const int64_t head = i / p->head_dim;
            memset(pages + kv_offset(k, t, (int)(head / 2), head % 2, i % p->head_dim), 0x5a,
                   (size_t)mx_columns_bytes(p->kv, 1));
        }
    }
    return pages;
}

/* Rows 0 .. rows - 1 the same in both; nothing else touched in `few`, of `rows` rows. */
static void check_same(const made *k, const product *p, const uint8_t *all, const uint8_t *few, int rows) {
    const size_t terms = p->epilogue == MX_CUDA_SWIGLU ? (size_t)p->y_terms : 1;
    const size_t each = k->y_bytes / terms, row = each / (size_t)p->rows;
    for (size_t t = 0; t < terms; t++) {
        assert_memory_equal(all + t * each, few + t * each, row * (size_t)rows);
        assert_memory_equal(few + t * each + row * (size_t)rows, k->y_begin + t * each + row * (size_t)rows,
                            row * (size_t)(p->rows - rows));
    }
    if (!k->kv_bytes) return;
    uint8_t *pages = pages_of_fewer(k, p, all + k->y_bytes, rows);
    assert_memory_equal(pages, few + k->y_bytes, k->kv_bytes);
    free(pages);
}

static void check_product(const product *p, int seed) {
    rng r = rng_seeded((uint64_t)seed);
    made k = make(p, &r);
    mx_emulation_set_order((mx_emulation_order)(seed % MX_EMULATION_ORDERS));
    uint8_t *few = result(&k, FEW, p->rows), *many = result(&k, MANY, p->rows);
    for (int t = 0; t < p->rows; t += 1 + rng_below(&r, p->rows > 20 ? 16 : 3)) check_row(&k, p, few, t);
    check_row(&k, p, few, p->rows - 1);
    check_same(&k, p, few, many, p->rows);
    /* Batch invariance, with whatever kernel is chosen. */
    mx_emulation_set_order((mx_emulation_order)((seed + 1) % MX_EMULATION_ORDERS));
    static const int batches[] = {1, 5, 12, 20, 40};
    const int rows = batches[seed % 5] < p->rows ? batches[seed % 5] : 1;
    uint8_t *fewer = result(&k, CHOSEN, rows);
    check_same(&k, p, few, fewer, rows);
    free(few);
    free(many);
    free(fewer);
    unmake(&k);
}

static const struct {
    mx_format format;
    bool wide;
} kinds[] = {{MX_BF16, false}, {MX_MXFP4, false}, {MX_MXFP4, true}, {MX_MXFP4_GGML, false}, {MX_Q8_0, false}};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* Every format with every number of terms and every epilogue, in sizes that go round. */
static void test_products(void **state) {
    (void)state;
    static const int rows[] = {1, 33, 8, 65, 9, 7, 130, 64}, weight_rows[] = {40, 16, 257},
                     cols[] = {96, 192, 32, 64, 320};
    static const mx_format kv[] = {MX_F16, MX_F32, MX_BF16};
    static const int head_dims[] = {32, 64, 128};
    for (int i = 0, kind = 0; kind < KINDS; kind++) {
        for (int terms = 1; terms <= 3; terms++) {
            for (int epilogue = 0; epilogue <= MX_CUDA_QKV; epilogue++, i++) {
                product p = {kinds[kind].format,
                             kinds[kind].wide,
                             terms,
                             (mx_cuda_epilogue)epilogue,
                             rows[i * 3 % 8],
                             weight_rows[i % 3],
                             cols[(i + kind) % 5],
                             i % 4 != 1,
                             2,
                             i % 3 ? 1 : 2,
                             head_dims[(i / 3 + terms) % 3],
                             kv[(i + terms) % 3],
                             1 + i / 5 % 3};
                if (epilogue == MX_CUDA_SWIGLU) p.weight_rows += p.weight_rows % 2;
                if (epilogue == MX_CUDA_QKV) p.weight_rows = (p.heads + 2 * p.kv_heads) * p.head_dim;
                check_product(&p, i);
            }
        }
    }
}

/* The widths of 20b and 120b, in each part a number of units that is no multiple of what is loaded ahead. */
static void test_wide_products(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        product p = {
            kinds[kind].format, kinds[kind].wide, 1 + kind % 2, MX_CUDA_ADD, 12, 40, 2880, true, 0, 0, 0, MX_F16, 0};
        check_product(&p, 100 + kind);
    }
}

/* Activations that pick a column each: y is the matrix, and every weight comes back as it was. */
static void check_weights_back(const source *w, bool wide) {
    for (int terms = 1; terms <= 3; terms += 2) {
        for (int which = 0; which < 2; which++) {
            device d = device_open();
            mx_cuda_matmul m = {.w = new_matrix(&d, w->format, w->rows, w->cols, 1), .rows = (int)w->cols};
            lay(&d, &m.w, 0, w, MX_ROWS_PLAIN, 0, 0);
            m.w.wide_scales = wide;
            float *x = room((size_t)(w->cols * w->cols) * 4), *y = room((size_t)(w->cols * w->rows) * 4);
            for (int64_t i = 0; i < w->cols; i++) x[i * w->cols + i] = 1;
            m.x = make_terms(&d, x, w->cols, w->cols, terms, &m.x_term);
            m.terms = terms;
            m.y = on_device(&d, y, (size_t)(w->cols * w->rows) * 4);
            m.y_stride = w->rows;
            run(which ? MANY : FEW, &m, d.stream);
            from_device(&d, y, m.y, (size_t)(w->cols * w->rows) * 4);
            for (int64_t i = 0; i < w->rows * w->cols; i++) {
                const int64_t row = i / w->cols, col = i % w->cols;
                if (!(y[col * w->rows + row] == w->values[i]))
                    fail_msg("format %d, row %d, column %d: %a, not %a", w->format, (int)row, (int)col,
                             (double)y[col * w->rows + row], (double)w->values[i]);
            }
            free(x);
            free(y);
            device_close(&d);
        }
    }
}

static void test_every_weight(void **state) {
    (void)state;
    rng r = rng_seeded(7);
    /* Every code with every scale that leaves them finite; a row of all of them. */
    for (int wide = 0; wide < 2; wide++) {
        source w = make_source(&r, MX_MXFP4, wide ? 253 : 129, 64, 0, 128);
        for (int64_t i = 0; i < w.rows; i++) {
            memset(w.scales + 2 * i, (int)i, 2);
            for (int j = 0; j < 32; j++) w.data[i * w.row_stride + j] = (uint8_t)(j % 16 | (j * 7 + 3) % 16 << 4);
        }
        widen_source(&w);
        check_weights_back(&w, wide);
        free_source(&w);
    }
    source q = make_source(&r, MX_Q8_0, 40, 64, 0, 0); /* every integer, scales of every kind */
    static const uint16_t scales[] = {0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x0000, 0x3c00};
    for (int64_t i = 0; i < 80; i++) {
        uint8_t *block = q.data + i / 2 * q.row_stride + i % 2 * MX_Q8_0_BYTES;
        store_u16(block, scales[i / 8 % 8]);
        for (int j = 0; j < 32; j++) block[2 + j] = (uint8_t)(i % 8 * 32 + j);
    }
    widen_source(&q);
    check_weights_back(&q, false);
    free_source(&q);
    source b = make_source(&r, MX_BF16, 40, 64, 0, 0); /* any finite bits, subnormals too */
    for (int64_t i = 0; i < 40 * 64; i++) {
        uint16_t v = (uint16_t)rng_bits(&r);
        if ((v & 0x7f80) == 0x7f80) v &= 0x7f;
        store_u16(b.data + i / 64 * b.row_stride + i % 64 * 2, v);
    }
    widen_source(&b);
    check_weights_back(&b, false);
    free_source(&b);
}

/* Activations near both ends of fp32, with three terms, and keys beyond F16. */
static void test_extreme_activations(void **state) {
    (void)state;
    static const float sizes[] = {1e36f, 1e-36f};
    for (int i = 0; i < 4; i++) {
        product p = {i / 2 ? MX_BF16 : MX_MXFP4, false, 3, MX_CUDA_STORE, 9, 40, 96, false, 0, 0, 0, MX_F16, 0};
        rng r = rng_seeded((uint64_t)(50 + i));
        made k = make(&p, &r);
        float *x = random_floats(&r, 9 * 96, sizes[i % 2]);
        free(k.x);
        k.x = x;
        k.m.x = make_terms(&k.d, x, 9, 96, 3, &k.m.x_term);
        uint8_t *few = result(&k, FEW, 9), *many = result(&k, MANY, 9);
        for (int t = 0; t < 9; t++) check_row(&k, &p, few, t);
        check_same(&k, &p, few, many, 9);
        free(few);
        free(many);
        unmake(&k);
    }
    product p = {MX_BF16, false, 1, MX_CUDA_QKV, 9, 4 * 32, 96, false, 2, 1, 32, MX_F16, 0};
    rng r = rng_seeded(60);
    made k = make(&p, &r);
    for (int i = 0; i < 9 * 96; i++) k.x[i] *= 1e5f;
    k.m.x = make_terms(&k.d, k.x, 9, 96, 1, &k.m.x_term);
    uint8_t *few = result(&k, FEW, 9);
    for (int t = 0; t < 9; t++) check_row(&k, &p, few, t);
    free(few);
    unmake(&k);
}

/* An activation that is no number: its row's keys, values and sums are none, in every format, and no other row's. */
static void test_not_a_number(void **state) {
    (void)state;
    static const mx_format kv[] = {MX_F16, MX_BF16, MX_F32};
    for (int i = 0; i < 6; i++) {
        product p = {MX_BF16, false, 1, MX_CUDA_QKV, 9, 4 * 32, 96, false, 2, 1, 32, kv[i / 2], 0};
        rng r = rng_seeded((uint64_t)(70 + i));
        made k = make(&p, &r);
        k.x[3 * 96 + 40] = NAN;
        k.m.x = make_terms(&k.d, k.x, 9, 96, 1, &k.m.x_term);
        uint8_t *got = result(&k, i % 2 ? MANY : FEW, 9);
        for (int t = 0; t < 9; t++) {
            if (t != 3) check_row(&k, &p, got, t);
        }
        for (int64_t d = 0; d < 32; d++) {
            assert_true(isnan(float_at(got, 3 * k.m.y_stride + d)));
            for (int is_v = 0; is_v < 2; is_v++) {
                if (!isnan(kv_at(&k, got + k.y_bytes, 3, 0, is_v, d)))
                    fail_msg("format %d, %s %d: %g, not NaN", (int)p.kv, is_v ? "v" : "k", (int)d,
                             (double)kv_at(&k, got + k.y_bytes, 3, 0, is_v, d));
            }
        }
        free(got);
        unmake(&k);
    }
}

/* ---- grouped by expert ---- */

enum { EXPERTS = 5, SLOTS = 150, TOKENS = 60 };

/* What one expert alone makes of slots first .. first + count - 1, by the dense product on rows gathered by hand:
 * out [y_terms_count][SLOTS][row_bytes]. */
static void alone(device *d, const mx_cuda_matmul *grouped, int expert, int first, int count, const float *x,
                  const int32_t *slot_row, const float *factor, uint8_t *out, size_t row_bytes) {
    const size_t bytes = row_bytes * (size_t)count, outs = (size_t)grouped->y_terms_count;
    mx_cuda_matmul m = *grouped;
    float *gathered = room((size_t)(count * m.w.cols) * 4);
    for (int i = 0; i < count; i++)
        memcpy(gathered + i * m.w.cols, x + (slot_row ? slot_row[first + i] : first + i) * m.w.cols,
               (size_t)m.w.cols * 4);
    m.x = make_terms(d, gathered, count, m.w.cols, m.terms, &m.x_term);
    m.w.data += expert * m.w.data_stride;
    m.w.scales = m.w.scales ? m.w.scales + expert * m.w.scale_stride : NULL;
    m.w.bias += expert * m.w.bias_stride;
    m.tile = NULL;
    m.slot_row = NULL;
    m.rows = count;
    if (m.factor) m.factor = on_device(d, factor + first, (size_t)count * 4);
    uint8_t *y = on_device(d, NULL, bytes * outs);
    m.y = m.epilogue == MX_CUDA_SWIGLU ? NULL : (float *)y;
    m.y_terms = m.epilogue == MX_CUDA_SWIGLU ? (uint16_t *)y : NULL;
    m.y_term = (int64_t)(bytes / 2);
    mx_cuda_matmul_few(&m, d->stream);
    for (size_t t = 0; t < outs; t++)
        from_device(d, out + row_bytes * (t * SLOTS + (size_t)first), y + t * bytes, bytes);
    free(gathered);
}

/* y_terms 0: SCALE; else SWIGLU with so many terms to follow. */
static void check_grouped(mx_format format, bool wide, int y_terms, int terms, int tile_rows, kernel which, int seed) {
    const bool swiglu = y_terms > 0;
    rng r = rng_seeded((uint64_t)seed);
    device d = device_open();
    static const int counts[EXPERTS] = {3, 0, 129, 8, 10}; /* slots of each expert */
    const int rows = swiglu ? 36 : 24, cols = 96;
    mx_cuda_matmul m = {.w = new_matrix(&d, format, rows, cols, EXPERTS), .terms = terms, .rows = SLOTS};
    for (int e = 0; e < EXPERTS; e++) {
        source w = make_source(&r, format, rows, cols, 118, wide ? 132 : 126);
        lay(&d, &m.w, e, &w, swiglu ? MX_ROWS_GATE_UP : MX_ROWS_PLAIN, 0, 0);
        free_source(&w);
    }
    m.w.wide_scales = wide;
    float *bias = random_floats(&r, EXPERTS * m.w.bias_stride, 0.3f), *factor = random_floats(&r, SLOTS, 1);
    m.w.bias = on_device(&d, bias, (size_t)(EXPERTS * m.w.bias_stride) * 4);
    m.epilogue = swiglu ? MX_CUDA_SWIGLU : MX_CUDA_SCALE;
    m.limit = 7, m.alpha = 1.702f;
    m.y_terms_count = swiglu ? y_terms : 1;
    m.y_stride = rows;
    if (!swiglu) m.factor = on_device(&d, factor, SLOTS * 4);

    float *x = random_floats(&r, SLOTS * cols, 1);
    int32_t slot_row[SLOTS];
    for (int i = 0; i < SLOTS; i++) slot_row[i] = rng_below(&r, TOKENS);
    float *rounded =
        room((size_t)(SLOTS * cols) * 4); /* x itself is split anew: a sum of terms need not give them back */
    memcpy(rounded, x, (size_t)(SLOTS * cols) * 4);
    m.x = make_terms(&d, rounded, SLOTS, cols, terms, &m.x_term);
    if (swiglu) m.slot_row = on_device(&d, slot_row, sizeof slot_row);
    mx_cuda_tile tile[SLOTS + 3];
    memset(tile, 0x7f, sizeof tile); /* beyond *tiles anything may stand */
    int32_t tiles = 0;
    for (int e = 0, first = 0; e < EXPERTS; first += counts[e++])
        for (int at = 0; at < counts[e]; at += tile_rows)
            tile[tiles++] = (mx_cuda_tile){e, first + at, counts[e] - at < tile_rows ? counts[e] - at : tile_rows};
    m.tile = on_device(&d, tile, sizeof tile);
    m.tiles = on_device(&d, &tiles, 4);
    m.most_tiles = tiles + 3;
    m.tile_rows = tile_rows;

    const size_t row_bytes = swiglu ? (size_t)mx_cuda_padded(rows / 2) * 2 : (size_t)rows * 4;
    const size_t all_rows = (size_t)(SLOTS * m.y_terms_count);
    uint8_t *expected = room(all_rows * row_bytes), *found = room(all_rows * row_bytes);
    for (int e = 0, first = 0; e < EXPERTS; first += counts[e++])
        if (counts[e]) alone(&d, &m, e, first, counts[e], x, swiglu ? slot_row : NULL, factor, expected, row_bytes);
    void *y = on_device(&d, NULL, all_rows * row_bytes);
    m.y = swiglu ? NULL : y;
    m.y_terms = swiglu ? y : NULL;
    m.y_term = (int64_t)(SLOTS * row_bytes / 2);
    run(which, &m, d.stream);
    from_device(&d, found, y, all_rows * row_bytes);
    for (size_t i = 0; i < all_rows; i++) { /* columns that pad are not written */
        const size_t at = i * row_bytes, bytes = swiglu ? (size_t)rows : row_bytes;
        if (memcmp(found + at, expected + at, bytes))
            fail_msg("seed %d: slot %d, term %d is not what its expert alone makes of it", seed, (int)(i % SLOTS),
                     (int)(i / SLOTS));
    }
    void *all[] = {bias, factor, x, rounded, expected, found};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    device_close(&d);
}

static void test_grouped(void **state) {
    (void)state;
    static const mx_format of[] = {MX_MXFP4, MX_BF16};
    for (int i = 0; i < 40; i++) {
        const int tile_rows = 8 << i % 5;
        mx_emulation_set_order((mx_emulation_order)(i % MX_EMULATION_ORDERS));
        check_grouped(of[i % 8 / 5], false, i / 5 % 2, 1 + i % 4 % 3, tile_rows, (kernel)(i / 10 % 3), 200 + i);
    }
}

/* Every format, with SCALE and one to three terms that follow upon SWIGLU. */
static void test_grouped_formats(void **state) {
    (void)state;
    for (int i = 0; i < 4 * KINDS; i++) {
        const int kind = i % KINDS, y_terms = i / KINDS;
        mx_emulation_set_order((mx_emulation_order)(i % MX_EMULATION_ORDERS));
        check_grouped(kinds[kind].format, kinds[kind].wide, y_terms, 1 + i % 3, 8 << (i + y_terms) % 5,
                      (kernel)((kind + y_terms) % 2), 300 + i);
    }
}

int main(int argc, char **argv) {
    if (no_device()) return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lay),
        cmocka_unit_test(test_lay_apart),
        cmocka_unit_test(test_lay_bias),
        cmocka_unit_test(test_largest_scale),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_wide_products),
        cmocka_unit_test(test_every_weight),
        cmocka_unit_test(test_extreme_activations),
        cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_grouped_formats),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
