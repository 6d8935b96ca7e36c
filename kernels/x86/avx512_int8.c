/* Precision MX_X_INT8 without VNNI: byte products add up in 16 bits over half a block (at most 8 * 24 * 127), then in
 * 32. */
#include <string.h>

#include "base/bytes.h"
#include "kernels/int8.h"
#include "kernels/mxfp4.h"
#include "kernels/x86/avx512.h"
#include "kernels/x86/avx512_epilogue.h"

#define INT8_TILE            4
#define INT8_START(dot)      _mm512_setzero_si512()
#define INT8_STEP(sum, w, x) _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x))
#define INT8_END(dot, sum)   _mm512_add_epi32(dot, _mm512_madd_epi16(sum, _mm512_set1_epi16(1)))
#include "kernels/x86/avx512_int8.h"

const mx_product mx_avx512_int8 = {mx_int8_packed_bytes, mx_avx2_pack_int8, matmul_mxfp4, false};
const mx_product mx_avx512_int8_ggml = {mx_int8_packed_bytes, mx_avx2_pack_int8_ggml, matmul_mxfp4_ggml, false};
