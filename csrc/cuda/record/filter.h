// The record filter: a packed filter as a stream of records that a GPU's warps read like a small program
// (prunekit/ops/cuda/record/filter.py packs it).
//
// `records` is int32 [num_records, 2]: the operation of the *next* record, and this one's argument. A run holds one row
// group (RECORD_ROWS output channels of one conv group) and one chunk (`chunk_channels` input channels); it is cut into
// `slices` segments of about equal length, one for each of the warps that share the row group. Operations:
//   slot          argument: a weight's bits; slot = row · window_taps + tap of the window; multiply and add
//   LOAD_WINDOW   = rows · window_taps; argument: channel in chunk << 16 | tap row << 8 | tap column; bring its inputs
//   END_SEGMENT   = LOAD_WINDOW + 1; once, or twice so that the next segment begins at an even record (16 bytes)
// The first record of a segment does nothing but name the next one's operation.
// A window is what one load brings: all taps of a 3×3 kernel (window_taps 9; the argument's tap is 0), WINDOW_CHANNELS
// channels of a 1×1 kernel (the argument's channel is the first), or one tap (window_taps 1). A window that no row keeps
// is left out, and so costs nothing; one that a cut divides is loaded twice.
// `starts` is int32: the first record of each segment, [groups][row groups][chunks][slices], and the number of records.
// `rows` is int32 [K]: the output channel of each row; inside a conv group the rows with most weights come first, so
// that the row groups of one block have about the same to do.
// The header is a short list of numbers that stays with the caller, because launches need it.
#pragma once

#include <cstdint>

#include "words.h"

namespace prunekit {

constexpr int RECORD_ROWS = 8;
constexpr int WINDOW_CHANNELS = 2;

// LONGEST: records of the longest run.
#define PRUNEKIT_RECORD_WORDS(WORD) \
  PRUNEKIT_FILTER_WORDS(WORD) WORD(SLICES) WORD(WINDOW_TAPS) WORD(NNZ) WORD(NUM_RECORDS) WORD(LONGEST)
#define PRUNEKIT_RECORD_WORD(word) RECORD_##word,
enum RecordHeaderWord { PRUNEKIT_RECORD_WORDS(PRUNEKIT_RECORD_WORD) RECORD_HEADER_WORDS };
inline constexpr const char* RECORD_HEADER[] = {PRUNEKIT_RECORD_WORDS(PRUNEKIT_WORD_NAME)};

}  // namespace prunekit
