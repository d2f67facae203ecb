// The wrappers of csrc/cuda/tensor_core.cuh on the emulator: each lane brings its registers, the warp multiplies.
#pragma once

#include "simt_device.h"

namespace prunekit::device {

template <bool IS_BFLOAT16>
constexpr bool HAS_TENSOR_CORES = PRUNEKIT_EMULATED >= 800 || !IS_BFLOAT16;

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <bool IS_BFLOAT16>
float widen(uint16_t bits) {
  if (IS_BFLOAT16) {
    return float_of(uint32_t{bits} << 16);
  }
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) {
    return float_of(sign | 0x7f800000 | fraction << 13);
  }
  const float magnitude = exponent ? std::ldexp(1.0f + fraction / 1024.0f, static_cast<int>(exponent) - 15)
                                   : std::ldexp(fraction / 1024.0f, -14);
  return sign ? -magnitude : magnitude;
}

// To the nearest, ties to even.
template <bool IS_BFLOAT16>
uint16_t narrow(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) {
    return 0x7fff;
  }
  if (IS_BFLOAT16) {
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  const uint16_t sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) {
    return sign | 0x7c00;
  }
  const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -14, -14);
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
}

using SharedAddress = const unsigned char*;

inline SharedAddress shared_address(const void* of) { return static_cast<SharedAddress>(of); }

inline void load_matrices_transposed(uint32_t (&to)[4], SharedAddress row) {
  struct Part {
    uint16_t row[8];
    uint32_t to[4];
  } part;
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    simt::stop("a misaligned row of a matrix");
  }
  std::memcpy(part.row, row, sizeof(part.row));
  simt::meet<Part>("load_matrices_transposed", part, [](Part* const* parts) {
    for (unsigned lane = 0; lane < simt::WARP; ++lane) {
      for (unsigned m = 0; m < 4; ++m) {
        const unsigned first = 8 * m + 2 * (lane % 4), column = lane / 4;
        parts[lane]->to[m] = parts[first]->row[column] | uint32_t{parts[first + 1]->row[column]} << 16;
      }
    }
  });
  std::memcpy(to, part.to, sizeof(part.to));
}

struct Multiplication {
  uint32_t a[4], b[2];
  float sum[4];
};

// One mma with an inner dimension of K, of the registers from `first` / 8 on, by the layouts in PTX's manual.
template <bool IS_BFLOAT16, unsigned K>
void multiply_warp(Multiplication* const* parts, unsigned first) {
  const auto half = [](uint32_t word, unsigned high) { return widen<IS_BFLOAT16>(word >> 16 * high & 0xffff); };
  float a[16][K], b[K][8];
  for (unsigned lane = 0; lane < simt::WARP; ++lane) {
    const unsigned group = lane / 4, thread = lane % 4;
    for (unsigned i = 0; i < K / 4; ++i) {  // registers of a: rows first, then columns
      for (unsigned high = 0; high < 2; ++high) {
        a[group + 8 * (i % 2)][2 * thread + high + 8 * (i / 2)] = half(parts[lane]->a[i + first / 4], high);
      }
    }
    for (unsigned i = 0; i < K / 8; ++i) {
      for (unsigned high = 0; high < 2; ++high) {
        b[2 * thread + high + 8 * i][group] = half(parts[lane]->b[i + first / 8], high);
      }
    }
  }
  for (unsigned lane = 0; lane < simt::WARP; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned k = 0; k < K; ++k) {
        parts[lane]->sum[i] += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
      }
    }
  }
}

// Architecture 8.0 has mma.m16n8k16, 7.5 makes two mma.m16n8k8 of it.
template <bool IS_BFLOAT16>
void multiply_add(float (&sum)[4], const int4& a, uint32_t b0, uint32_t b1) {
  Multiplication part{{uint32_t(a.x), uint32_t(a.y), uint32_t(a.z), uint32_t(a.w)}, {b0, b1}, {}};
  std::copy(sum, sum + 4, part.sum);
  simt::meet<Multiplication>("multiply_add", part, [](Multiplication* const* parts) {
    if (PRUNEKIT_EMULATED >= 800) {
      multiply_warp<IS_BFLOAT16, 16>(parts, 0);
    } else {
      multiply_warp<IS_BFLOAT16, 8>(parts, 0);
      multiply_warp<IS_BFLOAT16, 8>(parts, 8);
    }
  });
  std::copy(part.sum, part.sum + 4, sum);
}

constexpr bool HAS_SPARSE_TENSOR_CORES = PRUNEKIT_EMULATED >= 800;

struct SparseMultiplication {
  uint32_t a[4], b[4], metadata;
  float sum[4];
};

// mma.sp.m16n8k32 with ordered metadata, by the layouts in PTX's manual: registers of a as in mma.m16n8k16, but that its
// columns are those stored, two of each four in a row. Of four lanes, those that the selector names hold the columns in
// the fours: 4 bits each, the first lane's those of columns 0 to 15, the second's the rest; the low half of a word is
// of the upper eight rows.
template <bool IS_BFLOAT16, int SELECTOR>
void multiply_sparse_warp(SparseMultiplication* const* parts) {
  const auto half = [](uint32_t word, unsigned high) { return widen<IS_BFLOAT16>(word >> 16 * high & 0xffff); };
  float a[16][32] = {}, b[32][8];
  bool is_stored[16][32] = {};
  for (unsigned lane = 0; lane < simt::WARP; ++lane) {
    const unsigned group = lane / 4, thread = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = group + 8 * (i % 2), four = thread + 4 * (i / 2);
      const uint32_t word = parts[4 * group + 2 * SELECTOR + four / 4]->metadata >> 16 * (i % 2) >> four % 4 * 4;
      const unsigned first = word & 3, second = word >> 2 & 3;
      if (first >= second) {
        simt::stop("metadata that is not in ascending order");
      }
      a[row][4 * four + first] = half(parts[lane]->a[i], 0);
      a[row][4 * four + second] = half(parts[lane]->a[i], 1);
      is_stored[row][4 * four + first] = is_stored[row][4 * four + second] = true;
      for (unsigned high = 0; high < 2; ++high) {
        b[2 * thread + high + 8 * i][group] = half(parts[lane]->b[i], high);
      }
    }
  }
  for (unsigned lane = 0; lane < simt::WARP; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i / 2);
      for (unsigned k = 0; k < 32; ++k) {
        if (is_stored[row][k]) {  // what is not stored multiplies nothing, also not inf and nan
          parts[lane]->sum[i] += a[row][k] * b[k][2 * (lane % 4) + i % 2];
        }
      }
    }
  }
}

template <bool IS_BFLOAT16, int SELECTOR>
void multiply_add_sparse(float (&sum)[4], const int4& a, const uint32_t (&b)[4], uint32_t metadata) {
  SparseMultiplication part{
      {uint32_t(a.x), uint32_t(a.y), uint32_t(a.z), uint32_t(a.w)}, {b[0], b[1], b[2], b[3]}, metadata, {}};
  std::copy(sum, sum + 4, part.sum);
  static const char* const MEETINGS[] = {"multiply_add_sparse 0", "multiply_add_sparse 1"};
  simt::meet<SparseMultiplication>(MEETINGS[SELECTOR], part, multiply_sparse_warp<IS_BFLOAT16, SELECTOR>);
  std::copy(part.sum, part.sum + 4, sum);
}

}  // namespace prunekit::device
