/* Products at precision MX_X_INT8 (kernels/int8.h) in 512-bit registers: the text of two tiers. The file that includes
 * it says how unsigned weights times signed activations add up, four to a lane, over half a block (four steps):
 *
 *     INT8_TILE              activation rows of a tile
 *     INT8_START(dot)        what the steps of a half block begin with
 *     INT8_STEP(sum, w, x)   one step
 *     INT8_END(dot, sum)     dot and all the products of that half block, in 32 bits
 *
 * A lane is an output row. 16 weight rows times 4 columns are a register of bytes, the activations' 4 bytes are
 * broadcast, a block of 32 columns is eight such steps, and nothing is ever summed across lanes. Few rows decode the
 * weights into registers for each call; many rows share weights that were decoded once into the L1 cache. */

enum {
    BLOCKS = 16, /* blocks of 32 columns in a chunk */
    GROUP = 16,  /* weight rows of a register */
    BLOCK_N = 32,
    TILE = INT8_TILE,
    BLOCK_T = 512,                             /* rows that share a decoded panel */
    FEW = 8,                                   /* up to this many rows the weights are decoded in registers */
    CHUNK_BYTES = BLOCKS * MX_MXFP4_GGML_BYTES /* at most */
};

/* A chunk of 16 weight rows. */
typedef struct panel {
    __m512i w[BLOCKS][8]; /* weights + 12: step 0..3 the low nibbles of 4 bytes, 4..7 the high ones */
    __m512 exponent[BLOCKS];
} panel;

/* Scratch of one thread. */
typedef struct scratch {
    panel panel[2];
    uint8_t data[GROUP][CHUNK_BYTES], scales[GROUP][CHUNK_BYTES]; /* of a group that is not full, apart or not */
    float sums[BLOCK_T][BLOCK_N];
    float bias[BLOCK_N];
} scratch;

_Static_assert(sizeof(scratch) <= MX_AVX512_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Sixteen rows of bytes, row 4 l + i at at[l] + i * stride. */
typedef struct rows16 {
    const uint8_t *at[4];
    int64_t stride;
} rows16;

/* Compilers that see how the four hang together spend a register on each row, and have not that many. */
MX_INLINE rows16 rows_from(const uint8_t *at, int64_t stride) {
    rows16 rows = {{at, at + 4 * stride, at + 8 * stride, at + 12 * stride}, stride};
    __asm__("" : "+r"(rows.at[0]), "+r"(rows.at[1]), "+r"(rows.at[2]), "+r"(rows.at[3]));
    return rows;
}

MX_INLINE void next_block(rows16 *rows, mx_format format) {
    for (int l = 0; l < 4; l++) rows->at[l] += mx_columns_bytes(format, 32);
}

/* out[d] has in lane r the bytes 4 d ... 4 d + 3 of row r: a transpose of dwords. Lane l of in[i]: row 4 l + i. */
MX_INLINE void transpose(__m512i out[4], const __m512i in[4]) {
    __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
    __m512i c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}

/* The first `count` <= 16 bytes of each row, the rest zeros. */
MX_INLINE void load_rows(__m512i out[4], rows16 rows, int64_t count) {
    const __mmask16 mask = mx_first_lanes(count);
    __m512i in[4];
    for (int i = 0; i < 4; i++) {
        __m128i lane[4];
        for (int l = 0; l < 4; l++) {
            const uint8_t *at = rows.at[l] + i * rows.stride;
            lane[l] = count >= 16 ? _mm_loadu_si128((const __m128i *)at) : _mm_maskz_loadu_epi8(mask, at);
        }
        __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(lane[0]), lane[1], 1);
        __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(lane[2]), lane[3], 1);
        in[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    transpose(out, in);
}

/* One block of 16 rows to the eight steps' weights + 12. */
MX_INLINE void decode(__m512i w[8], rows16 rows) {
    const __m512i values = _mm512_broadcast_i32x4(_mm_add_epi8(_mm_setr_epi8(MX_INT8_WEIGHTS), _mm_set1_epi8(12)));
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i codes[4];
    load_rows(codes, rows, 16);
    for (int d = 0; d < 4; d++) {
        w[d] = _mm512_shuffle_epi8(values, _mm512_and_si512(codes[d], nibble));
        w[4 + d] = _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_srli_epi16(codes[d], 4), nibble));
    }
}

/* s - 128 of the scales s that are byte i of each lane. */
MX_INLINE __m512 exponents_of(__m512i bytes, int i) {
    __m512i s = _mm512_and_si512(_mm512_srli_epi32(bytes, 8 * i), _mm512_set1_epi32(255));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(s, _mm512_set1_epi32(128)));
}

/* Those of the first `blocks` scale bytes of 16 rows, by block. */
MX_INLINE void decode_exponents(__m512 exponent[BLOCKS], rows16 scales, int64_t blocks) {
    __m512i bytes[4];
    load_rows(bytes, scales, blocks);
    for (int b = 0; b < BLOCKS; b++) exponent[b] = exponents_of(bytes[b / 4], b % 4);
}

/* Those of the next four blocks in GGML's layout, or of `blocks` where that is fewer. Block b's scale is byte 17 b,
 * which is byte b of lane b; four bytes further for each next one of four rows, since it is read from as much before.
 * So four loads that take nothing else put 16 scales in 16 places, and the lanes of that may be joined. */
MX_INLINE void decode_four_exponents(__m512 exponent[4], rows16 scales, int64_t blocks) {
    const uint64_t all = 1 | 1ull << 17 | 1ull << 34 | 1ull << 51;
    const uint64_t these = blocks >= 4 ? all : all & ((1ull << 17 * blocks) - 1);
    __m512i rows[4];
    for (int l = 0; l < 4; l++) {
        rows[l] = _mm512_maskz_loadu_epi8(these, scales.at[l]);
        for (int i = 1; i < 4; i++)
            rows[l] = _mm512_mask_loadu_epi8(rows[l], these << 4 * i, scales.at[l] + i * scales.stride - 4 * i);
    }
    for (int l = 0; l < 4; l += 2) /* lanes 0 and 2, 1 and 3 of the one, then of the other */
        rows[l] = _mm512_or_si512(_mm512_shuffle_i32x4(rows[l], rows[l + 1], 0x44),
                                  _mm512_shuffle_i32x4(rows[l], rows[l + 1], 0xee));
    __m512i bytes =
        _mm512_or_si512(_mm512_shuffle_i32x4(rows[0], rows[2], 0x88), _mm512_shuffle_i32x4(rows[0], rows[2], 0xdd));
    for (int b = 0; b < 4; b++) exponent[b] = exponents_of(bytes, b);
}

/* `blocks` blocks of weight rows n ... n + count - 1 from block b0 on. A group that is not full is copied, with zeros
 * for the rows that are not there. */
MX_INLINE void find_rows(rows16 *data, rows16 *scales, const mx_matrix *w, mx_format format, int64_t n, int64_t count,
                         int64_t b0, int64_t blocks, scratch *s) {
    const int64_t step = mx_columns_bytes(format, 32), scale_step = mx_scale_step(format);
    const uint8_t *data_at = w->data + n * w->row_stride + step * b0,
                  *scales_at = w->scales + n * w->scale_stride + scale_step * b0;
    if (count >= GROUP) {
        *data = rows_from(data_at, w->row_stride);
        *scales = rows_from(scales_at, w->scale_stride);
        return;
    }
    memset(s->data, 0, sizeof s->data);
    memset(s->scales, 0, sizeof s->scales);
    for (int64_t i = 0; i < count; i++) {
        for (int64_t b = 0; b < blocks; b++) {
            memcpy(s->data[i] + step * b, data_at + i * w->row_stride + step * b, 16);
            s->scales[i][scale_step * b] = scales_at[i * w->scale_stride + scale_step * b];
        }
    }
    *data = rows_from(s->data[0], sizeof s->data[0]);
    *scales = rows_from(s->scales[0], sizeof s->scales[0]);
}

/* ---- sums ------------------------------------------------------------------------------------------------------- */

MX_INLINE __m512i four_of(const mx_int8_block *x, int step) {
    return _mm512_set1_epi32((int)mx_load_u32((const uint8_t *)x->x + 4 * step));
}

MX_INLINE __m512 add_block(__m512 sum, __m512i dot, const mx_int8_block *x, __m512 exponent) {
    __m512 scale = _mm512_scalef_ps(_mm512_set1_ps(x->scale), exponent);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum);
}

MX_INLINE const mx_int8_block *x_of_row(const mx_matmul *m, int64_t t) {
    return (const mx_int8_block *)(m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride);
}

/* sums[t][at + lane], t < R, for 16 weight rows. The rows behind these are fetched into L2 meanwhile. */
MX_INLINE void few_tile(const mx_matmul *m, mx_format format, const mx_int8_block *const *x, int R, int64_t n,
                        int64_t count, int64_t at, scratch *s) {
    const char *ahead = (const char *)m->w.data + (n + GROUP) * m->w.row_stride;
    const int64_t all = m->w.cols / 32;
    /* the scales, or what is left of GGML's rows behind 256 bytes a block: as many bytes */
    const char *rest_ahead =
        format == MX_MXFP4 ? (const char *)m->w.scales + (n + GROUP) * m->w.scale_stride : ahead + GROUP * 16 * all;
    __m512 sum[FEW];
    for (int t = 0; t < R; t++) sum[t] = _mm512_setzero_ps();
    for (int64_t b0 = 0; b0 < all; b0 += BLOCKS) {
        int64_t blocks = all - b0 < BLOCKS ? all - b0 : BLOCKS;
        rows16 data, scales;
        find_rows(&data, &scales, &m->w, format, n, count, b0, blocks, s);
        if (format == MX_MXFP4) decode_exponents(s->panel[0].exponent, scales, blocks);
        for (int64_t b = 0; b < blocks; b++, next_block(&data, format)) {
            if (format == MX_MXFP4_GGML && b % 4 == 0) {
                decode_four_exponents(s->panel[0].exponent + b, scales, blocks - b);
                for (int l = 0; l < 4; l++) scales.at[l] += 4 * MX_MXFP4_GGML_BYTES;
            }
            __m512i w[8];
            decode(w, data);
            for (int i = 0; i < 4; i++) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
            if (b % 4 == 0) _mm_prefetch(rest_ahead, _MM_HINT_T1);
            if (b % 4 == 0) rest_ahead += 64;
            ahead += 256;
            for (int t = 0; t < R; t++) {
                const mx_int8_block *xt = x[t] + b0 + b;
                const __m512i start = _mm512_set1_epi32(xt->start), zero = _mm512_setzero_si512();
                __m512i low = INT8_START(start), high = INT8_START(zero);
                for (int step = 0; step < 4; step++) {
                    low = INT8_STEP(low, w[step], four_of(xt, step));
                    high = INT8_STEP(high, w[4 + step], four_of(xt, 4 + step));
                }
                __m512i dot = _mm512_add_epi32(INT8_END(start, low), INT8_END(zero, high));
                sum[t] = add_block(sum[t], dot, xt, s->panel[0].exponent[b]);
            }
        }
    }
    for (int t = 0; t < R; t++) _mm512_store_ps(&s->sums[t][at], sum[t]);
}

MX_INLINE void few_rows(const mx_matmul *m, mx_format format, int64_t n0, int64_t count, scratch *s) {
    const mx_int8_block *x[FEW];
    for (int64_t i = 0; i < FEW; i++) x[i] = x_of_row(m, i < m->rows ? i : m->rows - 1);
    for (int64_t i = 0; i < count; i += GROUP) {
        if (m->rows == 1) {
            few_tile(m, format, x, 1, n0 + i, count - i, i, s);
        } else if (m->rows == 2) {
            few_tile(m, format, x, 2, n0 + i, count - i, i, s);
        } else if (m->rows <= 4) {
            few_tile(m, format, x, 4, n0 + i, count - i, i, s);
        } else {
            few_tile(m, format, x, 8, n0 + i, count - i, i, s);
        }
    }
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

MX_INLINE void fill_panel(panel *p, const mx_matrix *w, mx_format format, int64_t n, int64_t count, int64_t b0,
                          int64_t blocks, scratch *s) {
    rows16 data, scales;
    find_rows(&data, &scales, w, format, n, count, b0, blocks, s);
    if (format == MX_MXFP4) decode_exponents(p->exponent, scales, blocks);
    for (int64_t b = 0; b < blocks; b++, next_block(&data, format)) {
        if (format == MX_MXFP4_GGML && b % 4 == 0) {
            decode_four_exponents(p->exponent + b, scales, blocks - b);
            for (int l = 0; l < 4; l++) scales.at[l] += 4 * MX_MXFP4_GGML_BYTES;
        }
        decode(p->w[b], data);
    }
}

/* sums[t][n] += activation row t, t < R, times both panels; x[t]: the row's first block of this chunk. */
MX_INLINE void many_tile(float (*sums)[BLOCK_N], const mx_int8_block *const *x, const panel *p, int R, int64_t blocks) {
    __m512 sum[2 * TILE];
    for (int i = 0; i < 2 * R; i++) sum[i] = _mm512_load_ps(&sums[i / 2][i % 2 * GROUP]);
    for (int64_t b = 0; b < blocks; b++) {
        __m512i dot[2 * TILE], part[2 * TILE];
        for (int i = 0; i < 2 * R; i++) dot[i] = _mm512_set1_epi32(x[i / 2][b].start);
        for (int half = 0; half < 8; half += 4) {
            for (int i = 0; i < 2 * R; i++) part[i] = INT8_START(dot[i]);
            for (int step = half; step < half + 4; step++) {
                const __m512i w0 = p[0].w[b][step], w1 = p[1].w[b][step];
                for (int t = 0; t < R; t++) {
                    const __m512i xt = four_of(&x[t][b], step);
                    part[2 * t] = INT8_STEP(part[2 * t], w0, xt);
                    part[2 * t + 1] = INT8_STEP(part[2 * t + 1], w1, xt);
                }
            }
            for (int i = 0; i < 2 * R; i++) dot[i] = INT8_END(dot[i], part[i]);
        }
        for (int i = 0; i < 2 * R; i++) sum[i] = add_block(sum[i], dot[i], &x[i / 2][b], p[i % 2].exponent[b]);
    }
    for (int i = 0; i < 2 * R; i++) _mm512_store_ps(&sums[i / 2][i % 2 * GROUP], sum[i]);
}

static void multiply_tile(float (*sums)[BLOCK_N], const mx_int8_block *const *x, const panel *p, int64_t rows,
                          int64_t blocks) {
    if (rows == 1) many_tile(sums, x, p, 1, blocks);
    if (rows == 2) many_tile(sums, x, p, 2, blocks);
    if (rows == 3) many_tile(sums, x, p, 3, blocks);
    if (rows == 4) many_tile(sums, x, p, 4, blocks);
#if INT8_TILE == 6
    if (rows == 5) many_tile(sums, x, p, 5, blocks);
    if (rows == 6) many_tile(sums, x, p, 6, blocks);
#endif
}

/* Fetches a chunk of weight rows n + from ... n + to - 1 into L2; addresses behind the matrix do no harm. Inline, as
 * gcc drops calls of functions that only fetch. */
MX_INLINE void fetch_rows(const mx_matrix *w, mx_format format, int64_t n, int64_t b0, int64_t from, int64_t to) {
    const int64_t bytes = BLOCKS * mx_columns_bytes(format, 32);
    for (int64_t i = n + from; i < n + to; i++) {
        const char *data = (const char *)w->data + i * w->row_stride + mx_columns_bytes(format, 32 * b0);
        for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(data + line, _MM_HINT_T1);
        _mm_prefetch(data + bytes - 1, _MM_HINT_T1);
        if (format == MX_MXFP4) _mm_prefetch((const char *)w->scales + i * w->scale_stride + b0, _MM_HINT_T1);
    }
}

MX_INLINE void many_rows(const mx_matmul *m, mx_format format, int64_t n0, int64_t count, scratch *s) {
    const int64_t all = m->w.cols / 32;
    for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
        int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T, tiles = (rows + TILE - 1) / TILE;
        memset(s->sums, 0, (size_t)rows * sizeof s->sums[0]);
        for (int64_t b0 = 0; b0 < all; b0 += BLOCKS) {
            int64_t blocks = all - b0 < BLOCKS ? all - b0 : BLOCKS;
            bool last = b0 + BLOCKS >= all;
            fill_panel(&s->panel[0], &m->w, format, n0, count, b0, blocks, s);
            if (count > GROUP) fill_panel(&s->panel[1], &m->w, format, n0 + GROUP, count - GROUP, b0, blocks, s);
            for (int64_t k = 0; k < tiles; k++) {
                const mx_int8_block *x[TILE];
                int64_t t = rows * k / tiles, here = rows * (k + 1) / tiles - t;
                for (int64_t i = 0; i < here; i++) x[i] = x_of_row(m, t0 + t + i) + b0;
                fetch_rows(&m->w, format, last ? n0 + BLOCK_N : n0, last ? 0 : b0 + BLOCKS, BLOCK_N * k / tiles,
                           BLOCK_N * (k + 1) / tiles);
                multiply_tile(s->sums + t, x, s->panel, here, blocks);
            }
        }
        for (int64_t t = 0; t < rows; t++) mx_finish_row(m, t0 + t, n0, count, s->sums[t], s->bias);
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format) {
    scratch *s = (scratch *)m->scratch;
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_widen_bias(s->bias, m, n0, count);
        if (m->rows > FEW) {
            many_rows(m, format, n0, count, s);
            continue;
        }
        few_rows(m, format, n0, count, s);
        for (int64_t t = 0; t < m->rows; t++) mx_finish_row(m, t, n0, count, s->sums[t], s->bias);
    }
}

static void matmul_mxfp4(const mx_matmul *m) {
    matmul(m, MX_MXFP4);
}
static void matmul_mxfp4_ggml(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML);
}
