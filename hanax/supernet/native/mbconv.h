// An inverted-residual block (expand, depthwise, squeeze-excite, project, each with its batch norm) in evaluation: batch
// norms are calibrated on the first images and then normalise the others too, in one call.
//
// The unit of work is a cache line of 16 images, a chunk, whose maps stay in the first two caches from the input of the
// block to its output; only the calibration images' depthwise outputs go through memory, since their statistics must be
// known before the next operator. The statistics of the expansion need no pass over its outputs: the variance of w x is
// w Cov(x) w'. Sums are made per chunk and added in the order of chunks, so they do not depend on the number of threads.

#pragma once

#include <vector>

#include "batch_norm.h"
#include "depthwise.h"
#include "pointwise.h"
#include "threads.h"

namespace hanax::mbconv {

using batch_norm::Activation;
using pointwise::Weights;

constexpr int64_t kImages = kLine;  // in a chunk

// y = x * factor + shift per channel: a batch norm with known statistics.
struct Affine {
  std::vector<float> factor, shift;
};

struct Moments {  // of one channel
  float mean, variance;
};

// A batch norm of `channels`: rows of scale, offset and, if they are given, mean and variance.
struct Norm {
  const float* rows;
  int64_t channels;
  float* mean;  // results
  float* variance;

  const float* row(int64_t i) const { return rows + i * channels; }
  void take_given() const {
    std::copy(row(2), row(2) + channels, mean);
    std::copy(row(3), row(3) + channels, variance);
  }
  Affine affine(float epsilon) const {
    Affine result{std::vector<float>(channels), std::vector<float>(channels)};
    for (int64_t c = 0; c < channels; ++c) {
      const double factor = row(0)[c] / std::sqrt(static_cast<double>(variance[c]) + epsilon);
      result.factor[c] = static_cast<float>(factor);
      result.shift[c] = static_cast<float>(row(1)[c] - mean[c] * factor);
    }
    return result;
  }
};

struct Block {
  depthwise::Problem problem;  // of the depthwise convolution; its channels are the expanded ones
  int64_t in, out, squeeze;    // channels; no squeeze-excite if `squeeze` is 0
  bool has_expansion, has_residual;
  float epsilon;
  const float* expand;
  const float* kernels;
  const float* se_reduce;
  const float* se_reduce_bias;
  const float* se_expand;
  const float* se_expand_bias;
  const float* project;

  int64_t mid() const { return problem.channels; }
  int64_t positions() const { return problem.height * problem.width; }
  int64_t out_positions() const { return problem.out_height * problem.out_width; }
};

// ---- sums over one chunk ------------------------------------------------------------------------------------------

struct ChunkMoments {
  float mean, square;  // square: sum of squared differences from the mean
};

// Of `positions` lines, the first `count` images of each.
inline ChunkMoments moments_of(const float* lines, int64_t positions, int64_t count) {
  const auto total = [&](const auto& term) {
    Vector sums[kVectors] = {};
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t v = 0; v < kVectors; ++v) sums[v] += term(load(lines + p * kLine + v * kLanes));
    float all = 0.0f;
    for (int64_t lane = 0; lane < count; ++lane) all += sums[lane / kLanes][lane % kLanes];
    return all;
  };
  const float mean = total([](Vector x) { return x; }) / (positions * count);
  return {mean, total([mean](Vector x) { return (x - mean) * (x - mean); })};
}

// Moments over all chunks of a channel (Chan et al., 1983), given those of chunk i at found[i * stride].
inline Moments merge(const ChunkMoments* found, int64_t stride, int64_t chunks, int64_t images, int64_t positions) {
  double mean = 0.0, square = 0.0;
  const auto weight = [&](int64_t i) { return static_cast<double>(positions * std::min(kImages, images - i * kImages)); };
  for (int64_t i = 0; i < chunks; ++i) mean += weight(i) * found[i * stride].mean;
  const double count = static_cast<double>(positions) * images;
  mean /= count;
  for (int64_t i = 0; i < chunks; ++i) {
    const double apart = found[i * stride].mean - mean;
    square += found[i * stride].square + weight(i) * apart * apart;
  }
  return {static_cast<float>(mean), static_cast<float>(square / count)};
}

// ---- chunks -------------------------------------------------------------------------------------------------------

struct Scratch {
  Floats input, planes, lines, panels, pooled, hidden, output;
};

inline Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

inline float* reserved(Floats& floats, int64_t count) {
  floats.reserve(count);
  return floats.data();
}

// panels[position][channel][16] of `count` images from `first`; images beyond are zero.
inline void pack(const float* x, int64_t channels, int64_t positions, int64_t images, int64_t first, int64_t count,
                 float* panels) {
  for (int64_t c = 0; c < channels; ++c) {
    const float* from = x + c * positions * images + first;
    float* to = panels + c * kLine;
    for (int64_t p = 0; p < positions; ++p, from += images, to += channels * kLine) {
      if (count == kImages) {
        __builtin_prefetch(from + 8 * images);
        for (int64_t lane = 0; lane < kLine; lane += kLanes) store(to + lane, load(from + lane));
      } else {
        std::memcpy(to, from, count * sizeof(float));
        std::memset(to + count, 0, (kImages - count) * sizeof(float));
      }
    }
  }
}

struct Group {  // rows of mid channels whose planes are made together
  int64_t first, count;
};

template <Activation kActivation>
struct NormAndActivate {
  const float* factor;
  const float* shift;
  Vector operator()(int64_t row, Vector v) const {
    return batch_norm::activate<kActivation>(v * broadcast(factor[row]) + broadcast(shift[row]));
  }
};

// All that is the same for every chunk.
template <Activation kActivation>
struct Plan {
  const Block& block;
  const float* x;
  float* y;
  Weights expand, se_reduce, se_expand, project;
  depthwise::CorrelateRow row;
  Affine expand_norm, depthwise_norm, project_norm;

  Plan(const Block& b, const float* x, float* y)
      : block(b),
        x(x),
        y(y),
        expand(b.expand, b.has_expansion ? b.mid() : 0, b.in, b.in, 1),
        se_reduce(b.se_reduce, b.squeeze, b.mid(), b.mid(), 1),
        se_expand(b.se_expand, b.squeeze ? b.mid() : 0, b.squeeze, b.squeeze, 1),
        project(b.project, b.out, b.mid(), b.mid(), 1),
        row(depthwise::correlate_row_for(b.problem.size, b.problem.stride)) {}

  Group group(int64_t i) const {
    if (block.has_expansion) return {expand.begin(i), expand.rows_of(i)};
    return {i, 1};
  }
  int64_t groups() const { return block.has_expansion ? expand.blocks : block.mid(); }

  // Planes of a group of mid channels of the chunk in `input` (see pack), normalised and activated, in borders of zeros.
  void fill_planes(const Group& group, int64_t i, const float* input, float* planes, int64_t plane,
                   int64_t row_floats) const {
    const auto& p = block.problem;
    const NormAndActivate<kActivation> finish{expand_norm.factor.data() + group.first,
                                              expand_norm.shift.data() + group.first};
    for (int64_t h = 0; h < p.height; ++h)
      for (int64_t w = 0; w < p.width; ++w, input += block.in * kLine) {
        float* to = planes + (h + p.half()) * row_floats + (w + p.half()) * kLine;
        if (block.has_expansion) {
          pointwise::rows_times_panel(group.count, expand.of(i), input, block.in, to, plane, kLine, finish);
        } else {
          std::memcpy(to, input + group.first * kLine, kLine * sizeof(float));
        }
      }
  }

  // Calls use(channel, lines) with each mid channel's depthwise outputs, before their norm: [out position][16].
  template <typename Use>
  void for_each_channel(int64_t first, int64_t count, const Use& use) const {
    const auto& p = block.problem;
    Scratch& mine = scratch();
    float* input = reserved(mine.input, block.positions() * block.in * kLine);
    pack(x, block.in, block.positions(), p.images, first, count, input);
    const int64_t row_floats = (p.width + 2 * p.half()) * kLine, plane = (p.height + 2 * p.half()) * row_floats;
    float* planes = reserved(mine.planes, pointwise::kRows * plane);
    std::fill(planes, planes + pointwise::kRows * plane, 0.0f);
    float* lines = reserved(mine.lines, block.out_positions() * kLine);
    for (int64_t i = 0; i < groups(); ++i) {
      const Group channels = group(i);
      fill_planes(channels, i, input, planes, plane, row_floats);
      for (int64_t c = 0; c < channels.count; ++c) {
        const depthwise::Taps taps = p.taps(block.kernels, channels.first + c);
        for (int64_t oh = 0; oh < p.out_height; ++oh) {
          const int64_t top = oh * p.stride;  // in the plane with its border
          row(planes + c * plane + top * row_floats, row_floats, taps, 0, p.size, p.out_width,
              lines + oh * p.out_width * kLine, kLine, kLine);
        }
        use(channels.first + c, lines);
      }
    }
  }

  // Depthwise outputs to panels[out position][channel][16].
  void to_panels(const float* lines, int64_t channel, float* panels) const {
    float* to = panels + channel * kLine;
    for (int64_t p = 0; p < block.out_positions(); ++p, lines += kLine, to += block.mid() * kLine)
      for (int64_t v = 0; v < kLine; v += kLanes) store(to + v, load(lines + v));
  }

  // Normalise and activate a channel's depthwise outputs on their way from `from` to `to`; returns their sums in `pooled`.
  void finish_depthwise(int64_t channel, const float* from, int64_t from_step, float* to, int64_t to_step,
                        float* pooled) const {
    const NormAndActivate<kActivation> finish{depthwise_norm.factor.data() + channel,
                                              depthwise_norm.shift.data() + channel};
    Vector sums[kVectors] = {};
    for (int64_t p = 0; p < block.out_positions(); ++p, from += from_step, to += to_step)
      for (int64_t v = 0; v < kVectors; ++v) {
        const Vector value = finish(0, load(from + v * kLanes));
        sums[v] += value;
        store(to + v * kLanes, value);
      }
    for (int64_t v = 0; v < kVectors; ++v) store(pooled + channel * kLine + v * kLanes, sums[v]);
  }

  // Sums over positions, [channel][16], become the gates that squeeze-excite multiplies the channels by.
  void to_gates(float* pooled) const {
    const float inverse = 1.0f / block.out_positions();
    for (int64_t i = 0; i < block.mid() * kLine; i += kLanes) store(pooled + i, load(pooled + i) * inverse);
    float* hidden = reserved(scratch().hidden, block.squeeze * kLine);
    for (int64_t i = 0; i < se_reduce.blocks; ++i) {
      const float* bias = block.se_reduce_bias + se_reduce.begin(i);
      pointwise::rows_times_panel(se_reduce.rows_of(i), se_reduce.of(i), pooled, block.mid(),
                                  hidden + se_reduce.begin(i) * kLine, kLine, kLine, [bias](int64_t row, Vector v) {
                                    return batch_norm::activate<batch_norm::kRelu>(v + broadcast(bias[row]));
                                  });
    }
    for (int64_t i = 0; i < se_expand.blocks; ++i) {
      const float* bias = block.se_expand_bias + se_expand.begin(i);
      pointwise::rows_times_panel(se_expand.rows_of(i), se_expand.of(i), hidden, block.squeeze,
                                  pooled + se_expand.begin(i) * kLine, kLine, kLine, [bias](int64_t row, Vector v) {
                                    return batch_norm::clip(v + broadcast(bias[row]) + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
                                  });
    }
  }

  // output[channel][out position][16] of the projection, before its norm. `panels` holds finished depthwise outputs.
  void run_project(float* panels, float* pooled, float* output) const {
    if (block.squeeze) to_gates(pooled);
    const int64_t mid = block.mid(), positions = block.out_positions();
    for (int64_t p = 0; p < positions; ++p) {
      float* panel = panels + p * mid * kLine;
      if (block.squeeze)
        for (int64_t i = 0; i < mid * kLine; i += kLanes) store(panel + i, load(panel + i) * load(pooled + i));
      for (int64_t i = 0; i < project.blocks; ++i)
        pointwise::rows_times_panel(project.rows_of(i), project.of(i), panel, mid,
                                    output + (project.begin(i) * positions + p) * kLine, positions * kLine, kLine);
    }
  }

  // Values of `count` images of an output channel at a position, normalised, with the residual.
  void finish_output(int64_t channel, const float* from, const float* residual, int64_t count, float* to) const {
    const Vector factor = broadcast(project_norm.factor[channel]), shift = broadcast(project_norm.shift[channel]);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t lanes = std::min(kLanes, count - i);
      Vector value = batch_norm::load_part(from + i, lanes) * factor + shift;
      if (residual != nullptr) value += batch_norm::load_part(residual + i, lanes);
      batch_norm::store_part(to + i, value, lanes);
    }
  }

  // The whole block on `count` images from `first`, all statistics known.
  void score(int64_t first, int64_t count) const {
    const int64_t mid = block.mid(), positions = block.out_positions(), images = block.problem.images;
    float* panels = reserved(scratch().panels, positions * mid * kLine);
    float* pooled = reserved(scratch().pooled, mid * kLine);
    float* output = reserved(scratch().output, positions * block.out * kLine);
    for_each_channel(first, count, [&](int64_t channel, const float* lines) {
      finish_depthwise(channel, lines, kLine, panels + channel * kLine, mid * kLine, pooled);
    });
    run_project(panels, pooled, output);
    for (int64_t c = 0; c < block.out; ++c)
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t line = (c * positions + p) * images + first;
        finish_output(c, output + (c * positions + p) * kLine, block.has_residual ? x + line : nullptr, count, y + line);
      }
  }
};

// ---- calibration --------------------------------------------------------------------------------------------------

// Mean and variance of w x per row of w over the first `images` images, from the mean and covariance of x. Differences
// are taken from the means of the first chunk, as a covariance found from large values would be lost in rounding.
inline void expansion_moments(ffi::ThreadPool& pool, const Block& block, const float* x, int64_t images, float* mean,
                              float* variance) {
  const int64_t in = block.in, positions = block.positions(), chunks = (images + kImages - 1) / kImages;
  const int64_t parts = std::min(pointwise::kParts, chunks), size = (in + 3) / 4 * 4 * in;  // see dot_products
  std::vector<float> origin(in);
  Floats first(positions * in * kLine);
  const auto counted = [&](int64_t i) { return std::min(kImages, images - i * kImages); };
  pack(x, in, positions, block.problem.images, 0, counted(0), first.data());
  for (int64_t c = 0; c < in; ++c) {
    double total = 0.0;
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t lane = 0; lane < counted(0); ++lane) total += first.data()[(p * in + c) * kLine + lane];
    origin[c] = static_cast<float>(total / (positions * counted(0)));
  }
  std::vector<double> products(parts * size, 0.0), sums(parts * in, 0.0);
  for_each(pool, parts, 1, [&](int64_t part) {
    float* input = reserved(scratch().input, positions * in * kLine);
    std::vector<float> found(size), totals(in * kLine);
    for (int64_t i = part * chunks / parts; i < (part + 1) * chunks / parts; ++i) {
      pack(x, in, positions, block.problem.images, i * kImages, counted(i), input);
      std::fill(found.begin(), found.end(), 0.0f);
      std::fill(totals.begin(), totals.end(), 0.0f);
      for (int64_t p = 0; p < positions; ++p)
        for (int64_t c = 0; c < in; ++c) {
          float* line = input + (p * in + c) * kLine;
          for (int64_t v = 0; v < kLine; v += kLanes) {
            const Vector centred = batch_norm::only(load(line + v) - origin[c], std::clamp<int64_t>(counted(i) - v, 0, kLanes));
            store(line + v, centred);
            store(totals.data() + c * kLine + v, load(totals.data() + c * kLine + v) + centred);
          }
        }
      pointwise::dot_products(input, in, input, in, positions * kLine, found.data());
      for (int64_t k = 0; k < size; ++k) products[part * size + k] += found[k];
      for (int64_t k = 0; k < in * kLine; ++k) sums[part * in + k / kLine] += totals[k];
    }
  });
  const double count = static_cast<double>(positions) * images;
  std::vector<double> apart(in, 0.0), covariance(in * in, 0.0);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < in; ++c) apart[c] += sums[part * in + c] / count;
  for (int64_t i = 0; i < in; ++i)
    for (int64_t j = 0; j < in; ++j) {
      for (int64_t part = 0; part < parts; ++part)
        covariance[i * in + j] += products[part * size + (i / 4 * in + j) * 4 + i % 4];
      covariance[i * in + j] = covariance[i * in + j] / count - apart[i] * apart[j];
    }
  for (int64_t m = 0; m < block.mid(); ++m) {
    const float* w = block.expand + m * in;
    double total = 0.0, square = 0.0;
    for (int64_t i = 0; i < in; ++i) {
      total += w[i] * (origin[i] + apart[i]);
      double along = 0.0;
      for (int64_t j = 0; j < in; ++j) along += covariance[i * in + j] * w[j];
      square += w[i] * along;
    }
    mean[m] = static_cast<float>(total);
    variance[m] = static_cast<float>(std::max(0.0, square));
  }
}

// The block on all images. The first `calibrating` of them set the norms, unless that is 0: then statistics are given.
template <Activation kActivation>
void evaluate(ffi::ThreadPool& pool, const Block& block, const float* x, float* y, int64_t calibrating,
              const Norm& expand, const Norm& depthwise, const Norm& project) {
  Plan<kActivation> plan(block, x, y);
  const int64_t mid = block.mid(), positions = block.out_positions(), images = block.problem.images;
  const int64_t chunks = (calibrating + kImages - 1) / kImages;
  const auto counted = [&](int64_t i) { return std::min(kImages, calibrating - i * kImages); };
  if (calibrating == 0) {
    for (const Norm* norm : {&expand, &depthwise, &project}) norm->take_given();
  } else if (block.has_expansion) {
    expansion_moments(pool, block, x, calibrating, expand.mean, expand.variance);
  }
  if (block.has_expansion) plan.expand_norm = expand.affine(block.epsilon);

  const int64_t chunk_floats = positions * mid * kLine;
  Floats kept(chunks * chunk_floats);  // depthwise outputs of the calibration images
  std::vector<ChunkMoments> found(chunks * std::max(mid, block.out));
  const auto merge_into = [&](const Norm& norm) {
    for (int64_t c = 0; c < norm.channels; ++c) {
      const Moments moments = merge(found.data() + c, norm.channels, chunks, calibrating, positions);
      norm.mean[c] = moments.mean;
      norm.variance[c] = moments.variance;
    }
  };
  if (calibrating > 0) {
    for_each(pool, chunks, 1, [&](int64_t i) {
      plan.for_each_channel(i * kImages, counted(i), [&](int64_t channel, const float* lines) {
        found[i * mid + channel] = moments_of(lines, positions, counted(i));
        plan.to_panels(lines, channel, kept.data() + i * chunk_floats);
      });
    });
    merge_into(depthwise);
  }
  plan.depthwise_norm = depthwise.affine(block.epsilon);
  if (calibrating > 0) {
    for_each(pool, chunks, 1, [&](int64_t i) {
      float* panels = kept.data() + i * chunk_floats;
      float* pooled = reserved(scratch().pooled, mid * kLine);
      float* output = reserved(scratch().output, positions * block.out * kLine);
      for (int64_t c = 0; c < mid; ++c)
        plan.finish_depthwise(c, panels + c * kLine, mid * kLine, panels + c * kLine, mid * kLine, pooled);
      plan.run_project(panels, pooled, output);
      for (int64_t c = 0; c < block.out; ++c) {
        const float* lines = output + c * positions * kLine;
        found[i * block.out + c] = moments_of(lines, positions, counted(i));
        for (int64_t p = 0; p < positions; ++p)
          std::memcpy(y + (c * positions + p) * images + i * kImages, lines + p * kLine, counted(i) * sizeof(float));
      }
    });
    merge_into(project);
  }
  plan.project_norm = project.affine(block.epsilon);
  if (calibrating > 0) {
    for_each(pool, block.out, 1, [&](int64_t c) {
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t line = (c * positions + p) * images;
        plan.finish_output(c, y + line, block.has_residual ? x + line : nullptr, calibrating, y + line);
      }
    });
  }
  const int64_t scored = images - calibrating;
  for_each(pool, (scored + kImages - 1) / kImages, 1, [&](int64_t i) {
    plan.score(calibrating + i * kImages, std::min(kImages, scored - i * kImages));
  });
}

}  // namespace hanax::mbconv
