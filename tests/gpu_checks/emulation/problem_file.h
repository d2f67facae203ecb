// The file of problems that tests/support/emulated_kernels.py writes: arrays, each after its number of elements.
#pragma once

#include "simt.h"

inline std::FILE* problem_file = nullptr;

// What was read of the problem at hand, for those who hold a kernel's addresses to it.
struct ProblemArray {
  const void* begin;
  int64_t bytes;
};
inline std::vector<ProblemArray> problem_arrays;

template <typename T>
std::unique_ptr<T[]> read_array(int64_t& count) {
  if (std::fread(&count, sizeof(count), 1, problem_file) != 1) {
    return nullptr;
  }
  // Of exactly this size, so that the sanitizer sees a read past it.
  std::unique_ptr<T[]> values(new T[count]);
  if (static_cast<int64_t>(std::fread(values.get(), sizeof(T), count, problem_file)) != count) {
    simt::stop("the problem file is cut off");
  }
  problem_arrays.push_back({values.get(), static_cast<int64_t>(count * sizeof(T))});
  return values;
}

// Call run(words, length, seed, output) for each problem; words are its first array.
template <typename Run>
int run_problems(int count, char** arguments, const Run& run) {
  if (count < 4) {
    simt::stop("usage: emulate INPUT OUTPUT SEED");
  }
  problem_file = std::fopen(arguments[1], "rb");
  std::FILE* output = std::fopen(arguments[2], "wb");
  int64_t length = 0;
  while (const auto words = read_array<int64_t>(length)) {
    run(words.get(), static_cast<unsigned>(std::atoi(arguments[3])), output);
    problem_arrays.clear();
  }
  std::fclose(output);
  std::fclose(problem_file);
  return 0;
}
