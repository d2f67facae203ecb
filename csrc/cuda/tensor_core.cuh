// 16-bit numbers and the instructions that multiply matrices of them, in wrappers that another compiler can replace.
#pragma once

#include "device.cuh"

#ifdef PRUNEKIT_EMULATED
#include "simt_tensor_core.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace prunekit::device {

// mma on float16 came with 7.5, on bfloat16 with 8.0.
template <bool IS_BFLOAT16>
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool HAS_TENSOR_CORES = true;
#else
constexpr bool HAS_TENSOR_CORES = !IS_BFLOAT16;
#endif

// mma.sp came with 8.0.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool HAS_SPARSE_TENSOR_CORES = true;
#else
constexpr bool HAS_SPARSE_TENSOR_CORES = false;
#endif

template <bool IS_BFLOAT16>
__device__ __forceinline__ float widen(uint16_t bits) {
  if constexpr (IS_BFLOAT16) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  } else {
    return __half2float(__ushort_as_half(bits));
  }
}

template <bool IS_BFLOAT16>
__device__ __forceinline__ uint16_t narrow(float value) {
  if constexpr (IS_BFLOAT16) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  } else {
    return __half_as_ushort(__float2half_rn(value));
  }
}

using SharedAddress = unsigned;

__device__ __forceinline__ SharedAddress shared_address(const void* of) {
  return static_cast<unsigned>(__cvta_generic_to_shared(of));
}

// Four 8 × 8 matrices of 16-bit numbers, each turned over: lane l names row l % 8 of matrix l / 8, and gets in to[m]
// rows 2 · (l % 4) and the next of matrix m, in column l / 4.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// sum [16, 8] += a [16, 16] · b [16, 8] in float32. a and b are of the layout of mma.m16n8k16, whose halves along the
// inner dimension are those of two mma.m16n8k8: all that 7.5 has.
template <bool IS_BFLOAT16>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const int4& a, uint32_t b0, uint32_t b1) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (IS_BFLOAT16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
#else
  if constexpr (!IS_BFLOAT16) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n\t"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%7, %8}, {%9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(b0), "r"(a.z), "r"(a.w), "r"(b1));
  }
#endif
}

// ptxas advises metadata in ascending order, which PTX 8.5 can promise.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define PRUNEKIT_MMA_SP "mma.sp::ordered_metadata"
#else
#define PRUNEKIT_MMA_SP "mma.sp"
#endif

// sum [16, 8] += a [16, 32] · b [32, 8] in float32, where a's rows hold two of every four columns. `metadata` names them:
// of four lanes in a row, those of the first two (SELECTOR 0) or the last two (SELECTOR 1) count.
template <bool IS_BFLOAT16, int SELECTOR>
__device__ __forceinline__ void multiply_add_sparse(
    float (&sum)[4], const int4& a, const uint32_t (&b)[4], uint32_t metadata) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (IS_BFLOAT16) {
    asm(PRUNEKIT_MMA_SP
        ".sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
          "n"(SELECTOR));
  } else {
    asm(PRUNEKIT_MMA_SP
        ".sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
          "n"(SELECTOR));
  }
#endif
}

}  // namespace prunekit::device
#endif
