// Vectors of the instruction set that PRUNEKIT_ISA names; for files compiled per set.
#pragma once

#include <cstdint>

#include "vector_width.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
namespace {

constexpr int LANES = VECTOR_BYTES / 4;

typedef float vec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef int32_t ivec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float unaligned_vec __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(4)));

ALWAYS_INLINE vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
ALWAYS_INLINE void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
ALWAYS_INLINE vec load_unaligned(const float* p) { return *reinterpret_cast<const unaligned_vec*>(p); }
ALWAYS_INLINE void store_unaligned(float* p, vec v) { *reinterpret_cast<unaligned_vec*>(p) = v; }

// Past the caches: what does not fit there anyway would be read before it is overwritten. A fence must follow.
ALWAYS_INLINE void stream(float* p, vec v) {
#if defined(__AVX512F__) && !defined(__clang__)
  __builtin_ia32_movntps512(p, v);
#elif defined(__AVX__) && !defined(__clang__)
  __builtin_ia32_movntps256(p, v);
#else
  store(p, v);
#endif
}

// result[l] = index[l] < LANES ? a[index[l]] : b[index[l] - LANES]
ALWAYS_INLINE vec shuffle(vec a, vec b, ivec index) {
#if defined(__clang__)
  vec result;
  for (int l = 0; l < LANES; ++l) {
    result[l] = index[l] < LANES ? a[index[l]] : b[index[l] - LANES];
  }
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

}  // namespace
}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
