#ifndef MX_KERNELS_X86_AMX_TILE_H
#define MX_KERNELS_X86_AMX_TILE_H

/* The tile instructions that the AMX products use, and a model of them in C (MX_AMX_MODEL) by which the products are
 * tested where no processor has them. Tile numbers are constants. Between mx_tiles_begin and _end every tile is 16 rows
 * of 64 bytes; between mx_tiles_begin_blocks and _end tiles 0 ... 3 are, 4 and 5 (weights) are 16 rows of 32 bytes, 6
 * and 7 (activations) 8 rows of 64: a block of 32 columns of INT8. */
#include <stdint.h>

enum { MX_TILE_ROWS = 16, MX_TILE_BYTES = 64 };

#ifdef MX_AMX_MODEL

#include <math.h>
#include <string.h>

typedef struct mx_tile {
    uint8_t row[MX_TILE_ROWS][MX_TILE_BYTES];
} mx_tile;

/* The eight registers of a thread. */
static _Thread_local mx_tile mx_tiles[8];

static _Thread_local int mx_tile_rows[8], mx_tile_bytes[8];

static inline void mx_tiles_begin(void) {
    memset(mx_tiles, 0xff, sizeof mx_tiles); /* NaN: what is not written must not be read */
    for (int t = 0; t < 8; t++) {
        mx_tile_rows[t] = MX_TILE_ROWS;
        mx_tile_bytes[t] = MX_TILE_BYTES;
    }
}
static inline void mx_tiles_begin_blocks(void) {
    mx_tiles_begin();
    mx_tile_bytes[4] = mx_tile_bytes[5] = 32;
    mx_tile_rows[6] = mx_tile_rows[7] = 8;
}
static inline void mx_tiles_end(void) {
    memset(mx_tiles, 0xff, sizeof mx_tiles);
}
static inline void mx_tile_zero(int t) {
    memset(&mx_tiles[t], 0, sizeof mx_tiles[t]);
}
static inline void mx_tile_load(int t, const void *at, int64_t stride) {
    for (int i = 0; i < mx_tile_rows[t]; i++)
        memcpy(mx_tiles[t].row[i], (const char *)at + i * stride, (size_t)mx_tile_bytes[t]);
}
static inline void mx_tile_store(int t, void *at, int64_t stride) {
    for (int i = 0; i < mx_tile_rows[t]; i++)
        memcpy((char *)at + i * stride, mx_tiles[t].row[i], (size_t)mx_tile_bytes[t]);
}

/* Subnormals count as zero, with their sign, going in and coming out. */
static inline float mx_tile_flushed(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= bits & 0x7f800000 ? 0xffffffff : 0x80000000;
    memcpy(&v, &bits, sizeof v);
    return v;
}
static inline float mx_tile_bf16(uint32_t pair, int high) {
    uint32_t bits = high ? pair & 0xffff0000 : pair << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return mx_tile_flushed(v);
}

/* TDPBF16PS: c[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]; even and odd products add up apart
 * with one rounding each, then meet (Intel's Architecture Instruction Set Extensions Reference). */
static inline void mx_tile_dpbf16(int c, int a, int b) {
    float b_even[16][16], b_odd[16][16];
    for (int k = 0; k < 16; k++) {
        for (int n = 0; n < 16; n++) {
            uint32_t pair;
            memcpy(&pair, mx_tiles[b].row[k] + 4 * n, sizeof pair);
            b_even[k][n] = mx_tile_bf16(pair, 0);
            b_odd[k][n] = mx_tile_bf16(pair, 1);
        }
    }
    for (int m = 0; m < MX_TILE_ROWS; m++) {
        float even[16] = {0}, odd[16] = {0}, sum[16];
        for (int k = 0; k < 16; k++) {
            uint32_t pair;
            memcpy(&pair, mx_tiles[a].row[m] + 4 * k, sizeof pair);
            float a_even = mx_tile_bf16(pair, 0), a_odd = mx_tile_bf16(pair, 1);
            for (int n = 0; n < 16; n++) {
                even[n] = mx_tile_flushed(fmaf(a_even, b_even[k][n], even[n]));
                odd[n] = mx_tile_flushed(fmaf(a_odd, b_odd[k][n], odd[n]));
            }
        }
        memcpy(sum, mx_tiles[c].row[m], sizeof sum);
        for (int n = 0; n < 16; n++)
            sum[n] = mx_tile_flushed(mx_tile_flushed(sum[n]) + mx_tile_flushed(even[n] + odd[n]));
        memcpy(mx_tiles[c].row[m], sum, sizeof sum);
    }
}

/* TDPBSSD: c[m][n] += sum over k and i < 4 of a[m][4k + i] b[k][4n + i], signed bytes, 32-bit sums that wrap. */
static inline void mx_tile_dpbssd(int c, int a, int b) {
    for (int m = 0; m < MX_TILE_ROWS; m++) {
        for (int n = 0; n < 16; n++) {
            uint32_t sum;
            memcpy(&sum, mx_tiles[c].row[m] + 4 * n, sizeof sum);
            for (int k = 0; k < mx_tile_bytes[a] / 4; k++) {
                for (int i = 0; i < 4; i++) {
                    int x = (int8_t)mx_tiles[a].row[m][4 * k + i], y = (int8_t)mx_tiles[b].row[k][4 * n + i];
                    sum += (uint32_t)(x * y);
                }
            }
            memcpy(mx_tiles[c].row[m] + 4 * n, &sum, sizeof sum);
        }
    }
}

#else

#include <immintrin.h>

/* The intrinsics say nothing of memory to the compiler: fences keep loads behind the stores that feed them. */
#define MX_FENCE() __asm__ volatile("" ::: "memory")

/* What LDTILECFG reads: palette 1, bytes of a row and rows of each tile. */
struct mx_tile_config {
    uint8_t palette, start_row, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

static inline void mx_tiles_begin(void) {
    static const struct mx_tile_config config = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
}
static inline void mx_tiles_begin_blocks(void) {
    static const struct mx_tile_config config = {
        1, 0, {0}, {64, 64, 64, 64, 32, 32, 64, 64}, {16, 16, 16, 16, 16, 16, 8, 8}};
    _tile_loadconfig(&config);
}
static inline void mx_tiles_end(void) {
    _tile_release();
}

#define mx_tile_zero(t) _tile_zero(t)
#define mx_tile_load(t, at, stride)                                                                                    \
    do {                                                                                                               \
        MX_FENCE();                                                                                                    \
        _tile_loadd(t, at, (int)(stride));                                                                             \
    } while (0)
#define mx_tile_store(t, at, stride)                                                                                   \
    do {                                                                                                               \
        _tile_stored(t, at, (int)(stride));                                                                            \
        MX_FENCE();                                                                                                    \
    } while (0)
#define mx_tile_dpbf16(c, a, b) _tile_dpbf16ps(c, a, b)
#define mx_tile_dpbssd(c, a, b) _tile_dpbssd(c, a, b)

#endif

#endif
