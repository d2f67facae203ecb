// What the 32 lanes of a warp do together: loads of matrices, and products of them. The manual's fragment layouts.
#pragma once

#include <array>

#include "memory.h"

namespace ptx {

constexpr int LANES = 32;
using Lanes = std::array<uint64_t*, LANES>;  // the slots of each

inline uint64_t half_of(uint64_t word, int which) { return word >> 16 * which & 0xffff; }

// ldmatrix.x4.trans: lane 8·m + r has the address of row r of matrix m; lane l gets elements (2·(l % 4), l / 4) and below.
inline void load_matrices(const Instruction& i, const Lanes& lanes, SharedMemory& shared, int first_thread) {
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < LANES; ++lane) {
    const uint8_t* row = shared.read(lanes[lane][i.sources[0]] + i.offset, 16, first_thread + lane);
    std::memcpy(matrices[lane / 8][lane % 8], row, 16);
  }
  for (int lane = 0; lane < LANES; ++lane) {
    for (int m = 0; m < 4; ++m) {
      const auto& matrix = matrices[m];
      const int row = 2 * (lane % 4), column = lane / 4;
      lanes[lane][i.results[m]] = matrix[row][column] | uint64_t{matrix[row + 1][column]} << 16;
    }
  }
}

// D = A · B + C of 16 × depth, depth × 8 and 16 × 8.
class Product {
 public:
  static void run(const Instruction& i, const Lanes& lanes) {
    Product product(i, lanes);
    product.read_b();
    i.kind == Kind::MULTIPLY ? product.read_a() : product.read_sparse_a();
    product.multiply();
  }

 private:
  const Instruction& i_;
  const Lanes& lanes_;
  const int words_a_, words_b_;
  double a_[16][32] = {}, b_[32][8] = {};
  bool is_kept_[16][32] = {};  // a place that mma.sp leaves out is not multiplied: 0 · inf would be nan

  Product(const Instruction& i, const Lanes& lanes)
      : i_(i), lanes_(lanes), words_a_(i.kind == Kind::MULTIPLY ? i.depth / 4 : 4), words_b_(i.depth / 8) {}

  double number(int lane, int source, int which) const {
    const uint64_t bits = half_of(lanes_[lane][i_.sources[source]], which);
    return i_.is_bfloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
  }

  // Word w of a lane has rows 8·w + 2·(lane % 4) and the next of column lane / 4.
  void read_b() {
    for (int lane = 0; lane < LANES; ++lane) {
      for (int at = 0; at < 2 * words_b_; ++at) {
        b_[8 * (at / 2) + 2 * (lane % 4) + at % 2][lane / 4] = number(lane, words_a_ + at / 2, at % 2);
      }
    }
  }

  // Words are of rows lane / 4 and 8 below in turn, then of 8 columns further.
  void read_a() {
    for (int lane = 0; lane < LANES; ++lane) {
      for (int at = 0; at < 2 * words_a_; ++at) {
        const int row = lane / 4 + 8 * (at / 2 % 2), column = 8 * (at / 4) + 2 * (lane % 4) + at % 2;
        a_[row][column] = number(lane, at / 2, at % 2);
        is_kept_[row][column] = true;
      }
    }
  }

  // A word holds two of four columns; which, say 4 bits for each four in the metadata of one of two pairs of lanes, that
  // the selector names: row lane / 4 in its low half, 8 below in its high half.
  void read_sparse_a() {
    for (int lane = 0; lane < LANES; ++lane) {
      for (int word = 0; word < 4; ++word) {
        const int row = lane / 4 + 8 * (word % 2), holder = lane / 4 * 4 + 2 * i_.selector + word / 2;
        const uint64_t metadata = half_of(lanes_[holder][i_.sources.back()], word % 2) >> 4 * (lane % 4);
        const int first = metadata & 3, second = metadata >> 2 & 3;
        if (first >= second) {
          throw Error("metadata of mma.sp out of order");
        }
        for (int which = 0; which < 2; ++which) {
          const int column = 16 * (word / 2) + 4 * (lane % 4) + (which ? second : first);
          a_[row][column] = number(lane, word, which);
          is_kept_[row][column] = true;
        }
      }
    }
  }

  void multiply() {
    float sums[LANES][4];
    for (int lane = 0; lane < LANES; ++lane) {
      for (int at = 0; at < 4; ++at) {
        const int row = lane / 4 + 8 * (at / 2), column = 2 * (lane % 4) + at % 2;
        double sum = as_float(lanes_[lane][i_.sources[words_a_ + words_b_ + at]]);
        for (int k = 0; k < i_.depth; ++k) {
          sum += is_kept_[row][k] ? a_[row][k] * b_[k][column] : 0.0;
        }
        sums[lane][at] = static_cast<float>(sum);
      }
    }
    for (int lane = 0; lane < LANES; ++lane) {
      for (int at = 0; at < 4; ++at) {
        lanes_[lane][i_.results[at]] = as_bits(sums[lane][at]);
      }
    }
  }
};

}  // namespace ptx
