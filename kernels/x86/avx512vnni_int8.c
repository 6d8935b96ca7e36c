/* Precision MX_X_INT8 with VNNI: one instruction multiplies and adds four bytes a lane. */
#include <string.h>

#include "base/bytes.h"
#include "kernels/int8.h"
#include "kernels/mxfp4.h"
#include "kernels/x86/avx512.h"
#include "kernels/x86/avx512_epilogue.h"

#define INT8_TILE            6
#define INT8_START(dot)      (dot)
#define INT8_STEP(sum, w, x) _mm512_dpbusd_epi32(sum, w, x)
#define INT8_END(dot, sum)   (sum)
#include "kernels/x86/avx512_int8.h"

const mx_product mx_avx512vnni_int8 = {mx_int8_packed_bytes, mx_avx2_pack_int8, matmul_mxfp4, false};
const mx_product mx_avx512vnni_int8_ggml = {mx_int8_packed_bytes, mx_avx2_pack_int8_ggml, matmul_mxfp4_ggml, false};
