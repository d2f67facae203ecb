// One product of sparse tensor cores from a file: emulate INPUT OUTPUT SEED.
// tests/gpu_checks/test_sparse_product.py writes and reads.
#include "condensed/conv2d.cuh"

#include "problem_file.h"

namespace {

// words: is_bfloat16, selector. Then of each lane: a [32][8], b [32][8] in 16 bits, metadata [32], sum [32][4].
void run_problem(const int64_t* words, unsigned seed, std::FILE* output) {
  int64_t length = 0;
  const auto a = read_array<uint16_t>(length), b = read_array<uint16_t>(length);
  const auto metadata = read_array<int32_t>(length);
  const auto sum = read_array<float>(length);
  simt::launch(dim3(1), dim3(32), 16, seed, [&] {
    const unsigned lane = threadIdx.x;
    int4 weights;
    uint32_t inputs[4];
    std::memcpy(&weights, a.get() + 8 * lane, sizeof(weights));
    std::memcpy(inputs, b.get() + 8 * lane, sizeof(inputs));
    float (&mine)[4] = *reinterpret_cast<float (*)[4]>(sum.get() + 4 * lane);
    using namespace prunekit::device;
    if (words[0]) {
      words[1] ? multiply_add_sparse<true, 1>(mine, weights, inputs, metadata[lane])
               : multiply_add_sparse<true, 0>(mine, weights, inputs, metadata[lane]);
    } else {
      words[1] ? multiply_add_sparse<false, 1>(mine, weights, inputs, metadata[lane])
               : multiply_add_sparse<false, 0>(mine, weights, inputs, metadata[lane]);
    }
  });
  std::fwrite(sum.get(), sizeof(float), length, output);
}

}  // namespace

int main(int count, char** arguments) { return run_problems(count, arguments, run_problem); }
