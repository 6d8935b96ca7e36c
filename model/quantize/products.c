/* What takes the time of GPTQ. Compiled for each instruction set (meson.build), in vectors of its width; every one
 * gives the same bits: sums of doubles are in 8 parts, which are added in one order, sums of floats one after the
 * other. */
#include <string.h>

#include "model/quantize/private.h"

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define TIER mx_products_avx512
enum { W = 16 };
#elif defined(__AVX2__)
#define TIER mx_products_avx2
enum { W = 8 };
#else
#define TIER mx_products_any
enum { W = 4 };
#endif
enum {
    WD = W / 2,
    PARTS = 8 / WD,
    COLUMNS = W == 4 ? 2 : 4 /* at once: what registers hold */,
    WIDE = 32,
    ROW = WIDE / W
};

typedef float V __attribute__((vector_size(4 * W)));
typedef double D __attribute__((vector_size(8 * WD)));

/* ---- A -= X X' ----------------------------------------------------------------------------------------------------
 */

INLINE double add_up(const D part[PARTS], const double *x, const double *y, int64_t from, int64_t width) {
    double p[8];
    memcpy(p, part, sizeof p);
    double sum = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
    for (int64_t i = from; i < width; i++) sum += x[i] * y[i];
    return sum;
}

/* x . y [width] for COLUMNS rows y that are n apart. */
INLINE void several(double out[COLUMNS], const double *x, const double *y, int64_t n, int64_t width) {
    D sum[COLUMNS][PARTS] = {{{0}}};
    int64_t k = 0;
    for (; k + 8 <= width; k += 8)
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; p++) {
            D left;
            memcpy(&left, x + k + p * WD, sizeof left);
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++) {
                D right;
                memcpy(&right, y + c * n + k + p * WD, sizeof right);
                sum[c][p] += left * right;
            }
        }
    for (int c = 0; c < COLUMNS; c++) out[c] = add_up(sum[c], x, y + c * n, k, width);
}

static void update(double *m, int64_t n, int64_t first, int64_t width, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = i / COLUMNS * COLUMNS; j < first; j += COLUMNS) {
            double product[COLUMNS];
            several(product, m + i * n + first, m + j * n + first, n, width);
            for (int64_t c = 0; c < COLUMNS; c++)
                if (j + c >= i) m[i * n + j + c] -= product[c];
        }
}

/* ---- errors times R -----------------------------------------------------------------------------------------------
 */

INLINE void two_rows(float *sum, float *other, const float *lost, const float *lost_too, const float *factor, int64_t n,
                     int64_t count) {
    V a[ROW] = {{0}}, b[ROW] = {{0}};
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 8
        for (int p = 0; p < ROW; p++) {
            V f;
            memcpy(&f, factor + i * n + p * W, sizeof f);
            a[p] += lost[i] * f;
            b[p] += lost_too[i] * f;
        }
    for (int p = 0; p < ROW; p++)
        for (int l = 0; l < W; l++) {
            sum[p * W + l] += a[p][l];
            if (other) other[p * W + l] += b[p][l];
        }
}

static void hand_on(float *sum, int64_t n, const float *lost, int64_t lost_stride, int rows, const float *factor,
                    int64_t count, int64_t from) {
    for (int64_t k = from; k < n; k += WIDE)
        for (int r = 0; r < rows; r += 2) {
            const bool both = r + 1 < rows;
            two_rows(sum + r * n + k, both ? sum + (r + 1) * n + k : NULL, lost + r * lost_stride,
                     lost + (both ? r + 1 : r) * lost_stride, factor + k, n, count);
        }
}

const mx_products TIER = {update, hand_on};
