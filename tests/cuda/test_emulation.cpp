/* The emulation itself: each primitive against its definition, and that what a GPU would do wrong shows. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
extern "C" {
#include <cmocka.h>
}

#include "kernels/cuda/device.cuh"

#include "callers.h"

static float *floats(int n) {
    void *p;
    mx_error error;
    if (mx_gpu_alloc(&p, (size_t)n * 4, "a test", &error) != MX_OK) fail_msg("%s", error.text);
    return (float *)p;
}

static uint32_t *words(int n) {
    return (uint32_t *)(void *)floats(n);
}

static void check() {
    mx_error error;
    if (mx_gpu_check("a test", &error) != MX_OK) fail_msg("%s", error.text);
}

/* ---- indices ---- */
static __global__ void __launch_bounds__(64) indices(uint32_t *out) {
    const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block * blockDim.x + threadIdx.x] = block * 1000 + threadIdx.x * 10 + (uint32_t)mx_warp() + (uint32_t)mx_lane();
}

static void test_indices(void **) {
    const int blocks = 3 * 5 * 2;
    uint32_t *out = words(blocks * 64);
    mx_launch(nullptr, dim3(3, 5, 2), 64, 0, indices, out);
    check();
    for (uint32_t b = 0; b < blocks; b++) {
        for (uint32_t t = 0; t < 64; t++) assert_int_equal(out[b * 64 + t], b * 1000 + t * 10 + t / 32 + t % 32);
    }
    mx_gpu_free(out);
}

/* ---- warps ---- */
template <typename T> static __global__ void shuffles(T *out) {
    const int lane = mx_lane();
    const T v = (T)(threadIdx.x * 3 + 1);
    T *to = out + threadIdx.x * 4;
    to[0] = mx_shuffle(v, (lane * 7 + 5) % 32);
    to[1] = mx_shuffle_xor(v, 5);
    to[2] = mx_shuffle_up(v, 3);
    to[3] = mx_shuffle(v, 40);
}

template <typename T> static void check_shuffles() {
    T *out = (T *)(void *)floats(96 * 4 * 2);
    mx_launch(nullptr, 1, 96, 0, shuffles<T>, out);
    check();
    for (int i = 0; i < 96; i++) {
        const int lane = i % 32, base = i - lane;
        const int from[4] = {(lane * 7 + 5) % 32, lane ^ 5, lane >= 3 ? lane - 3 : lane, 8};
        for (int j = 0; j < 4; j++) assert_true(out[i * 4 + j] == (T)((base + from[j]) * 3 + 1));
    }
    mx_gpu_free(out);
}

static void test_shuffles(void **) {
    check_shuffles<float>();
    check_shuffles<uint32_t>();
    check_shuffles<double>();
}

static __global__ void ballots(uint32_t *out) {
    const uint32_t bits = mx_ballot(mx_lane() % 3 == 1 || (mx_warp() == 1 && mx_lane() == 30));
    const float sum = mx_warp_sum((float)mx_lane()), most = mx_warp_max(-(float)mx_lane());
    out[threadIdx.x * 3] = bits;
    out[threadIdx.x * 3 + 1] = mx_bits(sum);
    out[threadIdx.x * 3 + 2] = mx_bits(most);
    if (mx_lane() < 8) out[threadIdx.x * 3 + 2] = (uint32_t)(mx_count_bits(bits) * 100 + mx_first_bit(bits));
}

static void test_ballots(void **) {
    uint32_t *out = words(64 * 3);
    mx_launch(nullptr, 1, 64, 0, ballots, out);
    check();
    for (int i = 0; i < 64; i++) {
        uint32_t bits = 0;
        for (int lane = 1; lane < 32; lane += 3) bits |= 1u << lane;
        assert_int_equal(out[i * 3], i < 32 ? bits : bits | 1u << 30);
        assert_true(mx_float(out[i * 3 + 1]) == 496.0f);
        if (i % 32 < 8)
            assert_int_equal(out[i * 3 + 2], (i < 32 ? 11 : 12) * 100 + 1);
        else
            assert_true(mx_float(out[i * 3 + 2]) == 0.0f);
    }
    assert_int_equal(mx_first_bit(0), -1);
    mx_gpu_free(out);
}

/* ---- the block ---- */
static __global__ void reverse(uint32_t *out) {
    __shared__ uint32_t fixed[256];
    MX_DYNAMIC_SHARED(room);
    uint32_t *moved = (uint32_t *)(void *)room;
    const uint32_t n = blockDim.x, i = threadIdx.x;
    fixed[i] = i * 7 + blockIdx.x;
    mx_sync();
    moved[i] = fixed[n - 1 - i];
    mx_sync();
    out[blockIdx.x * n + i] = moved[(i + 33) % n];
}

static void test_blocks(void **) {
    const int blocks = 50, threads = 256;
    uint32_t *out = words(blocks * threads);
    mx_launch(nullptr, blocks, threads, threads * 4, reverse, out);
    check();
    for (int b = 0; b < blocks; b++) {
        for (int i = 0; i < threads; i++)
            assert_int_equal(out[b * threads + i], (threads - 1 - (i + 33) % threads) * 7 + b);
    }
    mx_gpu_free(out);
}

static __global__ void unwritten(float *out) {
    MX_DYNAMIC_SHARED(room);
    out[threadIdx.x] = ((const float *)(const void *)room)[threadIdx.x];
    ((float *)(void *)room)[threadIdx.x] = 1;
}

static void test_poison(void **) {
    float *out = floats(64);
    for (int i = 0; i < 64; i++) assert_true(out[i] != out[i]);
    memset(out, 0, 64 * 4);
    mx_launch(nullptr, 4, 64, 64 * 4, unwritten, out);
    check();
    for (int i = 0; i < 64; i++) assert_true(out[i] != out[i]);
    mx_gpu_free(out);
}

static __global__ void count(uint32_t *out) {
    mx_atomic_add(&out[0], threadIdx.x);
    mx_atomic_max(&out[1], blockIdx.x * blockDim.x + threadIdx.x);
}

static void test_atomics(void **) {
    uint32_t *out = words(2);
    out[0] = out[1] = 0;
    mx_launch(nullptr, 100, 128, 0, count, out);
    check();
    assert_int_equal(out[0], 100 * 127 * 64);
    assert_int_equal(out[1], 12799);
    mx_gpu_free(out);
}

/* What two warps leave in one place without mx_sync between them is the doing of the last: it differs by order. */
static __global__ void race(uint32_t *out) {
    if (mx_lane() == 0) *out = (uint32_t)mx_warp();
}

static void test_order_shows_races(void **) {
    uint32_t *out = words(1);
    mx_emulation_set_order(MX_EMULATION_UP);
    mx_launch(nullptr, 1, 64, 0, race, out);
    assert_int_equal(*out, 1);
    mx_emulation_set_order(MX_EMULATION_DOWN);
    mx_launch(nullptr, 1, 64, 0, race, out);
    assert_int_equal(*out, 0);
    mx_emulation_set_order(MX_EMULATION_RANDOM);
    int seen = 0;
    for (int i = 0; i < 64; i++) {
        mx_launch(nullptr, 1, 64, 0, race, out);
        seen |= 1 << *out;
    }
    assert_int_equal(seen, 3);
    mx_emulation_set_order(MX_EMULATION_ORDERS);
    mx_gpu_free(out);
}

/* ---- asynchronous copies ---- */
static __global__ void copies(const float *in, float *out, bool waits) {
    MX_DYNAMIC_SHARED(room);
    const int i = (int)threadIdx.x;
    for (int group = 0; group < 3; group++) {
        mx_copy16_async(room + (group * 32 + i) * 16, in + (group * 32 + i) * 4, group != 1 || i % 2 == 0);
        mx_copy_commit();
    }
    if (waits) mx_copy_wait<1>();
    mx_sync();
    for (int j = 0; j < 12; j++) out[i * 12 + j] = ((const float *)(const void *)room)[i * 12 + j];
}

static void test_copies(void **) {
    float *in = floats(384), *out = floats(384);
    for (int i = 0; i < 384; i++) in[i] = (float)i;
    mx_emulation_set_order(MX_EMULATION_UP);
    mx_launch(nullptr, 1, 32, 96 * 16, copies, in, out, true);
    check();
    for (int i = 0; i < 384; i++) {
        if (i >= 256)
            assert_true(out[i] != out[i]); /* the newest group */
        else
            assert_true(out[i] == (i >= 128 && i / 4 % 2 ? 0.0f : (float)i));
    }
    mx_launch(nullptr, 1, 32, 96 * 16, copies, in, out, false);
    for (int i = 0; i < 384; i++) assert_true(out[i] != out[i]);
    mx_emulation_set_order(MX_EMULATION_DOWN);
    mx_launch(nullptr, 1, 32, 96 * 16, copies, in, out, false);
    for (int i = 256; i < 384; i++) assert_true(out[i] == (float)i);
    mx_emulation_set_order(MX_EMULATION_ORDERS);
    mx_gpu_free(in);
    mx_gpu_free(out);
}

/* ---- numbers ---- */
/* Of the two 16-bit floats around v, both known exactly, the nearer one, at a tie the even one. */
static uint32_t nearest(double v, bool f16) {
    const double size = fabs(v);
    uint32_t best = 0;
    double distance = 1e300;
    uint32_t low = 0, high = f16 ? 0x7bff : 0x7f7f;
    while (low + 1 < high) { /* finite ones ascend with their bits */
        const uint32_t middle = (low + high) / 2;
        const double value = f16 ? mx_f16_low(middle) : mx_bf16_low(middle);
        if (value <= size)
            low = middle;
        else
            high = middle;
    }
    for (uint32_t i = low; i <= high; i++) {
        const double d = fabs((f16 ? mx_f16_low(i) : mx_bf16_low(i)) - size);
        if (d < distance || (d == distance && i % 2 == 0)) {
            best = i;
            distance = d;
        }
    }
    return best | (signbit(v) ? 0x8000u : 0);
}

static void test_numbers(void **) {
    assert_true(mx_f16_low(0x3c00) == 1.0f && mx_f16_high(0xc0000000u) == -2.0f && mx_f16_low(1) == 0x1p-24f);
    assert_true(mx_f16_low(0x03ff) == 1023 * 0x1p-24f && mx_f16_low(0x0400) == 0x1p-14f && mx_f16_low(0x7bff) == 65504);
    assert_true(mx_f16_low(0x7c00) == INFINITY && mx_f16_low(0x7e00) != mx_f16_low(0x7e00));
    assert_true(mx_bf16_low(0x12343f80) == 1.0f && mx_bf16_high(0xbf803f80u) == -1.0f);
    uint32_t state = 1;
    for (int i = 0; i < 200000; i++) {
        state = state * 1664525u + 1013904223u;
        uint32_t bits = state;
        if (i % 4 == 1) bits &= 0xffffe000u; /* near ties */
        if (i % 4 == 2) bits = (bits & 0xffff0000u) | 0x8000u;
        if (i % 4 == 3) bits = (bits & 0x8fffffffu) | 0x30000000u; /* where F16 is */
        const float v = mx_float(bits);
        if (!isfinite(v)) continue;
        const uint32_t bf16 = mx_pack_bf16(v, -v), f16 = mx_pack_f16(v, -v);
        if (fabsf(v) < 3.38e38f) {
            assert_int_equal(bf16 & 0xffff, nearest(v, false));
            assert_int_equal(bf16 >> 16, nearest(-v, false));
        }
        const float held = fminf(fmaxf(v, -65504), 65504);
        assert_int_equal(f16 & 0xffff, nearest(held, true));
        assert_int_equal(f16 >> 16, nearest(-held, true));
    }
    for (int i = 0; i < 200000; i++) {
        state = state * 1664525u + 1013904223u;
        const uint32_t a = state;
        state = state * 1664525u + 1013904223u;
        uint32_t b = state;
        if (i % 2) b = (b & 0x807f807fu) | (0x3f80u - (a & 0x7f80u)) | (0x3f80u - (a >> 16 & 0x7f80u)) << 16;
        b &= 0xbfffbfffu; /* no exponents so large that the product overflows */
        const double low = (double)mx_bf16_low(a) * mx_bf16_low(b), high = (double)mx_bf16_high(a) * mx_bf16_high(b);
        const uint32_t product = mx_mul_bf16x2(a, b);
        if (fabs(low) < 3.38e38) assert_int_equal(product & 0xffff, nearest(low, false));
        if (fabs(high) < 3.38e38) assert_int_equal(product >> 16, nearest(high, false));
    }
    assert_int_equal(mx_pack_f16(1e9f, -INFINITY), 0xfbff7bffu);
    assert_int_equal(mx_pack_f16(NAN, 1.0f), 0x3c007fffu);
    assert_int_equal(mx_pack_f16(-65520.0f, -NAN), 0x7ffffbffu);
    assert_true(mx_exp2(-126) == 0x1p-126f && mx_exp2(-127) == 0 && mx_exp2(3) == 8);
}

/* ---- tensor core ---- */
static __global__ void products(const float *a, const float *b, float *c, bool f16) {
    const int g = mx_lane() / 4, t = mx_lane() % 4;
    auto pack = [=](const float *p, int step) {
        return f16 ? mx_pack_f16(p[0], p[step]) : mx_pack_bf16(p[0], p[step]);
    };
    const uint32_t left[4] = {pack(a + g * 16 + 2 * t, 1), pack(a + (g + 8) * 16 + 2 * t, 1),
                              pack(a + g * 16 + 2 * t + 8, 1), pack(a + (g + 8) * 16 + 2 * t + 8, 1)};
    const uint32_t right[2] = {pack(b + 2 * t * 8 + g, 8), pack(b + (2 * t + 8) * 8 + g, 8)};
    float sum[4];
    for (int i = 0; i < 4; i++) sum[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    if (f16)
        mx_mma_f16(sum, left, right);
    else
        mx_mma_bf16(sum, left, right);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

static void test_products(void **) {
    float *a = floats(256), *b = floats(128), *c = floats(128), expected[128];
    for (int f16 = 0; f16 < 2; f16++) {
        for (int i = 0; i < 256; i++) a[i] = (float)(i * 37 % 101 - 50); /* exact in both formats */
        for (int i = 0; i < 128; i++) b[i] = (float)(i * 53 % 97 - 48);
        for (int i = 0; i < 128; i++) {
            double sum = c[i] = 0.25f * (float)i;
            for (int k = 0; k < 16; k++) sum += (double)a[i / 8 * 16 + k] * b[k * 8 + i % 8];
            expected[i] = (float)sum;
        }
        mx_launch(nullptr, 1, 32, 0, products, a, b, c, f16 == 1);
        check();
        for (int i = 0; i < 128; i++) assert_true(c[i] == expected[i]);
    }
    mx_gpu_free(a);
    mx_gpu_free(b);
    mx_gpu_free(c);
}

/* A row of 16 products beside c, which are powers of two: what is cut off where. */
static void test_truncation(void **) {
    const char *text = getenv("MX_EMULATION_MMA");
    const bool truncates = text && !strcmp(text, "truncate");
    const float u = 0x1p-24f; /* half of 1's last bit */
    static const int ends[][2] = {{0, 0}, {0, 1}, {7, 8}, {15, 15}};
    float *a = floats(256), *b = floats(128), *c = floats(128);
    for (int sign = -1; sign < 2; sign += 2) {
        for (int i = 0; i < 256; i++) a[i] = 0;
        for (int row = 0; row < 4; row++) { /* one or two halves of the last bit, in one step or two */
            for (int i = 0; i < 2; i++) a[row * 16 + ends[row][i]] = (float)sign * 0x1p-12f;
        }
        for (int k = 0; k < 16; k++) a[4 * 16 + k] = (float)sign * 0x1p-13f; /* 16 quarters */
        a[5 * 16] = (float)-sign * 0x1p-12f;                                 /* towards 0: fp32 has it */
        a[6 * 16] = (float)sign, a[6 * 16 + 1] = (float)-sign;               /* beside 4096: c keeps no last bit */
        for (int i = 0; i < 128; i++) b[i] = 0x1p-12f, c[i] = (float)sign;
        for (int i = 0; i < 8; i++) b[i] = i < 4 ? 0x1p-12f : 0x1p+12f, b[8 + i] = b[i];
        for (int i = 0; i < 8; i++) c[6 * 8 + i] = (float)sign * (1 + 2 * u);
        mx_launch(nullptr, 1, 32, 0, products, a, b, c, true);
        check();
        const float s = (float)sign;
        assert_true(c[0] == s && c[3 * 8] == s); /* a half: cut off, and to even */
        assert_true(c[8] == s * (1 + 2 * u));    /* two at once are a whole */
        assert_true(c[2 * 8] == (truncates ? s : s * (1 + 2 * u)));
        assert_true(c[4 * 8] == (truncates ? s : s * (1 + 4 * 2 * u)));
        assert_true(c[5 * 8] == s * (1 - u));
        assert_true(c[6 * 8] == s * (1 + 2 * u) && c[6 * 8 + 4] == (truncates ? s : s * (1 + 2 * u)));
    }
    mx_gpu_free(a);
    mx_gpu_free(b);
    mx_gpu_free(c);
}

/* ---- what ends the process ---- */
static __global__ void lanes_part(uint32_t *out) {
    if (mx_lane() == 5) return;
    out[mx_lane()] = mx_ballot(true);
}
static __global__ void lanes_differ(uint32_t *out) {
    out[mx_lane()] = mx_lane() < 16 ? mx_ballot(true) : mx_shuffle(1u, 0);
}
static __global__ void warps_part(uint32_t *) {
    if (mx_warp() == 1) return;
    mx_sync();
}
static __global__ void warp_syncs_in_part(uint32_t *) {
    if (mx_lane() < 8) mx_sync();
    mx_sync_warp();
}
static __global__ void two_ballots(uint32_t *out) {
    out[mx_lane()] = mx_lane() < 16 ? mx_ballot(true) : mx_ballot(false);
}
static __global__ void two_sums(uint32_t *out) {
    float sum = 1;
    if (mx_lane() < 16)
        sum = mx_warp_sum(sum);
    else
        sum = -mx_warp_sum(sum);
    out[mx_lane()] = mx_bits(sum);
}
static __global__ void two_syncs(uint32_t *out) {
    if (mx_warp() == 0) {
        out[0] = 1;
        mx_sync();
    } else {
        mx_sync();
    }
}
static __global__ void odd_address(uint32_t *out) {
    mx_load16(out + 1);
}
static __global__ void odd_copy(uint32_t *out) {
    MX_DYNAMIC_SHARED(room);
    mx_copy16_async(room + 8, out, true);
}

/* Launches `kernel` in a child, which must abort with the words in its message. */
static void dies(void (*kernel)(uint32_t *), const char *words_in_message, const char *more_words) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(nullptr);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL); /* cmocka and sanitizers catch it */
        dup2(ends[1], 2);
        uint32_t out[64];
        mx_launch(nullptr, dim3(1, 2), 64, 64, kernel, out);
        _exit(0);
    }
    close(ends[1]);
    char text[1000];
    size_t n = 0;
    ssize_t got;
    while (n < sizeof text - 1 && (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0) n += (size_t)got;
    text[n] = 0;
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) fail_msg("no abort but status %d: %s", status, text);
    if (!strstr(text, words_in_message) || !strstr(text, more_words) || !strstr(text, "test_emulation.cpp") ||
        !strstr(text, ", block (0, ") || !strstr(text, "thread "))
        fail_msg("%s", text);
}

static void test_deaths(void **) {
    dies(lanes_part, "mx_ballot", "the end of the kernel");
    dies(lanes_differ, "mx_ballot", "mx_shuffle");
    dies(warps_part, "mx_sync", "the end of the kernel");
    dies(warp_syncs_in_part, "mx_sync", "mx_sync_warp");
    dies(two_ballots, "is at mx_ballot", "but other lanes of the warp are at mx_ballot");
    dies(two_sums, "called by mx_warp_sum", "came there by mx_warp_sum");
    dies(two_syncs, "is at mx_sync", "but other warps of the block are at mx_sync");
    dies(odd_address, "mx_load16", "not 16-byte aligned");
    dies(odd_copy, "mx_copy16_async, shared", "not 16-byte aligned");
}

/* ---- gpu.h ---- */
static __global__ void add_one(uint32_t *p) {
    p[threadIdx.x]++;
}

static void test_graphs(void **) {
    mx_gpu_stream *s;
    mx_gpu_graph *g;
    mx_error error;
    void *pinned;
    uint32_t *p = words(32), plain[32] = {};
    assert_int_equal(mx_gpu_stream_create(&s, &error), MX_OK);
    assert_int_equal(mx_gpu_alloc_host(&pinned, 32 * 4, "a test", &error), MX_OK);
    uint32_t *host = (uint32_t *)pinned;
    assert_int_equal(mx_gpu_capture_begin(s, &error), MX_OK);
    assert_int_equal(mx_gpu_copy(p, plain, 32 * 4, s, &error), MX_INVALID_STATE);
    assert_int_equal(mx_gpu_copy(p, host, 32 * 4, s, &error), MX_OK);
    mx_launch(s, 1, 32, 0, add_one, p);
    assert_int_equal(mx_gpu_fill(p, 0, 4, s, &error), MX_OK);
    assert_int_equal(mx_gpu_capture_end(s, &g, &error), MX_OK);
    assert_int_equal(p[1], 0xffffffffu);
    for (uint32_t turn = 5; turn < 7; turn++) {
        for (int i = 0; i < 32; i++) host[i] = turn;
        assert_int_equal(mx_gpu_graph_launch(g, s, &error), MX_OK);
        assert_int_equal(mx_gpu_stream_wait(s, &error), MX_OK);
        assert_int_equal(p[0], 0);
        assert_int_equal(p[31], turn + 1);
    }
    mx_gpu_graph_destroy(g);
    mx_gpu_stream_destroy(s);
    mx_gpu_free_host(pinned);
    mx_gpu_free(p);
}

static void test_refusals(void **) {
    mx_error error;
    void *p;
    mx_gpu_info before, after;
    assert_int_equal(mx_gpu_get_info(0, &before, &error), MX_OK);
    assert_int_equal(mx_gpu_alloc(&p, (size_t)1 << 60, "the weights", &error), MX_NO_MEMORY);
    assert_non_null(strstr(error.text, "the weights"));
    assert_int_equal(mx_gpu_alloc(&p, 1000, "a test", &error), MX_OK);
    assert_int_equal((uintptr_t)p % 256, 0);
    assert_int_equal(mx_gpu_get_info(0, &after, &error), MX_OK);
    assert_int_equal(before.memory_free - after.memory_free, 1000);
    assert_int_equal(mx_gpu_fill((uint8_t *)p + 1, 0, 1000, nullptr, &error), MX_INVALID_ARGUMENT);
    mx_launch(nullptr, dim3(1, 0), 32, 0, add_one, (uint32_t *)p);
    assert_int_equal(mx_gpu_check("a test", &error), MX_INVALID_STATE);
    assert_non_null(strstr(error.text, "the grid is empty"));
    mx_launch(nullptr, 1, 32, 1 << 20, add_one, (uint32_t *)p);
    assert_int_equal(mx_gpu_check("a test", &error), MX_INVALID_STATE);
    assert_int_equal(mx_gpu_check("a test", &error), MX_OK);
    mx_gpu_free(p);
    assert_int_equal(mx_gpu_use(1, &error), MX_UNSUPPORTED);
}

static void test_events(void **) {
    mx_error error;
    mx_gpu_stream *s;
    mx_gpu_event *a, *b;
    float ms = -1;
    assert_int_equal(mx_gpu_stream_create(&s, &error), MX_OK);
    assert_int_equal(mx_gpu_event_create(&a, &error), MX_OK);
    assert_int_equal(mx_gpu_event_create(&b, &error), MX_OK);
    assert_int_equal(mx_gpu_event_ms(a, b, &ms, &error), MX_INVALID_STATE);
    assert_int_equal(mx_gpu_event_record(a, s, &error), MX_OK);
    assert_int_equal(mx_gpu_event_record(b, s, &error), MX_OK);
    assert_int_equal(mx_gpu_event_follow(s, b, &error), MX_OK);
    assert_int_equal(mx_gpu_event_wait(b, &error), MX_OK);
    assert_int_equal(mx_gpu_event_ms(a, b, &ms, &error), MX_OK);
    assert_true(ms >= 0 && ms < 10000);
    mx_gpu_event_destroy(a);
    mx_gpu_event_destroy(b);
    mx_gpu_stream_destroy(s);
}

/* Argument: the order. */
int main(int argc, char **argv) {
    if (argc > 1) setenv("MX_EMULATION_ORDER", argv[1], 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_indices),  cmocka_unit_test(test_shuffles), cmocka_unit_test(test_ballots),
        cmocka_unit_test(test_blocks),   cmocka_unit_test(test_poison),   cmocka_unit_test(test_atomics),
        cmocka_unit_test(test_copies),   cmocka_unit_test(test_numbers),  cmocka_unit_test(test_order_shows_races),
        cmocka_unit_test(test_products), cmocka_unit_test(test_deaths),   cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_events),   cmocka_unit_test(test_truncation),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
