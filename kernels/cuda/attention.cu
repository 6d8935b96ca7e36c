#include "kernels/cuda/attention_tile.cuh"

/* Attention by the fixed tree of layout.h: tiles of 64 keys, spans of 256, spans folded upon the sink. Single rows
 * (decoding) give each span a block, in which each of the four warps has a tile, and fold the spans in a second kernel;
 * runs (prompts) give each warp some neighbouring positions, whose past it walks by itself. Both do the same
 * operations in the same order.
 *
 * A warp's 16 M-rows: of a KV head's query heads (`group` of them) at most 16, those that are left where a group is
 * larger, at 16 / group positions: M-row m is head first_head + m % heads at position first + m / heads. */

enum { SPAN_TILES = MX_CUDA_SPAN / MX_TILE, SPAN_THREADS = 32 * SPAN_TILES, FOLD_THREADS = 128, FOLD_AHEAD = 16 };
constexpr float MX_LOG2E = 1.44269504088896341f;

MX_BOTH int mx_attention_heads_blocks(int group) {
    return (group + 15) / 16;
}
MX_BOTH int mx_attention_positions(int group) { /* of a warp */
    return group > 16 ? 1 : 16 / group;
}

MX_BOTH int64_t mx_cuda_attention_floats(int head_dim, int group) { /* of a part, whole words of 16 bytes */
    return ((int64_t)group * (head_dim + 2) + 3) / 4 * 4;
}

/* Which query heads a block works on, from its index among kv_heads * heads_blocks. */
struct mx_attention_heads {
    int kv_head, head; /* the first query head */
    int heads;         /* 1..16 */
    int in_group;      /* of the first in its group */
};
MX_DEVICE mx_attention_heads mx_attention_which(const mx_cuda_attention &a, int block) {
    const int group = a.heads / a.kv_heads, blocks = mx_attention_heads_blocks(group);
    mx_attention_heads h;
    h.kv_head = block / blocks;
    h.in_group = 16 * (block % blocks);
    h.head = h.kv_head * group + h.in_group;
    h.heads = group - h.in_group < 16 ? group - h.in_group : 16;
    return h;
}

/* Where a KV head's keys and values of a tile begin. */
template <class KV, int HD>
MX_DEVICE const uint8_t *mx_attention_page(const mx_cuda_pages &p, const int32_t *table, int tile, int kv_head) {
    constexpr int64_t head_bytes = 2 * MX_TILE * HD * (KV::words / 2);
    return p.pages + table[tile] * p.page_bytes + kv_head * head_bytes;
}

/* ---- single rows ---- */
template <class KV, int HD> struct mx_attention_span_shape {
    typedef mx_attention_shape<KV, HD> shape;
    static constexpr int stride = HD + 8; /* floats of a row's o in shared memory: spreads it over the banks */
    static constexpr int o_bytes = 16 * stride * 4;
    static constexpr int query_bytes = shape::query_shared ? 512 * shape::query : 0;
    static constexpr int warp_bytes = o_bytes > query_bytes ? o_bytes : query_bytes; /* o follows upon the query */
    static constexpr int shared = SPAN_TILES * warp_bytes + 2 * SPAN_TILES * 16 * 4; /* and m, l */
};

/* Block (span from the row's first one on, heads, row). The part: o [group][HD], (m, l) [group]. */
template <class KV, int HD> __global__ __launch_bounds__(SPAN_THREADS) void mx_attention_span(mx_cuda_attention a) {
    mx_begin();
    typedef mx_attention_shape<KV, HD> shape;
    typedef mx_attention_span_shape<KV, HD> span_shape;
    MX_DYNAMIC_SHARED(shared);
    const int row = a.row ? a.row[blockIdx.z] : (int)blockIdx.z, position = a.pages.position[row];
    if (position < 0) return;
    const int first = mx_attention_first(position, a.window), span = first / MX_CUDA_SPAN + (int)blockIdx.x;
    if (span > position / MX_CUDA_SPAN) return;
    const mx_attention_heads h = mx_attention_which(a, blockIdx.y);
    const int warp = mx_warp(), g = mx_lane() / 4, t = mx_lane() % 4;
    uint8_t *mine = shared + warp * span_shape::warp_bytes;
    float *m_of = (float *)(shared + SPAN_TILES * span_shape::warp_bytes), *l_of = m_of + SPAN_TILES * 16;

    const int tile = span * SPAN_TILES + warp;
    if (mx_attention_sees(position, first, tile * MX_TILE, MX_TILE)) {
        uint32_t f[4][shape::stage][KV::words], in[shape::query_shared ? 1 : 2 * shape::blocks][KV::terms][4];
        const int32_t *table = a.pages.tables + a.pages.table[row] * a.pages.table_stride;
        const uint8_t *head = mx_attention_page<KV, HD>(a.pages, table, tile, h.kv_head);
        MX_UNROLL
        for (int i = 0; i < 3; i++) mx_attention_load<KV, HD, true>(f[i], head, i);
        const float *q[2] = {nullptr, nullptr};
        for (int i = 0; i < 2; i++) {
            if (g + 8 * i < h.heads) q[i] = a.q + ((int64_t)row * a.heads + h.head + g + 8 * i) * HD;
        }
        float factor[2], m[2], l[2], o[HD / 8][4];
        mx_attention_query<KV, HD>(q, a.scale, in, (uint4 *)mine, factor);
        const mx_attention_row seen = {{position, position}, {first, first}, mx_attention_sight(a.window)};
        const bool whole = tile * MX_TILE >= first && tile * MX_TILE + MX_TILE - 1 <= position;
        mx_attention_tile<KV, HD, 3, true>(head, nullptr, f, in, (const uint4 *)mine, tile * MX_TILE + 8 * t, seen,
                                           whole, factor, m, l, o);
        mx_sync_warp(); /* all lanes have read their query */
        MX_UNROLL
        for (int i = 0; i < 2; i++) {
            if (g + 8 * i >= h.heads) continue;
            float *to = (float *)mine + (g + 8 * i) * span_shape::stride + 2 * t;
            MX_UNROLL
            for (int d = 0; d < HD / 8; d++) *(float2 *)(to + 8 * d) = make_float2(o[d][2 * i], o[d][2 * i + 1]);
            if (t == 0) {
                m_of[16 * warp + g + 8 * i] = m[i];
                l_of[16 * warp + g + 8 * i] = l[i];
            }
        }
    }
    mx_sync();

    const int group = a.heads / a.kv_heads;
    const int64_t index = ((int64_t)blockIdx.z * a.spans + blockIdx.x) * a.kv_heads + h.kv_head;
    float *part = a.parts + index * mx_cuda_attention_floats(HD, group);
    for (int i = threadIdx.x; i < h.heads * (HD / 4); i += SPAN_THREADS) {
        const int head = i / (HD / 4), d = i % (HD / 4) * 4;
        float m = mx_float(0xff800000u), l = 0.0f, o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int w = 0; w < SPAN_TILES; w++) {
            if (!mx_attention_sees(position, first, (span * SPAN_TILES + w) * MX_TILE, MX_TILE)) continue;
            float keep, take;
            mx_attention_fold(&m, &l, m_of[16 * w + head], l_of[16 * w + head], &keep, &take);
            take = mx_attention_take<KV>(take);
            const float4 v =
                *(const float4 *)((const float *)(shared + w * span_shape::warp_bytes) + head * span_shape::stride + d);
            o[0] = mx_attention_fold_value(o[0], keep, v.x, take);
            o[1] = mx_attention_fold_value(o[1], keep, v.y, take);
            o[2] = mx_attention_fold_value(o[2], keep, v.z, take);
            o[3] = mx_attention_fold_value(o[3], keep, v.w, take);
        }
        *(float4 *)(part + (h.in_group + head) * HD + d) = make_float4(o[0], o[1], o[2], o[3]);
        if (d == 0) {
            *(float2 *)(part + group * HD + 2 * (h.in_group + head)) = make_float2(m, l);
        }
    }
}

/* Block (FOLD_THREADS pairs of neighbouring dimensions, row): a row's spans upon the sink, and out. */
static __global__ __launch_bounds__(FOLD_THREADS, 4) void mx_attention_spans(mx_cuda_attention a) {
    mx_begin();
    const int r = blockIdx.y, row = a.row ? a.row[r] : r, position = a.pages.position[row];
    const int pair = (int)(blockIdx.x * FOLD_THREADS + threadIdx.x), dims = a.head_dim, head = pair / (dims / 2);
    if (position < 0 || head >= a.heads) return;
    const int first = mx_attention_first(position, a.window) / MX_CUDA_SPAN;
    const int spans = position / MX_CUDA_SPAN - first + 1, d = pair % (dims / 2) * 2;
    const int group = a.heads / a.kv_heads, in_group = head % group;
    const int64_t floats = mx_cuda_attention_floats(dims, group), stride = floats * a.kv_heads;
    const float *part = a.parts + (int64_t)r * a.spans * stride + head / group * floats;
    const float *sums = part + group * dims + 2 * in_group, *values = part + in_group * dims + d;

    float m = a.sinks[head] * MX_LOG2E, l = 1.0f, low = 0.0f, high = 0.0f;
    for (int span = 0; span < spans; span += FOLD_AHEAD) { /* so many loads at once */
        float2 sum[FOLD_AHEAD], o[FOLD_AHEAD];
        MX_UNROLL
        for (int i = 0; i < FOLD_AHEAD; i++) {
            if (span + i >= spans) continue;
            sum[i] = *(const float2 *)(sums + i * stride);
            o[i] = *(const float2 *)(values + i * stride);
        }
        sums += FOLD_AHEAD * stride;
        values += FOLD_AHEAD * stride;
        MX_UNROLL
        for (int i = 0; i < FOLD_AHEAD; i++) {
            if (span + i >= spans) continue;
            float keep, take;
            mx_attention_fold(&m, &l, sum[i].x, sum[i].y, &keep, &take);
            low = mx_attention_fold_value(low, keep, o[i].x, take);
            high = mx_attention_fold_value(high, keep, o[i].y, take);
        }
    }
    const float inverse = 1.0f / l;
    uint16_t *out = a.out + row * mx_cuda_padded((int64_t)a.heads * dims) + (int64_t)head * dims + d;
    mx_attention_store(out, a.out_term, a.terms, low * inverse, high * inverse);
}

/* ---- runs ---- */
enum { RUN_WARPS = 8 }; /* of one KV head at neighbouring positions: what one loads the others find in L1 */

/* `warps` of those are a block, the others are blocks of their own, so that shared memory holds them: the query, each
 * M-row's total over spans, and, where registers do not hold it, over the tiles of a span. All of it is a lane's own,
 * in words of 16 bytes at [word][lane]. */
template <class KV, int HD> struct mx_attention_run_shape {
    typedef mx_attention_shape<KV, HD> shape;
    static constexpr bool span_shared = shape::query_shared;
    static constexpr int query_words = shape::query_shared ? shape::query : 0;
    static constexpr int words = query_words + HD / 8 * (span_shared ? 2 : 1);
    static constexpr int warps = words <= 24 ? 8 : words <= 48 ? 4 : 2; /* at most 96 KiB */
    static constexpr int shared = 512 * words * warps;
};

/* A lane's o [HD / 8][4], of rows g (the first two of each) and g + 8, folded into those at `to` [HD / 8][32]. */
template <int N>
MX_DEVICE void mx_attention_fold_shared(float4 *to, const float (*o)[4], const float keep[2], const float take[2],
                                        const bool seen[2]) {
    MX_UNROLL
    for (int d = 0; d < N; d++) {
        float4 v = to[32 * d];
        const float old[4] = {v.x, v.y, v.z, v.w};
        v.x = seen[0] ? mx_attention_fold_value(old[0], keep[0], o[d][0], take[0]) : old[0];
        v.y = seen[0] ? mx_attention_fold_value(old[1], keep[0], o[d][1], take[0]) : old[1];
        v.z = seen[1] ? mx_attention_fold_value(old[2], keep[1], o[d][2], take[1]) : old[2];
        v.w = seen[1] ? mx_attention_fold_value(old[3], keep[1], o[d][3], take[1]) : old[3];
        to[32 * d] = v;
    }
}
template <int N>
MX_DEVICE void mx_attention_fold_lane(float (*to)[4], const float (*o)[4], const float keep[2], const float take[2],
                                      const bool seen[2]) {
    MX_UNROLL
    for (int i = 0; i < 2; i++) {
        if (!seen[i]) continue;
        MX_UNROLL
        for (int d = 0; d < N; d++) {
            MX_UNROLL
            for (int e = 2 * i; e < 2 * i + 2; e++)
                to[d][e] = mx_attention_fold_value(to[d][e], keep[i], o[d][e], take[i]);
        }
    }
}

/* Block (run from the last one on, heads, which of the RUN_WARPS warps). */
template <class KV, int HD>
__global__ __launch_bounds__(32 * mx_attention_run_shape<KV, HD>::warps,
                             HD == 96 ? 1 : 0) void mx_attention_run(mx_cuda_attention a) {
    mx_begin();
    typedef mx_attention_shape<KV, HD> shape;
    typedef mx_attention_run_shape<KV, HD> run_shape;
    constexpr int lanes_o = HD / 8;
    MX_DYNAMIC_SHARED(shared);
    const mx_cuda_run run = a.run[gridDim.x - 1 - blockIdx.x]; /* the longest pasts first */
    if (run.rows <= 0) return;
    const int begin = a.pages.position[run.row];
    if (begin < 0) return;
    const mx_attention_heads h = mx_attention_which(a, blockIdx.y);
    const int lane = mx_lane(), g = lane / 4, t = lane % 4;
    const int most = mx_attention_positions(a.heads / a.kv_heads);
    const int from = most * (int)(blockIdx.z * run_shape::warps + mx_warp()); /* the warp's first row of the run */
    const int count = run.rows - from < most ? run.rows - from : most;        /* <= 0: none */
    uint4 *mine = (uint4 *)shared + 32 * run_shape::words * mx_warp();
    float4 *total = (float4 *)(mine + 32 * run_shape::query_words) + lane, *span_total = total + 32 * lanes_o;

    mx_attention_row seen;
    const float *q[2] = {nullptr, nullptr};
    int64_t at[2] = {-1, -1}; /* of the M-row in q and, padding aside, in out; -1: nothing stands in it */
    float m[2], l[2], factor[2] = {0.0f, 0.0f};
    seen.sight = mx_attention_sight(a.window);
    MX_UNROLL
    for (int i = 0; i < 2; i++) {
        const int r = (g + 8 * i) / h.heads, head = h.head + (g + 8 * i) % h.heads;
        const bool there = r < count;
        seen.position[i] = begin + from + (there ? r : 0);
        seen.first[i] = mx_attention_first(seen.position[i], a.window);
        m[i] = a.sinks[head] * MX_LOG2E;
        l[i] = 1.0f;
        if (!there) continue;
        q[i] = a.q + ((int64_t)(run.row + from + r) * a.heads + head) * HD;
        at[i] = (run.row + from + r) * mx_cuda_padded((int64_t)a.heads * HD) + (int64_t)head * HD;
    }
    uint32_t f[2][shape::stage][KV::words], in[shape::query_shared ? 1 : 2 * shape::blocks][KV::terms][4];
    float span_o[run_shape::span_shared ? 1 : lanes_o][4], span_m[2], span_l[2];
    bool span_seen[2] = {false, false};
    if (count > 0) mx_attention_query<KV, HD>(q, a.scale, in, mine, factor);
    MX_UNROLL
    for (int d = 0; d < lanes_o; d++) total[32 * d] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    /* The tiles of the warp, and of the block, whose warps go from span to span together. */
    const int last = begin + from + count - 1, warp_first = mx_attention_first(begin + from, a.window);
    const int tile_begin = warp_first / MX_TILE, tile_end = count > 0 ? last / MX_TILE + 1 : 0;
    const int spans_begin = mx_attention_first(begin, a.window) / MX_CUDA_SPAN;
    const int spans_end = (begin + run.rows - 1) / MX_CUDA_SPAN + 1;
    const int32_t *table = a.pages.tables + a.pages.table[run.row] * a.pages.table_stride;
    const uint8_t *head = nullptr;
    if (tile_begin < tile_end) {
        head = mx_attention_page<KV, HD>(a.pages, table, tile_begin, h.kv_head);
        mx_attention_load<KV, HD, false>(f[0], head, 0);
    }
    for (int span = spans_begin; span < spans_end; span++) {
        MX_UNROLL
        for (int i = 0; i < 2; i++) {
            span_m[i] = mx_float(0xff800000u);
            span_l[i] = 0.0f;
            span_seen[i] = false;
        }
        if (run_shape::span_shared) {
            MX_UNROLL
            for (int d = 0; d < lanes_o; d++) span_total[32 * d] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        } else {
            MX_UNROLL
            for (int d = 0; d < lanes_o; d++) span_o[d][0] = span_o[d][1] = span_o[d][2] = span_o[d][3] = 0.0f;
        }
        const int tile_from = span * SPAN_TILES > tile_begin ? span * SPAN_TILES : tile_begin;
        const int tile_to = (span + 1) * SPAN_TILES < tile_end ? (span + 1) * SPAN_TILES : tile_end;
        for (int tile = tile_from; tile < tile_to; tile++) {
            const uint8_t *next = nullptr;
            if (tile + 1 < tile_end) next = mx_attention_page<KV, HD>(a.pages, table, tile + 1, h.kv_head);
            const int key = tile * MX_TILE;
            const bool whole = key + MX_TILE - 1 <= begin + from &&
                               key >= mx_attention_first(last, a.window); /* of the warp's last row */
            float tile_m[2], tile_l[2], keep[2] = {1.0f, 1.0f}, take[2] = {0.0f, 0.0f}, o[lanes_o][4];
            mx_attention_tile<KV, HD, 1, false>(head, next, f, in, mine, key + 8 * t, seen, whole, factor, tile_m,
                                                tile_l, o);
            bool tile_seen[2];
            MX_UNROLL
            for (int i = 0; i < 2; i++) {
                tile_seen[i] = mx_attention_sees(seen.position[i], seen.first[i], key, MX_TILE);
                span_seen[i] = span_seen[i] || tile_seen[i];
                if (!tile_seen[i]) continue;
                mx_attention_fold(&span_m[i], &span_l[i], tile_m[i], tile_l[i], &keep[i], &take[i]);
                take[i] = mx_attention_take<KV>(take[i]);
            }
            if (run_shape::span_shared) {
                mx_attention_fold_shared<lanes_o>(span_total, o, keep, take, tile_seen);
            } else {
                mx_attention_fold_lane<lanes_o>(span_o, o, keep, take, tile_seen);
            }
            head = next;
        }
        float keep[2] = {1.0f, 1.0f}, take[2] = {0.0f, 0.0f};
        MX_UNROLL
        for (int i = 0; i < 2; i++) {
            if (span_seen[i]) mx_attention_fold(&m[i], &l[i], span_m[i], span_l[i], &keep[i], &take[i]);
        }
        if (run_shape::span_shared) {
            MX_UNROLL
            for (int d = 0; d < lanes_o; d++) {
                const float4 v = span_total[32 * d];
                const float o[1][4] = {{v.x, v.y, v.z, v.w}};
                mx_attention_fold_shared<1>(total + 32 * d, o, keep, take, span_seen);
            }
        } else {
            mx_attention_fold_shared<lanes_o>(total, span_o, keep, take, span_seen);
        }
        mx_sync();
    }

    MX_UNROLL
    for (int i = 0; i < 2; i++) {
        if (at[i] < 0) continue;
        const float inverse = 1.0f / l[i];
        MX_UNROLL
        for (int d = 0; d < lanes_o; d++) {
            const float4 v = total[32 * d];
            mx_attention_store(a.out + at[i] + 8 * d + 2 * t, a.out_term, a.terms, (i ? v.z : v.x) * inverse,
                               (i ? v.w : v.y) * inverse);
        }
    }
}

/* ---- the host ---- */
int64_t mx_cuda_attention_part(int head_dim, int group) {
    return mx_cuda_attention_floats(head_dim, group);
}

int mx_cuda_run_rows(int group) {
    return RUN_WARPS * mx_attention_positions(group);
}

template <class KV, int HD> static void mx_attention_queue(const mx_cuda_attention *a, bool rows, mx_gpu_stream *s) {
    const unsigned heads = (unsigned)(a->kv_heads * mx_attention_heads_blocks(a->heads / a->kv_heads));
    if (rows) {
        mx_launch(s, dim3((unsigned)a->spans, heads, (unsigned)a->rows), SPAN_THREADS,
                  mx_attention_span_shape<KV, HD>::shared, mx_attention_span<KV, HD>, *a);
    } else {
        constexpr int warps = mx_attention_run_shape<KV, HD>::warps;
        mx_launch(s, dim3((unsigned)a->runs, heads, RUN_WARPS / warps), 32 * warps,
                  mx_attention_run_shape<KV, HD>::shared, mx_attention_run<KV, HD>, *a);
    }
}

template <class KV> static void mx_attention_queue_dims(const mx_cuda_attention *a, bool rows, mx_gpu_stream *s) {
    switch (a->head_dim) {
    case 32:
        mx_attention_queue<KV, 32>(a, rows, s);
        break;
    case 64:
        mx_attention_queue<KV, 64>(a, rows, s);
        break;
    case 96:
        mx_attention_queue<KV, 96>(a, rows, s);
        break;
    default:
        mx_attention_queue<KV, 128>(a, rows, s);
        break;
    }
}

static void mx_attention_queue_kv(const mx_cuda_attention *a, bool rows, mx_gpu_stream *s) {
    switch (a->pages.kv) {
    case MX_F16:
        mx_attention_queue_dims<mx_kv_f16>(a, rows, s);
        break;
    case MX_BF16:
        mx_attention_queue_dims<mx_kv_bf16>(a, rows, s);
        break;
    default:
        mx_attention_queue_dims<mx_kv_f32>(a, rows, s);
        break;
    }
}

void mx_cuda_attention_rows(const mx_cuda_attention *a, mx_gpu_stream *s) {
    if (a->rows < 1) return;
    mx_attention_queue_kv(a, true, s);
    const unsigned pairs = (unsigned)(a->heads * a->head_dim / 2);
    mx_launch(s, dim3((pairs + FOLD_THREADS - 1) / FOLD_THREADS, (unsigned)a->rows), FOLD_THREADS, 0,
              mx_attention_spans, *a);
}

void mx_cuda_attention_runs(const mx_cuda_attention *a, mx_gpu_stream *s) {
    if (a->runs > 0) mx_attention_queue_kv(a, false, s);
}
