// Instructions of one thread that compute a register of others: the manual's definitions, a row for each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "instruction.h"

namespace ptx {

inline uint64_t mask(int bits) { return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; }

inline int64_t extend(uint64_t value, int bits) {
  const int rest = 64 - bits;
  return static_cast<int64_t>(value << rest) >> rest;
}

// A number of 32 bits or less as what its type says, sign included.
inline uint64_t widened(Type type, uint64_t value) {
  return type.kind == 's' ? static_cast<uint64_t>(extend(value, type.bits)) : value & mask(type.bits);
}

inline float as_float(uint64_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits);
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

inline uint64_t as_bits(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  return word;
}

inline float bfloat16_to_float(uint64_t bits) { return as_float(bits << 16); }

inline float half_to_float(uint64_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
      : exponent                    ? std::ldexp(1024.0f + fraction, exponent - 25)
                                    : std::ldexp(static_cast<float>(fraction), -24);
  return bits >> 15 & 1 ? -size : size;
}

// The nearest float16, ties to even.
inline uint64_t float_to_half(float value) {
  const uint64_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(static_cast<double>(value));
  if (std::isnan(value)) {
    return 0x7fff;
  }
  const int exponent = std::isinf(size) || size == 0 ? -14 : std::max(std::ilogb(size), -14);  // the least is 2^-14
  const double rounded =
      std::isinf(size) ? size : std::ldexp(std::nearbyint(std::ldexp(size, 10 - exponent)), exponent - 10);
  if (rounded > 65504) {
    return sign | 0x7c00;
  }
  if (rounded < std::ldexp(1.0, -14)) {
    return sign | static_cast<uint64_t>(std::ldexp(rounded, 24));
  }
  const int at = std::ilogb(rounded);
  return sign | (static_cast<uint64_t>(at + 14) * 1024 + static_cast<uint64_t>(std::ldexp(rounded, 10 - at)));
}

inline uint64_t float_to_bfloat16(float value) {
  const uint64_t bits = as_bits(value);
  return std::isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// fmaxf and fminf as PTX has them: of a number and nan the number; -0 is less than +0.
inline float larger(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) {
    return std::isnan(a) ? b : a;
  }
  return a == b ? (std::signbit(a) ? b : a) : std::max(a, b);
}

// How two numbers compare, as one bit, so that a comparison is a set of them.
constexpr int LESS = 1, EQUAL = 2, GREATER = 4, UNORDERED = 8;

inline int order(Type type, Values s) {
  const auto compare = [](auto a, auto b) { return a < b ? LESS : a == b ? EQUAL : GREATER; };
  if (type.kind == 'f') {
    const float a = as_float(s[0]), b = as_float(s[1]);
    return std::isnan(a) || std::isnan(b) ? UNORDERED : compare(a, b);
  }
  const uint64_t a = widened(type, s[0]), b = widened(type, s[1]);
  return type.kind == 's' ? compare(static_cast<int64_t>(a), static_cast<int64_t>(b)) : compare(a, b);
}

template <int ORDERS>
uint64_t is_ordered(Type type, Values s) {
  return (order(type, s) & ORDERS) != 0;
}

inline int64_t divisor(Type type, uint64_t value) {
  const int64_t number = widened(type, value);
  if (number == 0) {
    throw Error("division by 0");
  }
  return number;
}

struct Operation {
  int sources;
  uint64_t (*compute)(Type type, Values s);
};

// By name, without the type that it ends with.
inline const std::map<std::string, Operation> OPERATIONS = {
    {"add",
     {2, [](Type t, Values s) { return t.kind == 'f' ? as_bits(as_float(s[0]) + as_float(s[1])) : s[0] + s[1]; }}},
    {"sub",
     {2, [](Type t, Values s) { return t.kind == 'f' ? as_bits(as_float(s[0]) - as_float(s[1])) : s[0] - s[1]; }}},
    {"mul", {2, [](Type, Values s) { return as_bits(as_float(s[0]) * as_float(s[1])); }}},
    {"mul.lo", {2, [](Type, Values s) { return s[0] * s[1]; }}},
    {"mul.hi", {2, [](Type t, Values s) { return (widened(t, s[0]) * widened(t, s[1])) >> t.bits; }}},
    {"mul.wide", {2, [](Type t, Values s) { return widened(t, s[0]) * widened(t, s[1]); }}},
    {"mad.lo", {3, [](Type, Values s) { return s[0] * s[1] + s[2]; }}},
    {"fma.rn", {3, [](Type, Values s) { return as_bits(std::fma(as_float(s[0]), as_float(s[1]), as_float(s[2]))); }}},
    {"div",
     {2,
      [](Type t, Values s) {
        const int64_t by = divisor(t, s[1]);
        const uint64_t number = widened(t, s[0]);
        return t.kind == 's' ? static_cast<uint64_t>(static_cast<int64_t>(number) / by) : number / by;
      }}},
    {"rem",
     {2,
      [](Type t, Values s) {
        const int64_t by = divisor(t, s[1]);
        const uint64_t number = widened(t, s[0]);
        return t.kind == 's' ? static_cast<uint64_t>(static_cast<int64_t>(number) % by) : number % by;
      }}},
    // Of integers only: the kernels have no smaller float.
    {"min", {2, [](Type t, Values s) { return order(t, s) & LESS ? s[0] : s[1]; }}},
    {"max",
     {2,
      [](Type t, Values s) {
        return t.kind == 'f' ? as_bits(larger(as_float(s[0]), as_float(s[1]))) : order(t, s) & GREATER ? s[0] : s[1];
      }}},
    {"neg", {1, [](Type t, Values s) { return t.kind == 'f' ? s[0] ^ 0x80000000 : 0 - s[0]; }}},
    {"and", {2, [](Type, Values s) { return s[0] & s[1]; }}},
    {"or", {2, [](Type, Values s) { return s[0] | s[1]; }}},
    {"xor", {2, [](Type, Values s) { return s[0] ^ s[1]; }}},
    {"not", {1, [](Type, Values s) { return ~s[0]; }}},
    {"shl",
     {2,
      [](Type t, Values s) {
        const uint64_t by = s[1] & mask(32);
        return by >= static_cast<uint64_t>(t.bits) ? 0 : s[0] << by;
      }}},
    {"shr",
     {2,
      [](Type t, Values s) {
        const uint64_t by = std::min<uint64_t>(s[1] & mask(32), 63);
        return t.kind == 's' ? static_cast<uint64_t>(extend(s[0], t.bits) >> by) : (s[0] & mask(t.bits)) >> by;
      }}},
    {"popc", {1, [](Type, Values s) { return static_cast<uint64_t>(__builtin_popcountll(s[0] & mask(32))); }}},
    {"bfe",
     {3,
      [](Type, Values s) {
        const uint64_t from = s[1] & 0xff, bits = s[2] & 0xff;
        return from > 31 ? 0 : (s[0] & mask(32)) >> from & mask(static_cast<int>(bits));
      }}},
    {"bfi",
     {4,
      [](Type, Values s) {
        const uint64_t to = s[2] & 0xff, bits = mask(static_cast<int>(s[3] & 0xff));
        return to > 31 ? s[1] : (s[1] & ~(bits << to)) | (s[0] & bits) << to;
      }}},
    {"setp.eq", {2, is_ordered<EQUAL>}},
    {"setp.ne", {2, is_ordered<LESS | GREATER>}},
    {"setp.lt", {2, is_ordered<LESS>}},
    {"setp.le", {2, is_ordered<LESS | EQUAL>}},
    {"setp.gt", {2, is_ordered<GREATER>}},
    {"setp.ge", {2, is_ordered<GREATER | EQUAL>}},
    {"setp.equ", {2, is_ordered<EQUAL | UNORDERED>}},
    {"setp.neu", {2, is_ordered<LESS | GREATER | UNORDERED>}},
    {"setp.ltu", {2, is_ordered<LESS | UNORDERED>}},
    {"setp.leu", {2, is_ordered<LESS | EQUAL | UNORDERED>}},
    {"setp.gtu", {2, is_ordered<GREATER | UNORDERED>}},
    {"setp.geu", {2, is_ordered<GREATER | EQUAL | UNORDERED>}},
    {"selp", {3, [](Type, Values s) { return s[2] & 1 ? s[0] : s[1]; }}},
    {"mov", {1, [](Type, Values s) { return s[0]; }}},
    {"cvta.to.global", {1, [](Type, Values s) { return s[0]; }}},
    {"cvt.s64", {1, [](Type t, Values s) { return widened(t, s[0]); }}},
    {"cvt.u64", {1, [](Type t, Values s) { return widened(t, s[0]); }}},
    {"cvt.s32", {1, [](Type t, Values s) { return widened(t, s[0]); }}},
    {"cvt.u32", {1, [](Type t, Values s) { return widened(t, s[0]); }}},
    {"cvt.u16", {1, [](Type t, Values s) { return widened(t, s[0]); }}},
    {"cvt.f32", {1, [](Type, Values s) { return as_bits(half_to_float(s[0])); }}},
    {"cvt.rn.f16", {1, [](Type, Values s) { return float_to_half(as_float(s[0])); }}},
    {"cvt.rn.bf16", {1, [](Type, Values s) { return float_to_bfloat16(as_float(s[0])); }}},
};

}  // namespace ptx
