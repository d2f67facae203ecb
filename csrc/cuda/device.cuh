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

// One place of a tile, as it is copied channel by channel. A single one is there; of more, some may not be.
struct Column {
  float* to;
  const float* from;
  bool is_there;
};

// Copy COUNT floats of each column, as copy_async<4> does, and move on by as many; before sm_80 all loads are under way
// before the first store.
template <int COUNT, int COLUMNS>
__device__ __forceinline__ void copy_columns_async(Column (&columns)[COLUMNS], int to_stride, int64_t from_stride) {
  float value[COLUMNS][COUNT] = {};
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    float* to = columns[c].to;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (COLUMNS == 1 || columns[c].is_there) {
        if constexpr (HAS_ASYNC_COPY) {
          copy_async<4>(to, columns[c].from, true);
        } else {
          value[c][i] = __ldg(columns[c].from);
        }
      }
      columns[c].from += from_stride, to += to_stride;
    }
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (!HAS_ASYNC_COPY && (COLUMNS == 1 || columns[c].is_there)) {
        *columns[c].to = value[c][i];
      }
      columns[c].to += to_stride;
    }
  }
}

// A copy of pairs of records, `stride` records apart and at most MOST of them, as long as they begin before `end`: it is
// under way from `begin` on, and before sm_80 it is stored by `finish`, so that other copies can begin in between.
template <int MOST>
struct StridedCopy {
  int4 value[HAS_ASYNC_COPY ? 1 : MOST];

  __device__ __forceinline__ void begin(int2* to, const int32_t* from, int stride, int end) {
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
      if constexpr (HAS_ASYNC_COPY) {
        if (i * stride < end) {
          copy_async<16>(to + i * stride, from + 2 * i * stride, true);
        }
      } else {
        const bool is_there = i * stride < end;
        value[i] = is_there ? __ldg(reinterpret_cast<const int4*>(from + 2 * i * stride)) : make_int4(0, 0, 0, 0);
      }
    }
  }

  __device__ __forceinline__ void finish(int2* to, int stride, int end) {
    if constexpr (!HAS_ASYNC_COPY) {
#pragma unroll
      for (int i = 0; i < MOST; ++i) {
        if (i * stride < end) {
          *reinterpret_cast<int4*>(to + i * stride) = value[i];
        }
      }
    }
  }
};

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

// Store to global memory by a pointer that may have been anywhere, as one read back from shared memory.
__device__ __forceinline__ void store_global(float* to, float value) {
  asm volatile("st.global.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
}

// The same number, of which the compiler knows nothing: what follows from it is computed where it is needed rather than
// kept in a register across all that comes before.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace prunekit::device
#endif
