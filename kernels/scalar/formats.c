#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/scalar/scalar.h"

static float float_of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint32_t bits_of_float(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

float mx_bf16_to_f32(uint16_t v) {
    return float_of_bits((uint32_t)v << 16);
}

uint16_t mx_f32_to_bf16(float v) {
    uint32_t bits = bits_of_float(v);
    if (isnan(v)) return (uint16_t)(bits >> 16 | 0x40); /* the quiet bit keeps a payload in the low half a NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float mx_f16_to_f32(uint16_t v) {
    uint32_t sign = (uint32_t)(v & 0x8000) << 16, exponent = v >> 10 & 31, mantissa = v & 0x3ff;
    if (exponent == 0) { /* zero and subnormals: multiples of 2^-24 */
        float magnitude = (float)mantissa * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | mantissa << 13);
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t mx_f32_to_f16(float v) {
    uint32_t bits = bits_of_float(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477fe000) return (uint16_t)(sign | 0x7bff); /* 65504 and beyond */
    if (magnitude < 0x38800000) { /* below 2^-14; floats in [0.5, 1) are 2^-24 apart, so the sum rounds as F16 does */
        float shifted = float_of_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (bits_of_float(shifted) - 0x3f000000));
    }
    return (uint16_t)(sign | (((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112 << 10)));
}

void mx_mxfp4_widen(float out[32], const uint8_t block[16], uint8_t scale) {
    static const float e2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    float factor = float_of_bits(scale ? (uint32_t)scale << 23 : 0x00400000); /* 2^(scale - 127) */
    for (int i = 0; i < 16; i++) {
        out[2 * i] = e2m1[block[i] & 15] * factor;
        out[2 * i + 1] = e2m1[block[i] >> 4] * factor;
    }
}

void mx_q8_0_widen(float out[32], const uint8_t block[MX_Q8_0_BYTES]) {
    const float scale = mx_f16_to_f32(mx_load_u16(block));
    for (int i = 0; i < 32; i++) out[i] = scale * (float)(int8_t)block[2 + i];
}

void mx_scalar_widen(float *out, const uint8_t *in, mx_format format, int64_t n) {
    if (format == MX_F32) {
        memcpy(out, in, (size_t)n * sizeof *out);
    } else if (format == MX_BF16) {
        for (int64_t i = 0; i < n; i++) out[i] = mx_bf16_to_f32(mx_load_u16(in + 2 * i));
    } else if (format == MX_Q8_0) {
        for (int64_t b = 0; b < n / 32; b++) mx_q8_0_widen(out + 32 * b, in + MX_Q8_0_BYTES * b);
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = mx_f16_to_f32(mx_load_u16(in + 2 * i));
    }
}

void mx_scalar_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v) {
    int64_t first_v = (int64_t)head_dim * MX_TILE; /* in elements */
    for (int64_t d = 0; d < head_dim; d++) {
        int64_t at_k = d * MX_TILE + slot, at_v = first_v + (int64_t)slot * head_dim + d;
        if (kv == MX_F32) {
            memcpy(head_tile + 4 * at_k, &k[d], 4);
            memcpy(head_tile + 4 * at_v, &v[d], 4);
        } else {
            uint16_t k16 = kv == MX_BF16 ? mx_f32_to_bf16(k[d]) : mx_f32_to_f16(k[d]);
            uint16_t v16 = kv == MX_BF16 ? mx_f32_to_bf16(v[d]) : mx_f32_to_f16(v[d]);
            memcpy(head_tile + 2 * at_k, &k16, 2);
            memcpy(head_tile + 2 * at_v, &v16, 2);
        }
    }
}
