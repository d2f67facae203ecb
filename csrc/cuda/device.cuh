// What the kernels need from a GPU, in wrappers that another compiler can replace: the tests run the very same kernels
// on a processor by defining PRUNEKIT_EMULATED and providing "simt_device.h".
#pragma once

#include <cstdint>

#ifdef PRUNEKIT_EMULATED
#include "simt_device.h"
#else
#include <cuda_runtime.h>

#define PRUNEKIT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace prunekit::device {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool HAS_ASYNC_COPY = true;
#else
constexpr bool HAS_ASYNC_COPY = false;
#endif

// Copy BYTES (4, 8 or 16) from global to shared memory, or write zeros; it has happened after wait_for_copies and a
// barrier. Before sm_80 it is a load and a store.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_inside) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
  if constexpr (HAS_ASYNC_COPY) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int taken = is_inside ? BYTES : 0;
    if constexpr (BYTES == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(taken) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(BYTES), "r"(taken)
                   : "memory");
    }
  } else if constexpr (BYTES == 4) {
    *static_cast<float*>(to) = is_inside ? __ldg(static_cast<const float*>(from)) : 0.0f;
  } else if constexpr (BYTES == 8) {
    *static_cast<int2*>(to) = is_inside ? __ldg(static_cast<const int2*>(from)) : make_int2(0, 0);
  } else {
    *static_cast<int4*>(to) = is_inside ? __ldg(static_cast<const int4*>(from)) : make_int4(0, 0, 0, 0);
  }
}

// Copy `count` floats, of MOST at the most, as copy_async<4> does; before sm_80 all loads are under way before the first
// store.
template <int MOST>
__device__ __forceinline__ void copy_column_async(
    float* to, int to_stride, const float* from, int64_t from_stride, int count, bool is_inside) {
  if constexpr (HAS_ASYNC_COPY) {
    for (int i = 0; i < count; ++i) {
      copy_async<4>(to + i * to_stride, from + i * from_stride, is_inside);
    }
  } else {
    float value[MOST];
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      value[i] = is_inside && i < count ? __ldg(from + i * from_stride) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      if (i < count) {
        to[i * to_stride] = value[i];
      }
    }
  }
}

// Copy pairs of records, `stride` records apart and at most MOST of them, as long as they begin before `end`; before
// sm_80 all loads are under way before the first store.
template <int MOST>
__device__ __forceinline__ void copy_strided_async(int2* to, const int32_t* from, int stride, int end) {
  if constexpr (HAS_ASYNC_COPY) {
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      if (i * stride < end) {
        copy_async<16>(to + i * stride, from + 2 * i * stride, true);
      }
    }
  } else {
    int4 value[MOST];
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      value[i] = i * stride < end ? __ldg(reinterpret_cast<const int4*>(from + 2 * i * stride)) : make_int4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      if (i * stride < end) {
        *reinterpret_cast<int4*>(to + i * stride) = value[i];
      }
    }
  }
}

__device__ __forceinline__ void commit_copies() {
  if constexpr (HAS_ASYNC_COPY) {
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
}

// Wait until at most NEWER of this thread's committed groups are under way.
template <int NEWER>
__device__ __forceinline__ void wait_for_copies() {
  if constexpr (HAS_ASYNC_COPY) {
    asm volatile("cp.async.wait_group %0;" ::"n"(NEWER) : "memory");
  }
}

// The same number, of which the compiler knows nothing: what follows from it is computed where it is needed rather than
// kept in a register across all that comes before.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace prunekit::device
#endif
