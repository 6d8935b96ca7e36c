#include "evaluate/statistics.h"

#include <math.h>
#include <stdlib.h>

static double mean_of(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum / (double)n;
}

/* Standard error of the mean of a x[i] - b y[i], as if tokens were independent (as llama-perplexity has it): from the
 * variance with n - 1. y may be NULL. */
static double standard_error(double a, const double *x, double b, const double *y, int64_t n) {
    if (n < 2) return NAN;
    const double mean = a * mean_of(x, n) - (y ? b * mean_of(y, n) : 0);
    double squares = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = a * x[i] - (y ? b * y[i] : 0) - mean;
        squares += d * d;
    }
    return sqrt(squares / (double)(n - 1) / (double)n);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Between two of them on a straight line, as numpy's percentile and llama-perplexity. */
static double quantile(const double *sorted, int64_t n, double q) {
    const double at = q * (double)(n - 1);
    const int64_t below = (int64_t)at, above = below + 1 < n ? below + 1 : below;
    return sorted[below] + (at - (double)below) * (sorted[above] - sorted[below]);
}

static void summarise_base(const mx_measured *m, mx_evaluation *out) {
    int64_t same = 0;
    const int64_t n = m->tokens;
    for (int64_t i = 0; i < n; i++) same += m->same[i];
    out->has_base = true;
    out->top1 = (double)same / (double)n;
    out->base_perplexity = exp(mean_of(m->base_nats, n));
    out->delta_perplexity = out->perplexity - out->base_perplexity;
    /* The error of exp(mean) is that of the mean times exp(mean); of the difference of two, paired by tokens. */
    out->delta_stderr = standard_error(out->perplexity, m->nats, out->base_perplexity, m->base_nats, n);
    out->kl_mean = mean_of(m->kl, n);
    out->kl_stderr = standard_error(1, m->kl, 0, NULL, n);
    qsort(m->kl, (size_t)n, sizeof *m->kl, by_value);
    out->kl_median = quantile(m->kl, n, 0.5);
    out->kl_p99 = quantile(m->kl, n, 0.99);
    out->kl_max = m->kl[n - 1];
}

void mx_measured_summarise(const mx_measured *m, mx_evaluation *out) {
    out->tokens = m->tokens;
    out->nats = mean_of(m->nats, m->tokens);
    out->perplexity = exp(out->nats);
    out->standard_error = standard_error(1, m->nats, 0, NULL, m->tokens) * out->perplexity;
    out->bits_per_byte = out->nats * (double)m->tokens / log(2) / (double)out->bytes;
    if (m->kl) summarise_base(m, out);
}
