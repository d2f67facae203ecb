// Prints a block's shared memory in bytes, as the launchers compute it, for problems that come as lines of numbers.
#include <cstdio>

#include "condensed/launch.h"
#include "record/launch.h"
#include "semi_structured/launch.h"

namespace {

using namespace prunekit;

// What all kernels read: sizes of the output, stride and dilation, and the weight's.
struct Numbers {
  int p, q, stride_h, stride_w, dilation_h, dilation_w;
  long k, c, r, s, groups, chunk_channels, longest;
};

template <typename Conv>
void fill(Conv& conv, const Numbers& n) {
  conv.n = 1, conv.p = n.p, conv.q = n.q;
  conv.stride_h = n.stride_h, conv.stride_w = n.stride_w;
  conv.dilation_h = n.dilation_h, conv.dilation_w = n.dilation_w;
  conv.padding_h = conv.padding_w = 1;  // so that lines stay lines
}

// `cut` ends with the fragments of a semi-structured filter, or 0.
int64_t condensed(const Numbers& n, const int (&cut)[8]) {
  CondensedConv conv{};
  fill(conv, n);
  const int* number = cut;
  for (const LaunchWord& word : launch_words(conv)) {
    *word.value = *number++;
  }
  int64_t header[SEMI_STRUCTURED_HEADER_WORDS] = {};
  header[FRAGMENT_OUT_CHANNELS] = n.k, header[FRAGMENT_GROUP_CHANNELS] = n.c, header[FRAGMENT_GROUPS] = n.groups;
  header[FRAGMENT_KERNEL_H] = n.r, header[FRAGMENT_KERNEL_W] = n.s;
  header[FRAGMENT_CHUNK_CHANNELS] = n.chunk_channels, header[FRAGMENT_LONGEST] = n.longest;
  header[SEMI_STRUCTURED_FRAGMENTS] = cut[7];
  const GridLaunch launch = cut[7] ? plan_semi_structured_launch(conv, header) : plan_condensed_launch(conv, header);
  return launch.refusal.empty() ? launch.shared_bytes : -1;
}

int64_t record(const Numbers& n, const int (&cut)[8]) {
  RecordConv conv{};
  fill(conv, n);
  const int* number = cut;
  for (const LaunchWord& word : launch_words(conv)) {
    *word.value = *number++;
  }
  int64_t header[RECORD_HEADER_WORDS] = {};
  header[RECORD_OUT_CHANNELS] = n.k, header[RECORD_GROUP_CHANNELS] = n.c, header[RECORD_GROUPS] = n.groups;
  header[RECORD_KERNEL_H] = n.r, header[RECORD_KERNEL_W] = n.s, header[RECORD_CHUNK_CHANNELS] = n.chunk_channels;
  header[RECORD_SLICES] = cut[5], header[RECORD_WINDOW_TAPS] = cut[6], header[RECORD_LONGEST] = n.longest;
  const GridLaunch launch = plan_record_launch(conv, header);
  return launch.refusal.empty() ? launch.shared_bytes : -1;
}

}  // namespace

int main() {
  Numbers n{};
  int is_record = 0, cut[8] = {};
  while (std::scanf(
             "%d %d %d %d %d %d %d %ld %ld %ld %ld %ld %ld %ld", &is_record, &n.p, &n.q, &n.stride_h, &n.stride_w,
             &n.dilation_h, &n.dilation_w, &n.k, &n.c, &n.r, &n.s, &n.groups, &n.chunk_channels, &n.longest) == 14) {
    for (int& number : cut) {
      if (std::scanf("%d", &number) != 1) {
        return 1;
      }
    }
    std::printf("%lld\n", static_cast<long long>(is_record ? record(n, cut) : condensed(n, cut)));
  }
  return 0;
}
