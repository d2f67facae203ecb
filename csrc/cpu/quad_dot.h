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
// sum[l] + Σ over the four bytes b of lane l: (x's byte, unsigned, less X_SHIFT) · (w's byte, signed), exact in int32.
#if defined(__AVX512VNNI__) && VECTOR_BYTES == 64
constexpr const char* DOT = "vpdpbusd of AVX-512";
constexpr int64_t RATE = 4;
constexpr int64_t X_SHIFT = 0;
ALWAYS_INLINE ivec ready(ivec x) { return x; }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) {
  return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}
#elif defined(__AVXVNNI__) && VECTOR_BYTES == 32
constexpr const char* DOT = "vpdpbusd of AVX-VNNI";
constexpr int64_t RATE = 4;
constexpr int64_t X_SHIFT = 0;
ALWAYS_INLINE ivec ready(ivec x) { return x; }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) {
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
}
#elif defined(__ARM_FEATURE_DOTPROD) && VECTOR_BYTES == 16
// sdot takes signed bytes on both sides.
constexpr const char* DOT = "sdot";
constexpr int64_t RATE = 4;
constexpr int64_t X_SHIFT = 128;
ALWAYS_INLINE ivec ready(ivec x) { return x ^ static_cast<int32_t>(0x80808080); }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) { return (ivec)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)w); }
#elif defined(__AVX2__) && VECTOR_BYTES == 32
// Even and odd bytes widened to 16 bits: vpmaddubsw would saturate. It does no more work than a float32 multiply-add.
constexpr const char* DOT = "vpmaddwd";
constexpr int64_t RATE = 1;
constexpr int64_t X_SHIFT = 0;
ALWAYS_INLINE ivec ready(ivec x) { return x; }
ALWAYS_INLINE ivec dot(ivec sum, ivec x, ivec w) {
  const __m256i pixels = (__m256i)x, weights = (__m256i)w;
  const __m256i even = _mm256_and_si256(pixels, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(pixels, 8);
  const __m256i even_weights = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8);
  const __m256i odd_weights = _mm256_srai_epi16(weights, 8);
  return sum + (ivec)_mm256_madd_epi16(even, even_weights) + (ivec)_mm256_madd_epi16(odd, odd_weights);
}
#else
constexpr const char* DOT = "none";
constexpr int64_t RATE = 0;
constexpr int64_t X_SHIFT = 0;
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
