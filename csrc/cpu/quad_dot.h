// The one instruction that int8 needs and that vector extensions lack: four products of bytes added to each 32-bit sum.
// For files compiled per instruction set; everything else about quads is written once, in quad_kernels.cpp.
#pragma once

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include "lane_vector.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
namespace {

typedef uint8_t bytes __attribute__((vector_size(VECTOR_BYTES), may_alias));

// RATE: multiply-adds of bytes in the time of one in float32; 0: there is no instruction for them.
// MAX_PAIR: what the weights of one sign in either half of a quad may add up to.
// sum[l] + Σ over the four bytes b of lane l: (x's byte, unsigned, less X_SHIFT) · (w's byte, signed), exact in int32.
#if defined(__AVX512VNNI__) && VECTOR_BYTES == 64
constexpr const char* DOT = "vpdpbusd of AVX-512";
constexpr int64_t RATE = 4;
constexpr int64_t X_SHIFT = 0;
constexpr int64_t MAX_PAIR = 254;
ALWAYS_INLINE ivec ready(ivec x) { return x; }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) {
  return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}
#elif defined(__AVXVNNI__) && VECTOR_BYTES == 32
constexpr const char* DOT = "vpdpbusd of AVX-VNNI";
constexpr int64_t RATE = 4;
constexpr int64_t X_SHIFT = 0;
constexpr int64_t MAX_PAIR = 254;
ALWAYS_INLINE ivec ready(ivec x) { return x; }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) {
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
}
#elif defined(__ARM_FEATURE_DOTPROD) && VECTOR_BYTES == 16
// sdot takes signed bytes on both sides.
constexpr const char* DOT = "sdot";
constexpr int64_t RATE = 4;
constexpr int64_t X_SHIFT = 128;
constexpr int64_t MAX_PAIR = 254;
ALWAYS_INLINE ivec ready(ivec x) { return x ^ static_cast<int32_t>(0x80808080); }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) { return (ivec)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)w); }
#elif defined(__AVX2__) && VECTOR_BYTES == 32
// Two products are added in 16 bits, with saturation: 255 · 128 < 2^15 is exact, so that the few quads with larger pairs
// are taken as two (prunekit/engine/quantization.py). Then those sums of two are added in 32 bits.
constexpr const char* DOT = "vpmaddubsw";
constexpr int64_t RATE = 2;
constexpr int64_t X_SHIFT = 0;
constexpr int64_t MAX_PAIR = 128;
ALWAYS_INLINE ivec ready(ivec x) { return x; }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)x, (__m256i)w);
  return sum + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
constexpr const char* DOT = "none";
constexpr int64_t RATE = 0;
constexpr int64_t X_SHIFT = 0;
constexpr int64_t MAX_PAIR = 254;
ALWAYS_INLINE ivec ready(ivec x) { return x; }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) {
  for (const int bits : {0, 8, 16, 24}) {
    sum += (x >> bits & 255) * (w << (24 - bits) >> 24);
  }
  return sum;
}
#endif

}  // namespace
}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
