// What a kernel's PTX is parsed into, and what the interpreter says when it stops.
//
// Written from NVIDIA's PTX ISA manual; it knows the instructions that nvcc makes of csrc/cuda, and stops at any other.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

// A text that is no PTX known here, or a program that does what a GPU would not do.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of an instruction: 'f' float, 's' signed, 'u' unsigned, 'b' bits, 'p' predicate.
struct Type {
  char kind = 'b';
  int bits = 32;
};

// Where loads and stores go.
enum class Space { PARAM, SHARED, GLOBAL };

// Registers and constants of a thread are 64-bit slots; operands are their numbers.
using Values = const uint64_t*;

enum class Kind {
  COMPUTE,  // `compute` of the sources
  PACK,  // the sources, side by side, as one
  UNPACK,  // the other way round
  LOAD,  // `count` elements
  STORE,  // likewise; the address is the first source
  JUMP,  // to `targets[0]`
  TABLE_JUMP,  // to one of `targets`, by the first source, as all lanes of a warp do
  BARRIER,  // of the block
  BARRIER_OR,  // likewise, and is any thread's predicate true?
  LOAD_MATRICES,  // ldmatrix: this and the next are done by the 32 lanes of a warp together
  MULTIPLY,  // mma
  MULTIPLY_SPARSE,  // mma.sp
  COPY,  // cp.async: shared, global address, bytes that are taken
  COMMIT_COPIES,
  WAIT_FOR_COPIES,  // until at most `count` groups are open
  RETURN,
};

struct Instruction {
  Kind kind = Kind::COMPUTE;
  uint64_t (*compute)(Type type, Values sources) = nullptr;
  Type type;
  int result_bits = 32;
  int guard = -1;  // the slot of a predicate that must be true, or false where `is_guard_inverted`
  bool is_guard_inverted = false;
  Space space = Space::PARAM;
  bool is_read_only = false;  // ld.global.nc
  int count = 1;
  int64_t offset = 0;
  bool is_bfloat16 = false;
  int depth = 0;  // of a product: columns of A
  int selector = 0;  // of mma.sp: the lanes that hold the metadata
  std::vector<int> results, sources, targets;
  std::string text;
};

struct Kernel {
  int parameter_bytes = 0, most_threads = 0, slots = 0;
  std::vector<Instruction> code;
  std::map<int, uint64_t> constants;  // slot to value
  std::map<std::string, int> specials;  // %tid.x and its like, to their slots
};

// By name, without the namespace: record_conv2d<8,6,3,3,1,1>.
using Module = std::map<std::string, Kernel>;

// Shared memory has addresses of its own; an access by a number that is none of them is caught.
constexpr uint64_t SHARED_BASE = 1 << 12;

}  // namespace ptx
