/* Dense products by OpenBLAS, for processors of which we have nothing but scalar C. Weights widen to fp32 a few rows at
 * a time, sgemm multiplies, the scalar epilogue finishes. The order of its sums depends on the number of rows. */
#include "kernels/openblas/openblas.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/scalar/scalar.h"

enum {
    PIECE_N = 32,  /* weight rows widened at once */
    PIECE_T = 256, /* activation rows multiplied at once */
};

typedef struct scratch {
    float w[PIECE_N * MX_OPENBLAS_COLS];
    float sums[PIECE_T][PIECE_N];
} scratch;

/* CBLAS: row-major 101, not transposed 111, transposed 112. */
typedef void sgemm_fn(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                      const float *b, int ldb, float beta, float *c, int ldc);
static sgemm_fn *sgemm;

static void matmul(const mx_matmul *m) {
    scratch *s = (scratch *)m->scratch;
    const int cols = (int)m->w.cols;
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += PIECE_N) {
        int64_t count = m->n1 - n0 < PIECE_N ? m->n1 - n0 : PIECE_N;
        for (int64_t i = 0; i < count; i++)
            mx_scalar_widen(s->w + i * cols, m->w.data + (n0 + i) * m->w.row_stride, m->w.format, cols);
        for (int64_t t0 = 0; t0 < m->rows; t0 += PIECE_T) {
            int64_t rows = m->rows - t0 < PIECE_T ? m->rows - t0 : PIECE_T;
            sgemm(101, 111, 112, (int)rows, (int)count, cols, 1.0f, (const float *)(m->x + t0 * m->x_stride), cols,
                  s->w, cols, 0.0f, s->sums[0], PIECE_N);
            for (int64_t i = 0; i < rows; i++) mx_scalar_finish_row(m, t0 + i, n0, count, s->sums[i]);
        }
    }
}

static const mx_product product = {mx_packed_floats, mx_scalar_pack_fp32, matmul, false};

static char load_error[200];

/* What the library was built for; it may end the process when more call. INT_MAX: it does not say. */
static int most_threads = INT_MAX;

static void read_limit(const char *config) {
    static const char key[] = "MAX_THREADS=";
    const char *found = config ? strstr(config, key) : NULL;
    int threads = found ? atoi(found + strlen(key)) : 0;
    if (threads > 0) most_threads = threads;
}

/* One thread a call: the parallel regions are ours. */
static void load(void) {
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library) {
        void (*set_threads)(int);
        char *(*config)(void);
        *(void **)&set_threads = dlsym(library, "openblas_set_num_threads");
        *(void **)&config = dlsym(library, "openblas_get_config");
        *(void **)&sgemm = dlsym(library, "cblas_sgemm");
        if (set_threads) set_threads(1);
        if (config) read_limit(config());
    }
    if (!sgemm) {
        const char *why = dlerror();
        snprintf(load_error, sizeof load_error, "%s", why ? why : "libopenblas.so.0 has no cblas_sgemm");
    }
}

mx_status mx_openblas_open(int threads, const mx_product **out, int64_t *floats, mx_error *error) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    if (!sgemm)
        return mx_fail(error, MX_UNSUPPORTED,
                       "OpenBLAS cannot be loaded (%s): install it (Debian: libopenblas0-pthread) or leave --dense out",
                       load_error);
    if (threads > most_threads)
        return mx_fail(error, MX_UNSUPPORTED,
                       "OpenBLAS was built for at most %d threads, found %d: use --threads %d or leave --dense out",
                       most_threads, threads, most_threads);
    *out = &product;
    *floats = (int64_t)(sizeof(scratch) / sizeof(float));
    return MX_OK;
}
