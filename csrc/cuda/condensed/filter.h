// The fragment filter: a condensed filter cut into the pieces that tensor cores read (prunekit/ops/cuda/condensed/filter.py
// packs it).
//
// Output channels stand in row groups of FRAGMENT_ROWS. A run holds one row group and one chunk (`chunk_channels` input
// channels): its columns are the taps that some row of the group keeps there, padded to steps of STEP_COLUMNS with
// repeats whose weights count for nothing.
//   `starts`    int32: the first step of each run, [groups][row groups][chunks], and the number of steps
//   `columns`   int32 [steps][STEP_COLUMNS]: channel in chunk << 16 | tap row << 8 | tap column
//   `fragments` 16-bit [steps][32 lanes][4 registers][2]: the weights as mma.m16n8k16 takes its first operand. With
//               g = lane / 4 and t = lane % 4, register i holds row g + 8 · (i % 2), columns 2 · t + 8 · (i / 2) and the next.
//               Registers 0, 1 and 2, 3 are the first operands of two mma.m16n8k8 in turn. A weight that is not kept is
//               -0.0, and a kept zero +0.0.
//   `rows`      int32 [groups][row groups][FRAGMENT_ROWS]: the output channel of each row, -1 where there is none
// Columns of a run are ordered so that eight in a row lie in eight banks of shared memory as far as it goes.
// The header is a short list of numbers that stays with the caller, because launches need it.
#pragma once

#include <cstdint>

#include "words.h"

namespace prunekit {

constexpr int FRAGMENT_ROWS = 16;
constexpr int STEP_COLUMNS = 16;

// LONGEST: steps of the longest run.
#define PRUNEKIT_FRAGMENT_WORDS(WORD) PRUNEKIT_FILTER_WORDS(WORD) WORD(NNZ) WORD(NUM_STEPS) WORD(LONGEST)
#define PRUNEKIT_FRAGMENT_WORD(word) FRAGMENT_##word,
enum FragmentHeaderWord { PRUNEKIT_FRAGMENT_WORDS(PRUNEKIT_FRAGMENT_WORD) FRAGMENT_HEADER_WORDS };
inline constexpr const char* FRAGMENT_HEADER[] = {PRUNEKIT_FRAGMENT_WORDS(PRUNEKIT_WORD_NAME)};

}  // namespace prunekit
