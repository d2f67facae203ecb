// The bitmap filter: a fragment filter (condensed/filter.h) whose steps hold nothing but the kept weights and a bitmap
// (prunekit/ops/cuda/bitmap/filter.py packs it).
//
// Runs, steps and rows are those of a fragment filter: 16 output channels × 16 of the taps that any of them keeps.
//   `starts`   int32 [runs + 1][2]: each run's first step, and its first values in BITMAP_ALIGNMENTs; runs are
//              [groups][row groups][chunks]
//   `records`  int32 [steps][BITMAP_RECORD_WORDS], one step each:
//                8 words of bitmap: bit 8 · (lane % 4) + j of word lane / 4 says whether the lane keeps its j-th weight, in
//                the order in which mma.m16n8k16 takes its first operand: j = 2 · register + half of the register;
//                16 halfwords, one a column: (channel in chunk · kernel width + tap column) << 4 | tap row;
//                8 halfwords, one a word of bitmap: how many of the run's values come before it
//   `values`   16-bit: the kept weights in the order of runs, steps, bits; each run is filled up to BITMAP_ALIGNMENT
//   `rows`     int32 [groups][row groups][FRAGMENT_ROWS]: the output channel of each row, -1 where there is none
// So a lane finds its first value by one count of bits, and copies are of 16 bytes. A step takes 80 bytes and two for each
// kept weight, where a fragment filter's takes 576.
#pragma once

#include <cstdint>

#include "condensed/filter.h"

namespace prunekit {

constexpr int BITMAP_RECORD_WORDS = 20;
constexpr int BITMAP_ALIGNMENT = 8;  // values: 16 bytes

// NUM_ALIGNED: values of all runs, in BITMAP_ALIGNMENTs; LONGEST_ALIGNED: of the run that has most. KERNEL_H is at most
// 16.
#define PRUNEKIT_BITMAP_WORDS(WORD) PRUNEKIT_FRAGMENT_WORDS(WORD) WORD(NUM_ALIGNED) WORD(LONGEST_ALIGNED)
#define PRUNEKIT_BITMAP_WORD(word) BITMAP_##word,
enum BitmapHeaderWord { PRUNEKIT_BITMAP_WORDS(PRUNEKIT_BITMAP_WORD) BITMAP_HEADER_WORDS };
inline constexpr const char* BITMAP_HEADER[] = {PRUNEKIT_BITMAP_WORDS(PRUNEKIT_WORD_NAME)};

}  // namespace prunekit
