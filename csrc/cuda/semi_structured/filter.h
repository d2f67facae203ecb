// The semi-structured filter: any mask in steps whose rows keep two of four columns, as sparse tensor cores read them
// (prunekit/ops/cuda/semi_structured/filter.py packs it).
//
// It is a fragment filter (condensed/filter.h) but for these:
//   * A row group is `fragments` (1, 2 or 4) times FRAGMENT_ROWS output channels, which share their columns.
//   * A step has SPARSE_STEP_COLUMNS columns, in quads of four in a row. A row stores two weights of a quad. A column
//     where some row keeps more stands in the run again, with the weights that found no place: every kept weight is
//     stored once, so nothing is lost and nothing is left over.
//   `columns`   int32 [steps][SPARSE_STEP_COLUMNS], as there
//   `fragments` 16-bit [steps][fragments][32 lanes][4 registers][2]: the stored weights as mma.sp.m16n8k32 takes its first
//               operand. With g = lane / 4 and t = lane % 4, register i holds row g + 8 · (i % 2), the two weights of quad
//               t + 4 · (i / 2). What is stored but not kept is -0.0, and a kept zero +0.0.
//   `metadata`  int32 [steps][fragments][8 groups][2]: word h of group g holds 4 bits for each of the quads 4 · h to
//               4 · h + 3, from the low ones up, of row g, then of row g + 8: the column in the quad of the first stored
//               weight in two bits, then that of the second, which is the greater.
//   `rows`      int32 [groups][row groups][fragments · FRAGMENT_ROWS], as there
// The header begins as the fragment filter's and ends with `fragments`.
#pragma once

#include "condensed/filter.h"

namespace prunekit {

constexpr int SPARSE_STEP_COLUMNS = 32;

#define PRUNEKIT_SEMI_STRUCTURED_WORDS(WORD) PRUNEKIT_FRAGMENT_WORDS(WORD) WORD(FRAGMENTS)
#define PRUNEKIT_SEMI_STRUCTURED_WORD(word) SEMI_STRUCTURED_##word,
enum SemiStructuredHeaderWord {
  PRUNEKIT_SEMI_STRUCTURED_WORDS(PRUNEKIT_SEMI_STRUCTURED_WORD) SEMI_STRUCTURED_HEADER_WORDS
};
inline constexpr const char* SEMI_STRUCTURED_HEADER[] = {PRUNEKIT_SEMI_STRUCTURED_WORDS(PRUNEKIT_WORD_NAME)};

}  // namespace prunekit
