#ifndef MX_CUDA_EPILOGUE_CUH
#define MX_CUDA_EPILOGUE_CUH

/* What becomes of finished sums, for every kernel of products: so that a row's bits are the same from all of them,
 * multiplications and additions that could be fused are fused by name. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

/* A block's activation rows: `count` of them from row (slot) `first` on, all of one expert. */
struct mx_rows {
    int expert, first, count;
};

/* Of block (y, z) where a block has room for `most` rows. False: nothing for it to do. */
MX_DEVICE bool mx_rows_of_block(const mx_cuda_matmul &m, int block, int part, int most, mx_rows *out) {
    if (!m.tile) {
        out->expert = 0;
        out->first = block * most;
        out->count = m.rows - out->first;
    } else {
        if (block >= *m.tiles) return false;
        const mx_cuda_tile tile = m.tile[block];
        out->expert = tile.expert;
        out->first = tile.first + part * most;
        out->count = tile.count - part * most;
    }
    if (out->count > most) out->count = most;
    return out->count > 0;
}

/* mx_swiglu of kernels.h. */
MX_DEVICE float mx_swiglu_device(float gate, float up, float limit, float alpha) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return gate * (1.0f / (1.0f + expf(-alpha * gate))) * (up + 1.0f);
}

/* The terms of one number to out[0], out[term_stride] ... */
MX_DEVICE void mx_store_terms(uint16_t *out, int64_t term_stride, int terms, float v) {
    for (int i = 0; i < terms; i++) {
        const uint32_t term = mx_pack_bf16(v, 0.0f);
        out[i * term_stride] = (uint16_t)term;
        v -= mx_bf16_low(term);
    }
}

MX_DEVICE void mx_store_kv(uint8_t *page, mx_format kv, int64_t at, float v) {
    if (kv == MX_F32)
        ((float *)page)[at] = v;
    else
        ((uint16_t *)page)[at] = (uint16_t)(kv == MX_F16 ? mx_pack_f16(v, 0.0f) : mx_pack_bf16(v, 0.0f));
}

/* Rows `low` and `low` + 8 of the laid-out qkv matrix, both of one head, of activation row r. */
MX_DEVICE void mx_finish_qkv(const mx_cuda_matmul &m, int64_t low, int64_t r, float a, float b) {
    const int position = m.pages.position[r];
    if (position < 0) return;
    const int head_dim = m.head_dim, head = (int)(low / head_dim), in = (int)(low % head_dim);
    int d = in, d2 = in + 8; /* the dimensions of a and b */
    if (head < m.heads + m.kv_heads) {
        d = in / 16 * 8 + in % 8;
        d2 = d + head_dim / 2;
        const float cos = m.cos[r * (head_dim / 2) + d], sin = m.sin[r * (head_dim / 2) + d];
        const float turned = fmaf(a, cos, -(b * sin));
        b = fmaf(b, cos, a * sin);
        a = turned;
    }
    if (head < m.heads) {
        float *q = m.y + r * m.y_stride + (int64_t)head * head_dim;
        q[d] = a;
        q[d2] = b;
        return;
    }
    const int kv_head = (head - m.heads) % m.kv_heads, slot = position % 64;
    const bool is_v = head >= m.heads + m.kv_heads;
    const int32_t id = m.pages.tables[m.pages.table[r] * m.pages.table_stride + position / 64];
    uint8_t *page = m.pages.pages + id * m.pages.page_bytes;
    const int64_t base = (int64_t)(2 * kv_head + is_v) * 64 * head_dim; /* K [64][head_dim], V [head_dim][64] */
    mx_store_kv(page, m.pages.kv, base + (is_v ? d * 64 + slot : slot * head_dim + d), a);
    mx_store_kv(page, m.pages.kv, base + (is_v ? d2 * 64 + slot : slot * head_dim + d2), b);
}

/* Sums a of row g and b of row g + 8 of a row tile, `bias` of whose rows begins at the tile's; activation row r. */
MX_DEVICE void mx_finish_pair(const mx_cuda_matmul &m, const float *bias, int64_t tile, int g, int64_t r, float a,
                              float b) {
    const int64_t low = tile * MX_UNIT_ROWS + g, high = low + 8;
    if (bias) {
        a += bias[low];
        b += bias[high];
    }
    if (m.epilogue == MX_CUDA_QKV) {
        if (low < m.w.rows) mx_finish_qkv(m, low, r, a, b);
        return;
    }
    if (m.epilogue == MX_CUDA_SWIGLU) {
        const int64_t pair = tile * 8 + g;
        if (pair < m.w.rows / 2)
            mx_store_terms(m.y_terms + r * mx_cuda_padded(m.w.rows / 2) + pair, m.y_term, m.y_terms_count,
                           mx_swiglu_device(a, b, m.limit, m.alpha));
        return;
    }
    if (m.epilogue == MX_CUDA_SCALE) {
        a *= m.factor[r];
        b *= m.factor[r];
    }
    float *y = m.y + r * m.y_stride;
    const bool add = m.epilogue == MX_CUDA_ADD;
    if (low < m.w.rows) y[low] = add ? y[low] + a : a;
    if (high < m.w.rows) y[high] = add ? y[high] + b : b;
}

/* A lane's four sums as the tensor core leaves them: activation rows `row` + 2 t and + 1 of the block's. */
MX_DEVICE void mx_finish(const mx_cuda_matmul &m, const mx_rows &rows, int64_t tile, int lane, int row, float4 sum) {
    const float *bias = m.w.bias ? m.w.bias + rows.expert * m.w.bias_stride : nullptr;
    row += 2 * (lane % 4);
    if (row < rows.count) mx_finish_pair(m, bias, tile, lane / 4, rows.first + row, sum.x, sum.z);
    if (row + 1 < rows.count) mx_finish_pair(m, bias, tile, lane / 4, rows.first + row + 1, sum.y, sum.w);
}

#endif
