// Batch norm with the activation after it, forward and backward, one channel at a time: its values stay in the second-level
// cache between the sums over them and the pass that uses the sums.

#pragma once

#include "threads.h"

namespace hanax::batch_norm {

enum Activation : int64_t { kNone = 0, kRelu = 1, kHardSwish = 2 };

constexpr int64_t kRun = 4096;  // values summed in float before the sum goes on in double

inline Vector clip(Vector v, float low, float high) {
  const Vector lows = broadcast(low), highs = broadcast(high);
  v = v < lows ? lows : v;
  return v > highs ? highs : v;
}

template <Activation kActivation>
inline Vector activate(Vector u) {
  if constexpr (kActivation == kRelu) return clip(u, 0.0f, __builtin_inff());
  if constexpr (kActivation == kHardSwish) return u * clip(u + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
  return u;
}

// d activate(u) / du, 0 at the corner of a relu.
template <Activation kActivation>
inline Vector slope(Vector u) {
  const Vector zero = {}, one = broadcast(1.0f);
  if constexpr (kActivation == kRelu) return u > zero ? one : zero;
  if constexpr (kActivation == kHardSwish) {
    const Vector inner = (u + u + 3.0f) * (1.0f / 6.0f);
    return u <= broadcast(-3.0f) ? zero : (u >= broadcast(3.0f) ? one : inner);
  }
  return one;
}

// The last vector of a run may be short: its other lanes are zero, and are not stored.
inline Vector load_part(const float* p, int64_t lanes) {
  if (lanes >= kLanes) return load(p);
  Vector v = {};
  std::memcpy(&v, p, lanes * sizeof(float));
  return v;
}
inline void store_part(float* p, Vector v, int64_t lanes) {
  if (lanes >= kLanes) {
    store(p, v);
  } else {
    std::memcpy(p, &v, lanes * sizeof(float));
  }
}

// Sum over a run of values of term(position); in double from run to run.
template <typename Term>
double sum_over(int64_t count, const Term& term) {
  double total = 0.0;
  for (int64_t first = 0; first < count; first += kRun) {
    const int64_t end = std::min(count, first + kRun);
    Vector sums[4] = {};
    int64_t i = first;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes)
      for (int j = 0; j < 4; ++j) sums[j] += term(i + j * kLanes, kLanes);
    for (; i < end; i += kLanes) sums[0] += term(i, std::min(kLanes, end - i));
    total += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

inline Vector only(Vector v, int64_t lanes) {  // the first `lanes`, the others zero
  for (int64_t lane = std::max<int64_t>(lanes, 0); lane < kLanes; ++lane) v[lane] = 0.0f;
  return v;
}

struct Statistics {
  float mean, variance;
};

// Over the first `counted` of `images` images at each of `positions`.
inline Statistics statistics(const float* x, int64_t positions, int64_t images, int64_t counted) {
  const bool whole = counted == images;
  const int64_t runs = whole ? 1 : positions, length = whole ? positions * images : counted;
  const double count = static_cast<double>(positions) * counted;
  double total = 0.0;
  for (int64_t run = 0; run < runs; ++run) {
    const float* values = x + run * images;
    total += sum_over(length, [&](int64_t i, int64_t lanes) { return load_part(values + i, lanes); });
  }
  const float mean = static_cast<float>(total / count);
  total = 0.0;
  for (int64_t run = 0; run < runs; ++run) {
    const float* values = x + run * images;
    total += sum_over(length, [&](int64_t i, int64_t lanes) {
      const Vector centred = load_part(values + i, lanes) - mean;
      return lanes == kLanes ? centred * centred : only(centred * centred, lanes);
    });
  }
  return {mean, static_cast<float>(total / count)};
}

template <Activation kActivation>
void apply(const float* x, int64_t count, float mean, float factor, float offset, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = std::min(kLanes, count - i);
    store_part(y + i, activate<kActivation>((load_part(x + i, lanes) - mean) * factor + offset), lanes);
  }
}

// Gradients by x (into dx), scale and offset of y = activate((x - mean) / deviation * scale + offset) with the statistics of x.
template <Activation kActivation>
void gradients(const float* x, const float* dy, int64_t count, Statistics found, float epsilon, float scale, float offset,
               float* dx, float* dscale, float* doffset) {
  const float inverse = 1.0f / __builtin_sqrtf(found.variance + epsilon);
  const auto normalised = [&](int64_t i, int64_t lanes) { return (load_part(x + i, lanes) - found.mean) * inverse; };
  const auto given = [&](Vector unit, int64_t i, int64_t lanes) {
    return load_part(dy + i, lanes) * slope<kActivation>(unit * scale + offset);
  };
  double by_offset = 0.0, by_scale = 0.0;
  for (int64_t first = 0; first < count; first += kRun) {
    const int64_t end = std::min(count, first + kRun);
    Vector offsets[2] = {}, scales[2] = {};
    int64_t i = first;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes)
      for (int j = 0; j < 2; ++j) {
        const Vector unit = normalised(i + j * kLanes, kLanes), g = given(unit, i + j * kLanes, kLanes);
        offsets[j] += g;
        scales[j] += g * unit;
      }
    for (; i < end; i += kLanes) {
      const int64_t lanes = std::min(kLanes, end - i);
      const Vector unit = normalised(i, lanes), g = given(unit, i, lanes);  // dy is zero beyond the lanes
      offsets[0] += g;
      scales[0] += g * unit;
    }
    by_offset += sum(offsets[0] + offsets[1]);
    by_scale += sum(scales[0] + scales[1]);
  }
  *dscale = static_cast<float>(by_scale);
  *doffset = static_cast<float>(by_offset);
  const float mean_given = static_cast<float>(by_offset / count), mean_product = static_cast<float>(by_scale / count);
  const float factor = scale * inverse;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = std::min(kLanes, count - i);
    const Vector unit = normalised(i, lanes);
    store_part(dx + i, (given(unit, i, lanes) - mean_given - unit * mean_product) * factor, lanes);
  }
}

}  // namespace hanax::batch_norm
