// What csrc/cuda/record/programs.py writes in PTX, as plain loops: one record after the other, one tap after the other.
// tests/gpu_checks/test_record_programs.py compares the PTX with the same.
#pragma once

namespace prunekit {

template <int ROWS, int TILE_H, int R, int S, int STRIDE, int CHANNELS>
void run_records(const RecordConv& conv, const int2* segment, const float* from, float (&sum)[ROWS][TILE_H * TILE_W]) {
  constexpr int TAPS = CHANNELS * R * S, STEP = STRIDE ? STRIDE : 1;
  constexpr int H = (TILE_H - 1) * STEP + R, W = (TILE_W - 1) * STEP + S;
  float window[CHANNELS][H][W] = {};
  for (int operation = segment->x; operation != ROWS * TAPS + 1;) {
    const int2 record = *++segment;
    if (operation == ROWS * TAPS) {
      const int channel = record.y >> 16, tap_h = record.y >> 8 & 255, tap_w = record.y & 255;
      const float* at = from + channel * conv.plane;
      if (STRIDE == 0) {
        at += tap_h * conv.dilation_h * conv.pitch + tap_w * conv.dilation_w;
      }
      const int step_h = STRIDE ? 1 : conv.stride_h, step_w = STRIDE ? 1 : conv.stride_w;
      for (int c = 0; c < CHANNELS; ++c) {
        for (int i = 0; i < H; ++i) {
          for (int j = 0; j < W; ++j) {
            const int column = STRIDE == 2 ? j % 2 * (conv.pitch / 2) + j / 2 : j * step_w;
            const int turn = STRIDE && i >= TILE_H * STEP ? conv.skew : 0;
            window[c][i][j] = at[c * conv.plane + i * step_h * conv.pitch + turn + column];
          }
        }
      }
    } else {
      const int row = operation / TAPS, tap = operation % TAPS;
      const int channel = tap / (R * S), tap_h = tap / S % R, tap_w = tap % S;
      for (int i = 0; i < TILE_H * TILE_W; ++i) {
        const int y = i / TILE_W * STEP + tap_h, x = i % TILE_W * STEP + tap_w;
        sum[row][i] += __int_as_float(record.y) * window[channel][y][x];
      }
    }
    operation = record.x;
  }
}

}  // namespace prunekit
