#include "kernels/x86/avx512bf16.h"

/* 0.5, 1, 1.5, 2, 3, 4, 6 times 2^(s - 127): exponent in bits 7 ... 14, the first bit of the fraction in bit 6. */
#define BITS(exponent, fraction) ((exponent)*0x80 & 0x7f80) + (fraction)
#define SIGNED(s, sign)                                                                                                \
    (sign), (sign) + BITS((s)-1, 0), (sign) + BITS(s, 0), (sign) + BITS(s, 0x40), (sign) + BITS((s) + 1, 0),           \
        (sign) + BITS((s) + 1, 0x40), (sign) + BITS((s) + 2, 0), (sign) + BITS((s) + 2, 0x40)
#define VALUES(s)                                                                                                      \
    { SIGNED(s, 0), SIGNED(s, 0x8000), SIGNED(s, 0), SIGNED(s, 0x8000) }
#define FOUR(s)    VALUES(s), VALUES((s) + 1), VALUES((s) + 2), VALUES((s) + 3)
#define SIXTEEN(s) FOUR(s), FOUR((s) + 4), FOUR((s) + 8), FOUR((s) + 12)
#define ALL(s)     SIXTEEN(s), SIXTEEN((s) + 16), SIXTEEN((s) + 32), SIXTEEN((s) + 48)

const uint16_t mx_e2m1_bf16[256][32] __attribute__((aligned(64))) = {ALL(0), ALL(64), ALL(128), ALL(192)};
