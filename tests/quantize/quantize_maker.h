#ifndef TESTS_QUANTIZE_MAKER_H
#define TESTS_QUANTIZE_MAKER_H

/* A matrix in memory, its job with room for every result. Include after cmocka.h. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "model/quantize/quantize.h"

typedef struct maker {
    float *x; /* [rows, cols] */
    mx_quantize_job job;
    mx_quantize_report report;
    float gain;
} maker;

static inline void maker_read(void *user, int64_t first, int64_t count, float *out) {
    const maker *m = user;
    memcpy(out, m->x + first * m->job.cols, (size_t)(count * m->job.cols) * sizeof *out);
}

static uint32_t maker_state = 1;
static inline uint32_t maker_any(void) {
    maker_state = maker_state * 1664525 + 1013904223;
    return maker_state >> 8;
}

/* About normal, deviation 1. */
static inline float maker_normal(void) {
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (float)maker_any() * 0x1p-24f - 0.5f;
    return sum * 1.4142f;
}

static inline maker *maker_new(const char *form, const char *recipe, int64_t rows, int64_t cols) {
    mx_error error;
    maker *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->job = (mx_quantize_job){.name = "matrix", .rows = rows, .cols = cols, .read = maker_read, .user = m};
    if (mx_form_parse(form, &m->job.form, &error)) fail_msg("%s", error.text);
    if (mx_quantize_recipe_parse(recipe, &m->job.recipe, &error)) fail_msg("%s", error.text);
    m->x = calloc((size_t)(rows * cols) + 1, sizeof *m->x);
    m->job.data = malloc((size_t)(rows * mx_columns_bytes(m->job.form.format, cols)) + 1);
    m->job.scales = malloc((size_t)(rows * mx_row_scale_bytes(&m->job.form.blocks, cols)) + 1);
    m->job.zeros = malloc((size_t)(rows * mx_row_zero_bytes(&m->job.form.blocks, cols)) + 1);
    m->job.post = malloc((size_t)(rows + 1) * sizeof *m->job.post);
    m->job.gain = &m->gain;
    for (int64_t i = 0; i < rows * cols; i++) m->x[i] = maker_normal() * 0.02f;
    return m;
}

static inline void maker_free(maker *m) {
    free(m->x);
    free(m->job.data);
    free(m->job.scales);
    free(m->job.zeros);
    free(m->job.post);
    free(m);
}

/* The instruction set that the tests were started with, again. */
static inline void maker_cpu(const char *name) {
    static char *before;
    static bool known;
    if (!known && getenv("MXRUN_CPU")) before = strdup(getenv("MXRUN_CPU"));
    known = true;
    if (name)
        setenv("MXRUN_CPU", name, 1);
    else if (before)
        setenv("MXRUN_CPU", before, 1);
    else
        unsetenv("MXRUN_CPU");
}

static inline void maker_run(maker *m, mx_pool *pool) {
    mx_error error;
    if (mx_quantize_matrix(&m->job, pool, &m->report, &error)) fail_msg("%s", error.text);
}

/* What the result is worth, [rows, cols]; the caller frees it. */
static inline float *maker_widen(const maker *m) {
    const mx_matrix view = mx_quantize_view(&m->job);
    float *out = malloc((size_t)(m->job.rows * m->job.cols) * sizeof *out);
    assert_non_null(out);
    for (int64_t n = 0; n < m->job.rows; n++) mx_matrix_widen_row(out + n * m->job.cols, &view, n);
    return out;
}

static inline bool same(float a, float b) {
    return !(a < b) && !(b < a);
}

#endif
