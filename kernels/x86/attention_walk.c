#include "kernels/x86/attention_walk.h"

#include <string.h>

enum { QUERIES = 64 }; /* query vectors that share the walk, unless the group alone is larger */

static int64_t query_count(int group) {
    return group > QUERIES ? group : QUERIES / group * group;
}

/* Scratch: weights [batch][MX_TILE], K tile, V tile (fp32), mx_query[]. */
int64_t mx_attention_walk_scratch(const mx_attention_tier *tier, int head_dim, int group) {
    int64_t query_floats = query_count(group) * (int64_t)(sizeof(mx_query) / sizeof(float));
    return tier->batch * MX_TILE + 2 * (int64_t)head_dim * MX_TILE + query_floats;
}

static void attend(const mx_attention *a, const mx_attention_tier *tier, mx_query *qs, int64_t count, float *wide) {
    int64_t tile = (int64_t)a->head_dim * MX_TILE, size = a->kv == MX_F32 ? 4 : 2;
    for (int64_t p = qs[0].first / MX_TILE; p <= qs[count - 1].position / MX_TILE; p++) {
        const uint8_t *k = a->pages + a->table[p] * a->page_bytes + a->head_offset, *v = k + tile * size;
        if (a->kv == MX_F32) {
            tier->merge_f32(a, qs, count, p, k, v);
        } else if (count > tier->batch) {
            tier->widen(wide, k, a->kv, 2 * tile);
            tier->merge_f32(a, qs, count, p, wide, wide + tile);
        } else if (a->kv == MX_F16) {
            tier->merge_f16(a, qs, count, p, k, v);
        } else {
            tier->merge_bf16(a, qs, count, p, k, v);
        }
    }
}

void mx_attention_walk(const mx_attention *a, const mx_attention_tier *tier) {
    float *wide = a->scratch + tier->batch * MX_TILE;
    mx_query *qs = (mx_query *)(wide + 2 * (int64_t)a->head_dim * MX_TILE);
    int64_t rows_at_once = query_count(a->group) / a->group;
    for (int64_t row0 = 0; row0 < a->rows; row0 += rows_at_once) {
        int64_t rows = a->rows - row0 < rows_at_once ? a->rows - row0 : rows_at_once, count = rows * a->group;
        for (int64_t i = 0; i < count; i++) {
            int64_t row = row0 + i / a->group, head = i % a->group, position = a->position + row;
            qs[i] = (mx_query){.q = a->q + row * a->q_stride + head * a->head_dim,
                               .out = a->out + row * a->out_stride + head * a->head_dim,
                               .position = position,
                               .first = a->window && position >= a->window ? position - a->window + 1 : 0,
                               .m = a->sinks[head],
                               .l = 1.0f};
            memset(qs[i].out, 0, (size_t)a->head_dim * sizeof *qs[i].out);
        }
        attend(a, tier, qs, count, wide);
        for (int64_t i = 0; i < count; i++) tier->finish(&qs[i], a->head_dim);
    }
}
