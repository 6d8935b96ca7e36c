#ifndef TESTS_KERNELS_SUPPORT_H
#define TESTS_KERNELS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "guard.h"
#include "kernels/kernels.h"

enum { MAX_TIERS = 9 };

/* What the command line asked for. */
typedef struct test_settings {
    const char *tier; /* NULL: all of them */
    uint64_t seed;
    bool longer; /* more cases of each kind */
} test_settings;
extern test_settings settings;

typedef struct test_group {
    const char *name;
    const struct CMUnitTest *tests;
    size_t count;
    CMFixtureFunction setup;
} test_group;
extern const test_group mx_group, matmul_group, int8_group, attention_group, elementwise_group;

/* The tiers to test: those this machine can run, scalar first; the others are named in a printed line. A new tier's
 * name goes into the table in support.c. */
int tiers_here(const mx_kernels *out[MAX_TIERS]);

/* xorshift; every test seeds its own, so that cases can be run alone. */
typedef struct rng {
    uint64_t state;
} rng;
rng rng_seeded(uint64_t n); /* a test's own number and settings.seed */
uint32_t rng_bits(rng *r);
float rng_uniform(rng *r, float low, float high);
float rng_normal(rng *r); /* roughly: a sum of uniforms, variance 1 */
int64_t rng_below(rng *r, int64_t n);

/* What is in a matrix; x_value in test_matmul.c goes with it. */
typedef enum weight_kind {
    ORDINARY,
    EXTREME, /* every scale byte from 0 on, subnormals, zeros, large values */
    LARGEST, /* nothing but the largest codes, of either sign, at large and small scales */
    WIDE,    /* scale bytes 2 ... 252 only, each row near one end or all of them in one row; else as EXTREME */
} weight_kind;

/* Of element codes (kernels/mx.h), independently of the kernels: value of a code, finite or not. */
double exact_element(mx_format format, unsigned code);
double exact_scale(mx_scale_type type, const uint8_t *at);

/* A matrix that lies at any address, its rows not always one behind the other; the last byte is the end of the last
 * row. Belongs to the case. */
typedef struct weights {
    mx_matrix matrix;
    double *exact; /* [rows, cols]: the same values in double, with post */
} weights;

/* Element codes get one of the blocks that fit `cols` and are in use for them (blocks_random), mostly a post, and
 * bf16_safe where it is true: always when the kind is WIDE, for integers too. */
weights weights_random(rng *r, mx_format format, int64_t rows, int64_t cols, weight_kind kind);
weights weights_of_blocks(rng *r, mx_format format, mx_blocks blocks, int64_t rows, int64_t cols, weight_kind kind);
mx_blocks blocks_random(rng *r, mx_format format, int64_t cols);
const mx_blocks *blocks_of(mx_format format, int *count); /* those it chooses from */

/* For messages: "e2m1:16:e4m3:post". In one buffer, which the next call uses again. */
const char *matrix_name(const mx_matrix *w);

double exact_f16(uint16_t v);
double exact_value(const uint8_t *at, mx_format format); /* one element of F32, F16 or BF16 */

/* Fails the test with both numbers and what they are when |found - expected| > bound or either is NaN. */
void check_close(double found, double expected, double bound, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
