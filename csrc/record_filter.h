// The record filter: a packed filter as a stream of records that a GPU's warps read like a small program
// (prunekit/ops/record_filter.py packs it).
//
// `records` is int32 [num_records, 2]: an operation and its argument. One segment holds one row group (`rows` output
// channels of one conv group) and one channel block (`channel_block` input channels):
//   slot          argument: a weight's bits; slot = row · window_taps + tap of the window; multiply and add
//   LOAD_WINDOW   = rows · window_taps; argument: channel in block << 16 | tap row << 8 | tap column; bring its inputs
//   END_SEGMENT   = LOAD_WINDOW + 1; once, or twice so that the next segment begins at an even record (16 bytes)
// A window is what one load brings: all taps of a 3×3 kernel (window_taps 9; the argument's tap is 0), or one tap
// (window_taps 1). A window that no row keeps is left out, and so costs nothing.
// `starts` is int32: the first record of each segment, [groups][row groups][channel blocks], and the number of records.
// The header is a short list of numbers that stays with the caller, because launches need it.
#pragma once

#include <cstdint>

namespace prunekit {

enum RecordHeaderWord {
  RECORD_OUT_CHANNELS,
  RECORD_GROUP_CHANNELS,
  RECORD_KERNEL_H,
  RECORD_KERNEL_W,
  RECORD_GROUPS,
  RECORD_CHANNEL_BLOCK,
  RECORD_WINDOW_TAPS,
  RECORD_NNZ,
  RECORD_COUNT,
  RECORD_LONGEST,  // the longest run of records that 1, 2, 4 and 8 neighbouring segments of a row group take
  RECORD_HEADER_WORDS = RECORD_LONGEST + 4,
};

}  // namespace prunekit
