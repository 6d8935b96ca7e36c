/* Which experts a row goes to, and the (row, expert) pairs sorted by expert. A step of few rows does it in one launch
 * of one block; for a prompt the experts are chosen by many blocks before one block sorts.
 *
 * The sort counts: each warp has its rows, in order, and a counter for each expert in shared memory. A row's experts
 * are distinct, so its lanes count side by side, each its own expert: no atomics, and rows ascend within an expert. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

enum {
    WARPS = 32,              /* of the block that sorts, at most */
    HELD = 2,                /* rows whose choice a warp keeps in registers */
    FEW_ROWS = WARPS * HELD, /* with so many, and at most 128 experts, all is done in one launch */
    CHOOSE_THREADS = 128     /* of the launch that chooses for more, a warp a row */
};

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

/* Unsigned words in the order of the floats, all above 0; NaN is -inf (as in kernels/scalar/elementwise.c), -0 is 0. */
MX_DEVICE uint32_t key_of(float v) {
    const uint32_t bits = v == 0.0f ? 0u : v != v ? 0xff800000u : mx_bits(v);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The best of a lane's experts, the lowest of equals. */
template <int EACH> MX_DEVICE void best_of(const uint32_t key[EACH], uint32_t *best, int *at) {
    *best = key[0];
    *at = 0;
    MX_UNROLL
    for (int j = 1; j < EACH; j++) {
        if (key[j] <= *best) continue;
        *best = key[j];
        *at = j;
    }
}

/* One row, by a warp. Lane i holds experts EACH i .. EACH i + EACH - 1, so that of equal logits the lowest lane has the
 * lowest expert; lane j < top_k gets the j-th choice, the others -1. */
template <int EACH> MX_DEVICE void choose(const mx_cuda_route &r, int row, int *chosen, float *weight) {
    const int lane = mx_lane();
    const float *logits = r.logits + (int64_t)row * r.experts;
    uint32_t key[EACH], best; /* 0: none, or already chosen */
    int at, mine = 0;
    MX_UNROLL
    for (int j = 0; j < EACH; j++) key[j] = lane * EACH + j < r.experts ? key_of(logits[lane * EACH + j]) : 0;
    best_of<EACH>(key, &best, &at);
    for (int i = 0; i < r.top_k; i++) {
        const uint32_t largest = mx_warp_largest(best);
        const int owner = mx_first_bit(mx_ballot(best == largest));
        const int expert = mx_shuffle(lane * EACH + at, owner);
        if (lane == i) mine = expert;
        if (lane != owner) continue;
        MX_UNROLL
        for (int j = 0; j < EACH; j++)
            if (j == at) key[j] = 0;
        best_of<EACH>(key, &best, &at);
    }
    const float logit = logits[mine], first = mx_shuffle(logit, 0); /* a NaN that was chosen shows in the weights */
    const float power = lane < r.top_k ? expf(logit - first) : 0.0f;
    const float sum = mx_warp_sum(power);
    *chosen = lane < r.top_k ? mine : -1;
    *weight = power / sum;
    if (lane >= r.top_k) return;
    r.expert[(int64_t)row * r.top_k + lane] = mine;
    r.weight[(int64_t)row * r.top_k + lane] = *weight;
}

template <int EACH> __global__ void __launch_bounds__(CHOOSE_THREADS) choose_rows(mx_cuda_route r) {
    mx_begin();
    const int row = blockIdx.x * (CHOOSE_THREADS / 32) + mx_warp();
    int expert;
    float weight;
    if (row < r.rows && r.position[row] >= 0) choose<EACH>(r, row, &expert, &weight);
}

/* ---- sorting ----------------------------------------------------------------------------------------------------- */

struct counters {
    int32_t *count;      /* [warps][experts] a warp's pairs; then those in front of them in the warps before */
    int32_t *total;      /* [experts] pairs */
    int32_t *first;      /* [experts] the first slot */
    int32_t *first_tile; /* [experts] */
};

MX_DEVICE counters counters_in(uint8_t *shared, int warps, int experts) {
    counters c;
    c.count = (int32_t *)shared;
    c.total = c.count + warps * experts;
    c.first = c.total + experts;
    c.first_tile = c.first + experts;
    return c;
}

MX_DEVICE int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

/* The rows of this warp. */
struct share {
    int begin, end;
};

MX_DEVICE share share_of(int rows) {
    const int each = ceil_div(rows, blockDim.x / 32), begin = mx_warp() * each;
    return {begin, begin + each < rows ? begin + each : rows};
}

/* What was chosen for rows begin .. end - 1, eight at a time so that their loads are under way together: all lanes call
 * visit(row, expert, weight), expert -1 where a lane has none. */
template <typename V> MX_DEVICE void for_pairs(const mx_cuda_route &r, share s, V visit) {
    enum { TOGETHER = 8 };
    const int lane = mx_lane();
    for (int first = s.begin; first < s.end; first += TOGETHER) {
        int expert[TOGETHER];
        float weight[TOGETHER];
        MX_UNROLL
        for (int i = 0; i < TOGETHER; i++) {
            const int row = first + i;
            const int64_t pair = (int64_t)row * r.top_k + lane;
            const bool there = row < s.end && lane < r.top_k && r.position[row] >= 0;
            expert[i] = there ? r.expert[pair] : -1;
            weight[i] = there ? r.weight[pair] : 0;
        }
        MX_UNROLL
        for (int i = 0; i < TOGETHER; i++)
            if (first + i < s.end) visit(first + i, expert[i], weight[i]);
    }
}

/* A row's pairs, one in a lane; `mine`: the warp's counters. The next row's lanes may have the same experts. */
MX_DEVICE void count_row(int32_t *mine, int expert) {
    if (expert >= 0) mine[expert]++;
    mx_sync_warp();
}

/* One warp: first and first_tile of all experts from their totals, ascending, and how many tiles there are. */
MX_DEVICE void place_experts(const mx_cuda_route &r, const counters &c) {
    const int lane = mx_lane(), each = ceil_div(r.experts, 32);
    const int begin = lane * each, end = begin + each < r.experts ? begin + each : r.experts;
    int slots = 0, tiles = 0;
    for (int e = begin; e < end; e++) {
        slots += c.total[e];
        tiles += ceil_div(c.total[e], r.tile_rows);
    }
    int slot = slots, tile = tiles; /* sums over the lanes up to this one */
    MX_UNROLL
    for (int delta = 1; delta < 32; delta *= 2) {
        const int below = mx_shuffle_up(slot, delta), tiles_below = mx_shuffle_up(tile, delta);
        if (lane < delta) continue;
        slot += below;
        tile += tiles_below;
    }
    if (lane == 31) *r.tiles = tile;
    slot -= slots;
    tile -= tiles;
    for (int e = begin; e < end; e++) {
        c.first[e] = slot;
        c.first_tile[e] = tile;
        slot += c.total[e];
        tile += ceil_div(c.total[e], r.tile_rows);
    }
}

MX_DEVICE void place_row(const mx_cuda_route &r, const counters &c, int32_t *mine, int row, int expert, float weight) {
    int slot = -1, rank = 0;
    if (expert >= 0) slot = c.first[expert] + mine[expert]++;
    for (int j = 0; j < r.top_k; j++) rank += mx_shuffle(slot, j) < slot;
    mx_sync_warp();
    if (expert < 0) return;
    r.slot_row[slot] = row;
    r.slot_weight[slot] = weight;
    r.row_slot[(int64_t)row * r.top_k + rank] = slot;
}

/* From the warps' counts to where each of them places its pairs, and the tiles. All threads of the block. */
MX_DEVICE void add_up(const mx_cuda_route &r, const counters &c) {
    const int threads = blockDim.x, thread = threadIdx.x;
    mx_sync();
    for (int e = thread; e < r.experts; e += threads) {
        int sum = 0;
        for (int w = 0; w < threads / 32; w++) {
            const int count = c.count[w * r.experts + e];
            c.count[w * r.experts + e] = sum;
            sum += count;
        }
        c.total[e] = sum;
    }
    mx_sync();
    if (mx_warp() == 0) place_experts(r, c);
    mx_sync();
    for (int e = thread; e < r.experts; e += threads) {
        for (int done = 0, t = c.first_tile[e]; done < c.total[e]; done += r.tile_rows, t++) {
            const int left = c.total[e] - done;
            r.tile[t] = {e, c.first[e] + done, left < r.tile_rows ? left : r.tile_rows};
        }
    }
}

MX_DEVICE int32_t *zeroed_counters(const mx_cuda_route &r, const counters &c) {
    int32_t *mine = c.count + mx_warp() * r.experts;
    for (int e = mx_lane(); e < r.experts; e += 32) mine[e] = 0;
    mx_sync_warp();
    return mine;
}

__global__ void __launch_bounds__(32 * WARPS, 1) sort_rows(mx_cuda_route r) {
    mx_begin();
    MX_DYNAMIC_SHARED(shared);
    const counters c = counters_in(shared, blockDim.x / 32, r.experts);
    const share rows = share_of(r.rows);
    int32_t *mine = zeroed_counters(r, c);
    for_pairs(r, rows, [&](int, int expert, float) { count_row(mine, expert); });
    add_up(r, c);
    for_pairs(r, rows, [&](int row, int expert, float weight) { place_row(r, c, mine, row, expert, weight); });
}

/* Chooses and sorts: a warp has at most HELD rows. */
template <int EACH> __global__ void __launch_bounds__(32 * WARPS, 1) route_few(mx_cuda_route r) {
    mx_begin();
    MX_DYNAMIC_SHARED(shared);
    const counters c = counters_in(shared, blockDim.x / 32, r.experts);
    const share rows = share_of(r.rows);
    int32_t *mine = zeroed_counters(r, c);
    int expert[HELD];
    float weight[HELD];
    MX_UNROLL
    for (int i = 0; i < HELD; i++) {
        const int row = rows.begin + i;
        expert[i] = -1;
        weight[i] = 0;
        if (row < rows.end && r.position[row] >= 0) choose<EACH>(r, row, &expert[i], &weight[i]);
        count_row(mine, expert[i]);
    }
    add_up(r, c);
    MX_UNROLL
    for (int i = 0; i < HELD; i++) place_row(r, c, mine, rows.begin + i, expert[i], weight[i]);
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

/* As many warps as there are rows for, and room for their counters in 48 KiB. */
static void launch_sort(const mx_cuda_route *r, void (*kernel)(mx_cuda_route), mx_gpu_stream *s) {
    const int experts = r->experts, room = 48 * 1024 / (int)sizeof(int32_t) / experts - 3;
    int warps = room < WARPS ? room : WARPS;
    if (warps > r->rows) warps = r->rows;
    mx_launch(s, dim3(1), 32 * warps, (size_t)(warps + 3) * experts * sizeof(int32_t), kernel, *r);
}

template <int EACH> static void launch_choose(const mx_cuda_route *r, mx_gpu_stream *s) {
    const int rows = CHOOSE_THREADS / 32;
    mx_launch(s, dim3((r->rows + rows - 1) / rows), CHOOSE_THREADS, 0, choose_rows<EACH>, *r);
}

extern "C" void mx_cuda_route_rows(const mx_cuda_route *r, mx_gpu_stream *s) {
    if (r->rows <= 0) return;
    if (r->rows <= FEW_ROWS && r->experts <= 128) {
        launch_sort(r, r->experts <= 32 ? route_few<1> : route_few<4>, s);
        return;
    }
    if (r->experts <= 32)
        launch_choose<1>(r, s);
    else if (r->experts <= 128)
        launch_choose<4>(r, s);
    else
        launch_choose<32>(r, s);
    launch_sort(r, sort_rows, s);
}

extern "C" int mx_cuda_most_tiles(int rows, int top_k, int experts, int tile_rows) {
    const int pairs = rows * top_k, cut = experts + pairs / tile_rows;
    return pairs < cut ? pairs : cut;
}
