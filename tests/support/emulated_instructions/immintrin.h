// vpdpbusd as Intel's manual has it, for processors that lack it: this header stands where the compiler's own would.
#pragma once

#include <cstdint>

typedef int32_t __m512i __attribute__((vector_size(64), may_alias));
typedef int32_t __m256i __attribute__((vector_size(32), may_alias));

// DWORD.l += sum over the four bytes of l: ZeroExtend(a.byte) * SignExtend(b.byte), without saturation.
template <typename V>
inline V vpdpbusd(V sums, V a, V b) {
  constexpr int LANES = sizeof(V) / sizeof(int32_t);
  for (int l = 0; l < LANES; ++l) {
    uint32_t x = static_cast<uint32_t>(a[l]), w = static_cast<uint32_t>(b[l]);
    int32_t sum = 0;
    for (int byte = 0; byte < 4; ++byte, x >>= 8, w >>= 8) {
      sum += static_cast<int32_t>(x & 255) * static_cast<int8_t>(w & 255);
    }
    sums[l] += sum;
  }
  return sums;
}

inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) { return vpdpbusd(sums, a, b); }
inline __m256i _mm256_dpbusd_avx_epi32(__m256i sums, __m256i a, __m256i b) { return vpdpbusd(sums, a, b); }
