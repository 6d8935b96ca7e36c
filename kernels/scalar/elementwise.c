#include <math.h>

#include "kernels/scalar/scalar.h"

void mx_scalar_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float factor = (float)(1.0 / sqrt(sum / (double)n + eps));
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * factor * gain[i];
}

void mx_scalar_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim) {
    int half = head_dim / 2;
    for (int64_t h = 0; h < heads; h++, x += head_dim) {
        for (int d = 0; d < half; d++) {
            float a = x[d], b = x[d + half];
            x[d] = a * cos[d] - b * sin[d];
            x[d + half] = b * cos[d] + a * sin[d];
        }
    }
}

void mx_scalar_add(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

double mx_scalar_exp_sum(float *p, const float *x, int64_t n, float shift, float scale) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = expf((x[i] - shift) * scale);
        sum += p[i];
    }
    return sum;
}

/* NaN is never the largest: an index is returned whatever x holds. */
int64_t mx_scalar_argmax(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) {
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
    }
    return best;
}

void mx_router_weights(const float *logits, int k, const int32_t *expert, float *weight) {
    const float largest = logits[expert[0]];
    float sum = 0.0f;
    for (int j = 0; j < k; j++) {
        weight[j] = expf(logits[expert[j]] - largest); /* a NaN that was chosen shows in the weights */
        sum += weight[j];
    }
    for (int j = 0; j < k; j++) weight[j] /= sum;
}

/* Insertion into the list of the k best so far. NaN ranks with -inf, so the k experts are distinct whatever comes. */
void mx_scalar_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        float value = isnan(logits[i]) ? -INFINITY : logits[i];
        int at = count;
        while (at > 0 && value > weight[at - 1]) at--;
        if (at == k) continue;
        count += count < k;
        for (int j = count - 1; j > at; j--) {
            weight[j] = weight[j - 1];
            expert[j] = expert[j - 1];
        }
        weight[at] = value;
        expert[at] = i;
    }
    mx_router_weights(logits, count, expert, weight);
}
