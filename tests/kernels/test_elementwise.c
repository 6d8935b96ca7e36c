/* Conversions, norms, rotations, choices and sums of every tier. New operations get a function here that loops over
 * FOR_EACH_TIER, listed at the end. */
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const mx_kernels *tiers[MAX_TIERS];
static int tier_count;

static int setup(void **state) {
    (void)state;
    tier_count = tiers_here(tiers);
    return 0;
}

#define FOR_EACH_TIER(k)                                                                                               \
    for (const mx_kernels *const *at_ = tiers, *k = *at_; at_ < tiers + tier_count && ((k = *at_), true); at_++)

static float float_of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

static void test_half_conversions(void **state) {
    (void)state;
    for (uint32_t v = 0; v < 65536; v++) {
        uint16_t half = (uint16_t)v;
        if ((v & 0x7c00) != 0x7c00) {
            assert_true((double)mx_f16_to_f32(half) == exact_f16(half));
            assert_int_equal(mx_f32_to_f16(mx_f16_to_f32(half)), half);
        } else {
            assert_int_equal(!isnan(mx_f16_to_f32(half)), (v & 0x3ff) == 0);
        }
        if ((v & 0x7f80) != 0x7f80 || (v & 0x7f) == 0) assert_int_equal(mx_f32_to_bf16(mx_bf16_to_f32(half)), half);
    }
    /* the nearest of the two neighbours, the even one at the middle */
    rng r = rng_seeded(21);
    for (int i = 0; i < 200000; i++) {
        float v = float_of_bits(rng_bits(&r) & (i % 2 ? 0xffffffff : 0xfffff000));
        if (i % 4 < 2) v = rng_normal(&r) * (i % 8 ? 1.0f : 1e-5f);
        if (isnan(v)) {
            assert_true(isnan(mx_f16_to_f32(mx_f32_to_f16(v))) && isnan(mx_bf16_to_f32(mx_f32_to_bf16(v))));
            continue;
        }
        uint16_t f16 = mx_f32_to_f16(v), bf16 = mx_f32_to_bf16(v);
        assert_int_equal(f16 >> 15, signbit(v) != 0);
        double distance = fabs(fabs((double)v) - exact_f16(f16 & 0x7fff));
        for (int step = -1; step <= 1 && fabsf(v) < 65504.0f; step += 2) {
            uint16_t other = (uint16_t)((f16 & 0x7fff) + step);
            if (other > 0x7bff) continue;
            double further = fabs(fabs((double)v) - exact_f16(other));
            assert_true(distance < further || (distance == further && f16 % 2 == 0));
        }
        if (fabsf(v) >= 65504.0f) assert_int_equal(f16 & 0x7fff, 0x7bff);
        if (isinf(v)) continue;
        distance = fabs((double)v - (double)mx_bf16_to_f32(bf16));
        if (isinf(mx_bf16_to_f32(bf16))) continue;
        for (int step = -1; step <= 1; step += 2) {
            if ((bf16 & 0x7fff) == 0 && step < 0) continue;
            double further = fabs((double)v - (double)mx_bf16_to_f32((uint16_t)(bf16 + step)));
            assert_true(distance < further || (distance == further && bf16 % 2 == 0));
        }
    }
    assert_int_equal(mx_f32_to_f16(65520.0f), 0x7bff);
    assert_int_equal(mx_f32_to_f16(-INFINITY), 0xfbff);
    assert_int_equal(mx_f32_to_bf16(3.4e38f), 0x7f80); /* BF16 has fp32's range: it rounds as IEEE does */
}

static void test_mxfp4_widen(void **state) {
    (void)state;
    static const double e2m1[8] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
    for (int scale = 0; scale < 253; scale++) {
        uint8_t block[16];
        float out[32];
        for (int i = 0; i < 16; i++) block[i] = (uint8_t)(i | (15 - i) << 4);
        mx_mxfp4_widen(out, block, (uint8_t)scale);
        for (int i = 0; i < 32; i++) {
            int code = i % 2 ? 15 - i / 2 : i / 2;
            assert_true((double)out[i] == ldexp(code & 8 ? -e2m1[code & 7] : e2m1[code & 7], scale - 127));
            assert_int_equal(signbit(out[i]) != 0, code >> 3);
        }
    }
}

static void test_widen(void **state) {
    (void)state;
    static const mx_format formats[] = {MX_F32, MX_F16, MX_BF16};
    rng r = rng_seeded(22);
    FOR_EACH_TIER(k) {
        for (int64_t n = 0; n < 80; n++) {
            for (int f = 0; f < 3; f++) {
                int64_t size = formats[f] == MX_F32 ? 4 : 2;
                case_begin("%s widen %lld of format %d", k->name, (long long)n, f);
                uint8_t *in = guarded(n * size, 1, "in");
                float *out = guarded_row(n, "out");
                for (int64_t i = 0; i < n * size; i++) in[i] = (uint8_t)rng_bits(&r);
                for (int64_t i = 0; i < n; i++) in[i * size + size - 1] &= 0xb7; /* finite */
                k->widen(out, in, formats[f], n);
                for (int64_t i = 0; i < n; i++) {
                    check_close(out[i], exact_value(in + i * size, formats[f]), 0.0, "[%lld]", (long long)i);
                }
                case_end();
            }
        }
    }
}

static void test_widen_q8_0(void **state) {
    (void)state;
    rng r = rng_seeded(24);
    FOR_EACH_TIER(k) {
        for (int i = 0; i < 60; i++) {
            const weight_kind kind = (weight_kind)(i % 4);
            const int64_t cols = 32 * (1 + i / 4);
            case_begin("%s widen %lld of q8_0", k->name, (long long)cols);
            weights w = weights_random(&r, MX_Q8_0, 1, cols, kind);
            float *out = guarded_row(cols, "out");
            k->widen(out, w.matrix.data, MX_Q8_0, cols);
            for (int64_t c = 0; c < cols; c++) check_close(out[c], w.exact[c], 0.0, "[%lld]", (long long)c);
            case_end();
        }
    }
}

static void test_kv_write(void **state) {
    (void)state;
    static const mx_format formats[] = {MX_F32, MX_F16, MX_BF16};
    static const int head_dims[] = {2, 6, 32, 64, 80, 128};
    static const float special[] = {1e6f,  -1e6f, 65504.0f, 65519.0f, -65520.0f, 1e-7f,
                                    6e-8f, 2e-8f, 1e-40f,   0.0f,     -0.0f};
    rng r = rng_seeded(23);
    FOR_EACH_TIER(k) {
        for (int i = 0; i < 18 * 12; i++) {
            mx_format kv = formats[i % 3];
            int head_dim = head_dims[i / 3 % 6], slot = (int)rng_below(&r, MX_TILE), size = kv == MX_F32 ? 4 : 2;
            int64_t bytes = 2 * head_dim * MX_TILE * size;
            case_begin("%s kv_write to format %d, head_dim %d, slot %d", k->name, (int)kv, head_dim, slot);
            uint8_t *found = guarded(bytes, 64, "head tile"), *expected = guarded(bytes, 64, "expected");
            float *key = guarded_row(head_dim, "k"), *value = guarded_row(head_dim, "v");
            for (int d = 0; d < head_dim; d++) {
                key[d] = rng_below(&r, 3) ? rng_normal(&r) : special[rng_below(&r, 11)];
                value[d] = rng_below(&r, 3) ? rng_normal(&r) : special[rng_below(&r, 11)];
                float both[2] = {key[d], value[d]};
                int at[2] = {d * MX_TILE + slot, head_dim * MX_TILE + slot * head_dim + d};
                for (int j = 0; j < 2; j++) {
                    uint16_t half = kv == MX_F16 ? mx_f32_to_f16(both[j]) : mx_f32_to_bf16(both[j]);
                    memcpy(expected + at[j] * size, kv == MX_F32 ? (void *)&both[j] : (void *)&half, (size_t)size);
                }
            }
            k->kv_write(found, kv, head_dim, slot, key, value);
            assert_memory_equal(found, expected, (size_t)bytes);
            case_end();
        }
    }
}

static void test_rmsnorm(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 15, 16, 17, 31, 33, 64, 100, 2880, 4097};
    static const float amplitudes[] = {1.0f, 1e-3f, 70000.0f, 1e25f, 1e-30f};
    rng r = rng_seeded(24);
    FOR_EACH_TIER(k) {
        for (int i = 0; i < 55; i++) {
            int64_t n = sizes[i % 11];
            case_begin("%s rmsnorm of %lld around %g", k->name, (long long)n, (double)amplitudes[i / 11]);
            float *x = guarded_row(n, "x"), *gain = guarded_row(n, "gain"), *out = guarded_row(n, "out");
            double sum = 0.0;
            for (int64_t j = 0; j < n; j++) {
                x[j] = rng_normal(&r) * amplitudes[i / 11];
                gain[j] = rng_normal(&r);
                sum += (double)x[j] * x[j];
            }
            double factor = 1.0 / sqrt(sum / (double)n + 1e-5f);
            k->rmsnorm(out, x, gain, n, 1e-5f);
            for (int64_t j = 0; j < n; j++) {
                double expected = x[j] * factor * gain[j];
                check_close(out[j], expected, fabs(expected) * 3e-7 + 1e-37, "[%lld]", (long long)j);
            }
            k->rmsnorm(x, x, gain, n, 1e-5f);
            assert_memory_equal(x, out, (size_t)n * sizeof *x);
            case_end();
        }
    }
}

static void test_rope(void **state) {
    (void)state;
    static const int head_dims[] = {2, 6, 30, 32, 34, 64, 80, 128};
    rng r = rng_seeded(25);
    FOR_EACH_TIER(k) {
        for (int i = 0; i < 8; i++) {
            int head_dim = head_dims[i], half = head_dim / 2;
            int64_t heads = 1 + rng_below(&r, 9);
            case_begin("%s rope of %lld heads of %d", k->name, (long long)heads, head_dim);
            float *x = guarded_row(heads * head_dim, "x"), *before = guarded_row(heads * head_dim, "before");
            float *cos = guarded_row(half, "cos"), *sin = guarded_row(half, "sin");
            for (int64_t j = 0; j < heads * head_dim; j++) before[j] = x[j] = rng_normal(&r);
            for (int d = 0; d < half; d++) {
                cos[d] = rng_uniform(&r, -1.4f, 1.4f);
                sin[d] = rng_uniform(&r, -1.4f, 1.4f);
            }
            k->rope(x, cos, sin, heads, head_dim);
            for (int64_t j = 0; j < heads * head_dim; j++) {
                int64_t d = j % head_dim, pair = d < half ? j + half : j - half;
                double turned = (double)before[pair] * sin[d % half] * (d < half ? -1.0 : 1.0);
                double expected = (double)before[j] * cos[d % half] + turned;
                check_close(x[j], expected, 1.5e-7 * (fabs((double)before[j] * cos[d % half]) + fabs(turned)), "[%lld]",
                            (long long)j);
            }
            case_end();
        }
    }
}

/* Experts and weights of the specification, bit for bit. */
static void compare_with_scalar(const mx_kernels *k, const float *logits, int n, int count) {
    const mx_kernels *scalar;
    int32_t *expert = guarded(count * 4, 4, "expert"), expected[8];
    float *weight = guarded(count * 4, 4, "weight"), softmax[8];
    assert_int_equal(mx_kernels_get("scalar", &scalar, NULL), MX_OK);
    scalar->router_topk(logits, n, count, expected, softmax);
    k->router_topk(logits, n, count, expert, weight);
    for (int j = 0; j < count; j++) {
        if (expert[j] != expected[j])
            fail_msg("%s: expert %d is %d, scalar code chooses %d", case_name(), j, expert[j], expected[j]);
        if (memcmp(&weight[j], &softmax[j], sizeof *weight) && !(isnan(weight[j]) && isnan(softmax[j])))
            fail_msg("%s: weight %d is %a, scalar code has %a", case_name(), j, (double)weight[j], (double)softmax[j]);
    }
}

/* Every n and k; few different values, so that there are ties, zeros of both signs among them; values in order. */
static void test_router_topk_same_bits(void **state) {
    (void)state;
    rng r = rng_seeded(31);
    FOR_EACH_TIER(k) {
        for (int n = 1; n < 300; n += n < 140 ? 1 : 13) {
            for (int count = 1; count <= 8 && count <= n; count++) {
                for (int kind = 0; kind < 5; kind++) {
                    static const float few[] = {-0.0f, 0.0f, -0.0f, 1.0f, -1.0f};
                    case_begin("%s router: best %d of %d, kind %d", k->name, count, n, kind);
                    float *logits = guarded_row(n, "logits");
                    for (int j = 0; j < n; j++) {
                        if (kind == 0) logits[j] = rng_normal(&r) * 9.0f;
                        if (kind == 1) logits[j] = few[rng_below(&r, 5)];
                        if (kind == 2) logits[j] = (float)j;
                        if (kind == 3) logits[j] = (float)-j * 1e37f;
                        if (kind == 4) logits[j] = -3.0f;
                    }
                    compare_with_scalar(k, logits, n, count);
                    case_end();
                }
            }
        }
    }
}

static void test_router_topk(void **state) {
    (void)state;
    rng r = rng_seeded(26);
    FOR_EACH_TIER(k) {
        for (int i = 0; i < 2000; i++) {
            int n = 1 + (int)rng_below(&r, 140), count = 1 + (int)rng_below(&r, n < 8 ? n : 8);
            bool taken[140] = {false};
            case_begin("%s router: best %d of %d", k->name, count, n);
            float *logits = guarded_row(n, "logits"), *weight = guarded(count * 4, 4, "weight");
            int32_t *expert = guarded(count * 4, 4, "expert");
            for (int j = 0; j < n; j++) logits[j] = i % 2 ? rng_normal(&r) * 9.0f : (float)rng_below(&r, 4);
            k->router_topk(logits, n, count, expert, weight);
            double sum = 0.0;
            for (int j = 0; j < count; j++) {
                int best = -1;
                for (int e = 0; e < n; e++) {
                    if (!taken[e] && (best < 0 || logits[e] > logits[best])) best = e;
                }
                assert_int_equal(expert[j], best);
                taken[best] = true;
                sum += exp((double)logits[best] - logits[expert[0]]);
            }
            for (int j = 0; j < count; j++) {
                double difference = (double)logits[expert[j]] - logits[expert[0]];
                double expected = exp(difference) / sum;
                check_close(weight[j], expected, (2e-6 + 1.2e-7 * fabs(difference)) * expected + 1e-30, "weight %d",
                            j); /* the difference is rounded to fp32 */
            }
            case_end();
        }
    }
}

static void test_router_topk_not_finite(void **state) {
    (void)state;
    rng r = rng_seeded(27);
    FOR_EACH_TIER(k) {
        for (int i = 0; i < 3000; i++) {
            int n = 4 + (int)rng_below(&r, 130);
            bool taken[140] = {false};
            case_begin("%s router: best 4 of %d, not finite", k->name, n);
            float *logits = guarded_row(n, "logits"), *weight = guarded(4 * 4, 4, "weight");
            int32_t *expert = guarded(4 * 4, 4, "expert");
            for (int j = 0; j < n; j++) {
                static const float special[] = {NAN, INFINITY, -INFINITY, -NAN};
                logits[j] = rng_below(&r, i % 50 + 1) ? rng_normal(&r) : special[rng_below(&r, 4)];
            }
            if (i % 10 == 0) {
                for (int j = 0; j < n; j++) logits[j] = NAN;
            }
            k->router_topk(logits, n, 4, expert, weight);
            compare_with_scalar(k, logits, n, 4);
            for (int j = 0; j < 4; j++) {
                assert_in_range(expert[j], 0, n - 1);
                assert_false(taken[expert[j]]);
                taken[expert[j]] = true;
            }
            case_end();
        }
    }
}

static void test_argmax(void **state) {
    (void)state;
    rng r = rng_seeded(28);
    FOR_EACH_TIER(k) {
        for (int i = 0; i < 3000; i++) {
            int64_t n = 1 + rng_below(&r, i % 10 ? 100 : 3000), best = -1;
            case_begin("%s argmax of %lld, kind %d", k->name, (long long)n, i % 210);
            float *x = guarded_row(n, "x");
            for (int64_t j = 0; j < n; j++) {
                x[j] = i % 3 ? rng_normal(&r) : (float)rng_below(&r, 5);
                if (i % 5 == 0 && rng_below(&r, 4) == 0) x[j] = rng_below(&r, 2) ? NAN : -INFINITY;
                if (i % 7 == 0) x[j] = -INFINITY;
                if (i % 35 == 0 && rng_below(&r, 9)) x[j] = NAN;
                if (!isnan(x[j]) && (best < 0 || x[j] > x[best])) best = j;
            }
            check_close((double)k->argmax(x, n), best < 0 ? 0.0 : (double)best, 0.0, "index");
            case_end();
        }
    }
}

static void test_exp_sum(void **state) {
    (void)state;
    rng r = rng_seeded(29);
    FOR_EACH_TIER(k) {
        for (int64_t n = 1; n < 200; n += 1 + n / 20) {
            case_begin("%s exp_sum of %lld", k->name, (long long)n);
            float *x = guarded_row(n, "x"), *p = guarded_row(n, "p"), shift = 3.0f, scale = n % 2 ? 1.0f : 0.7f;
            double sum = 0.0;
            for (int64_t i = 0; i < n; i++) x[i] = shift - fabsf(rng_normal(&r)) * (i % 5 ? 4.0f : 60.0f);
            if (n > 3) x[1] = -INFINITY, x[2] = -1e30f, x[3] = shift;
            double found = k->exp_sum(p, x, n, shift, scale);
            for (int64_t i = 0; i < n; i++) {
                float argument = (x[i] - shift) * scale;
                double expected = exp((double)argument);
                check_close(p[i], expected, expected * 2.5e-7 + 1.5e-45, "exp(%g)", (double)argument);
                sum += p[i];
            }
            check_close(found, sum, sum * 1e-14, "sum");
            assert_true(k->exp_sum(x, x, n, shift, scale) == found);
            assert_memory_equal(x, p, (size_t)n * sizeof *x);
            case_end();
        }
    }
}

/* Every tier's exponential over its whole range, as exp_sum shows it. */
static void test_exp_range(void **state) {
    (void)state;
    enum { N = 4096 };
    static float x[N], p[N];
    FOR_EACH_TIER(k) {
        double worst = 0.0;
        for (int part = 0; part < 64; part++) {
            for (int i = 0; i < N; i++) x[i] = -105.0f + 105.0f * (float)(part * N + i) / (64 * N - 1);
            k->exp_sum(p, x, N, 0.0f, 1.0f);
            for (int i = 0; i < N; i++) {
                double expected = exp((double)x[i]);
                if (x[i] > -87.0f) worst = fmax(worst, fabs(p[i] - expected) / expected * 0x1p24);
                check_close(p[i], expected, expected * 0x1p-22 + 1.5e-45, "%s exp(%.9g)", k->name, (double)x[i]);
            }
        }
        print_message("%s exp: at most %.2f * 2^-24 relative error\n", k->name, worst);
    }
}

static void test_add(void **state) {
    (void)state;
    rng r = rng_seeded(30);
    FOR_EACH_TIER(k) {
        for (int64_t n = 0; n < 70; n++) {
            case_begin("%s add %lld", k->name, (long long)n);
            float *x = guarded_row(n, "x"), *y = guarded_row(n, "y"), *before = guarded_row(n, "before");
            for (int64_t i = 0; i < n; i++) x[i] = rng_normal(&r), before[i] = y[i] = rng_normal(&r);
            k->add(y, x, n);
            for (int64_t i = 0; i < n; i++) assert_true(y[i] == before[i] + x[i]);
            case_end();
        }
    }
}

static void test_choice_of_tier(void **state) {
    (void)state;
    const mx_kernels *k = NULL;
    mx_error error = {0};
    assert_int_equal(mx_kernels_get("sse9", &k, &error), MX_UNSUPPORTED);
    assert_non_null(strstr(error.text, "sse9"));
    FOR_EACH_TIER(tier) {
        if (mx_kernels_get(tier->name, &k, NULL) != MX_OK) continue; /* a tier that only tests have */
        setenv("MXRUN_CPU", tier->name, 1);
        assert_int_equal(mx_kernels_get(NULL, &k, &error), MX_OK);
        assert_ptr_equal(k, tier);
    }
    setenv("MXRUN_CPU", "pentium", 1);
    assert_int_equal(mx_kernels_get(NULL, &k, &error), MX_INVALID_ARGUMENT);
    unsetenv("MXRUN_CPU");
    const mx_kernels *best = NULL;
    FOR_EACH_TIER(tier) {
        if (mx_kernels_get(tier->name, &k, NULL) == MX_OK) best = k;
    }
    assert_int_equal(mx_kernels_get(NULL, &k, &error), MX_OK);
    if (!settings.tier) assert_ptr_equal(k, best);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_half_conversions),
    cmocka_unit_test(test_mxfp4_widen),
    cmocka_unit_test(test_widen),
    cmocka_unit_test(test_widen_q8_0),
    cmocka_unit_test(test_kv_write),
    cmocka_unit_test(test_rmsnorm),
    cmocka_unit_test(test_rope),
    cmocka_unit_test(test_router_topk),
    cmocka_unit_test(test_router_topk_same_bits),
    cmocka_unit_test(test_router_topk_not_finite),
    cmocka_unit_test(test_argmax),
    cmocka_unit_test(test_exp_sum),
    cmocka_unit_test(test_exp_range),
    cmocka_unit_test(test_add),
    cmocka_unit_test(test_choice_of_tier),
};

const test_group elementwise_group = {"elementwise", tests, sizeof tests / sizeof *tests, setup};
