// Activations of a vector, compiled once per instruction set: one functor for each name of PRUNEKIT_ACTIVATIONS
// (lane_kernels.h). `p` is the activation's parameter: leaky_relu's slope below zero, elu's alpha.
//
// What is not finite becomes what torch makes of it: exponential gives exactly 0 and inf at the ends of its range, so that
// silu(-inf) is -inf / inf = nan.
#pragma once

#include "lane_kernels.h"
#include "lane_vector.h"

namespace prunekit {
namespace PRUNEKIT_ISA {
namespace {

ALWAYS_INLINE vec minimum(vec a, float b) { return a > b ? vec{} + b : a; }  // nan stays nan
ALWAYS_INLINE vec maximum(vec a, float b) { return a < b ? vec{} + b : a; }
ALWAYS_INLINE vec absolute(vec a) { return a < 0.0f ? -a : a; }

// e^x by 2^n · e^r with |r| <= ln(2) / 2: a Taylor polynomial of degree 7, within 2 ulp; 0 below -87.7, inf above 88.3.
ALWAYS_INLINE vec exponential(vec x) {
  x = minimum(maximum(x, -88.0f), 89.0f);
  const vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2^23: the sum's low bits hold round(x / ln 2)
  const vec n = shifted - 12582912.0f;
  const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  vec p = vec{} + 1.0f / 5040;
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = p * r + c;
  }
  const ivec power = (reinterpret_cast<ivec>(shifted) << 23) + 0x3f800000;
  return p * reinterpret_cast<vec>(power);
}

// e^x - 1 for x <= 0, with all digits near 0, where the difference would lose them.
ALWAYS_INLINE vec exponential_minus_1(vec x) {
  vec p = vec{} + 1.0f / 5040;
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) {
    p = p * x + c;
  }
  return x > -0.35f ? p * x : exponential(x) - 1.0f;
}

// The standard normal distribution up to v, by Abramowitz and Stegun's 7.1.26 for erfc: within 1e-7.
ALWAYS_INLINE vec normal_distribution(vec v) {
  const vec z = absolute(v) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
  vec p = vec{} + 1.061405429f;
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    p = p * t + c;
  }
  const vec tail = 0.5f * p * t * exponential(-z * z);
  return v < 0.0f ? tail : 1.0f - tail;
}

template <LaneActivation ACTIVATION>
struct Activate;

#define ACTIVATION(name, ...)                                                    \
  template <>                                                                    \
  struct Activate<LaneActivation::name> {                                        \
    ALWAYS_INLINE static vec of(vec v, [[maybe_unused]] float p) { __VA_ARGS__ } \
  };
ACTIVATION(NONE, return v;)
ACTIVATION(LEAKY_RELU, return v < 0.0f ? v * p : v;)
ACTIVATION(RELU, return v < 0.0f ? vec{} : v;)
ACTIVATION(RELU6, return minimum(maximum(v, 0.0f), 6.0f);)
ACTIVATION(SILU, return v / (1.0f + exponential(-v));)
ACTIVATION(HARDSWISH, return v * minimum(maximum(v + 3.0f, 0.0f), 6.0f) / 6.0f;)
ACTIVATION(SIGMOID, return 1.0f / (1.0f + exponential(-v));)
ACTIVATION(HARDSIGMOID, return minimum(maximum(v + 3.0f, 0.0f), 6.0f) / 6.0f;)
ACTIVATION(TANH, const vec e = exponential_minus_1(-2.0f * absolute(v)), t = e / (e + 2.0f); return v < 0.0f ? t : -t;)
ACTIVATION(GELU, return v * normal_distribution(v);)
ACTIVATION(GELU_TANH, return v / (1.0f + exponential(v * (v * v * -0.0713548162726f - 1.5957691216f)));)
ACTIVATION(MISH, const vec e = exponential(minimum(v, 20.0f)), n = e * (e + 2.0f); return v * (n / (n + 2.0f));)
ACTIVATION(ELU, return v < 0.0f ? p * exponential_minus_1(v) : v;)
#undef ACTIVATION

// Call f with the activation as a constant, so that a loop inside f has no choice to make.
template <typename F>
ALWAYS_INLINE void with_activation(LaneActivation activation, const F& f) {
  switch (activation) {
#define CASE(name)           \
  case LaneActivation::name: \
    return f(std::integral_constant<LaneActivation, LaneActivation::name>{});
    PRUNEKIT_ACTIVATIONS(CASE)
#undef CASE
  }
}

// Call f with the choice as a constant.
template <typename F>
ALWAYS_INLINE void with_choice(bool choice, const F& f) {
  if (choice) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

ALWAYS_INLINE vec masked(vec v, const int32_t* mask) {
  return reinterpret_cast<vec>(reinterpret_cast<ivec>(v) & *reinterpret_cast<const ivec*>(mask));
}

}  // namespace
}  // namespace PRUNEKIT_ISA
}  // namespace prunekit
