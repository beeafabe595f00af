// An inverted-residual block (expand, depthwise, squeeze-excite, project, each with its batch norm) as one operation.
//
// The unit of work is a cache line of 16 images, a chunk, whose maps stay in the caches from one operator to the next. What
// goes through memory of the expanded channels is the depthwise outputs, since their statistics over all images must be
// known before the next operator, and on the way back their gradients. The expansion is computed anew on the way back, and
// its batch norm needs no pass of its own in either direction, since it is linear in the block's input x: the variance of
// w x is w Cov(x) w', and what the norm adds to the gradients follows from Cov(x) and the products of gradients and x that
// the weights' gradient consists of. Sums are made per chunk and added in the order of chunks, so they do not depend on the
// number of threads.

#pragma once

#include <cmath>
#include <vector>

#include "batch_norm.h"
#include "depthwise.h"
#include "pointwise.h"
#include "threads.h"

namespace hanax::mbconv {

using batch_norm::Activation;
using pointwise::padded;
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

// `lanes` images less `apart`; zero beyond.
inline Vector load_valid(const float* from, int64_t lanes, Vector apart) {
  if (lanes >= kLanes) return load(from) - apart;
  if (lanes <= 0) return Vector{};
  return batch_norm::only(batch_norm::load_part(from, lanes) - apart, lanes);
}

// Floats from a panel of `rows` lines to the next, where panels are read side by side: an odd number of lines, as with a
// power of two the same rows of all panels would share a few sets of the cache.
inline int64_t panel_step(int64_t rows) { return (rows | 1) * kLine; }

// ---- chunks -------------------------------------------------------------------------------------------------------

struct Scratch {
  Floats input, planes, linear, lines, panels, pooled, hidden, gates, output, given, dgates, dhidden, dpooled, sums;
  depthwise::Plane dy[pointwise::kRows];
};

inline Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

inline float* reserved(Floats& floats, int64_t count) {
  floats.reserve(count);
  return floats.data();
}

// panels[position][channel][16] (see panel_step) of `count` images from `first`, less the channel's `centre` if there is
// one; images beyond are zero.
inline void pack(const float* x, int64_t channels, int64_t positions, int64_t images, int64_t first, int64_t count,
                 const float* centre, float* panels) {
  for (int64_t c = 0; c < channels; ++c) {
    const float* from = x + c * positions * images + first;
    float* to = panels + c * kLine;
    const Vector apart = broadcast(centre == nullptr ? 0.0f : centre[c]);
    for (int64_t p = 0; p < positions; ++p, from += images, to += panel_step(channels)) {
      __builtin_prefetch(from + 8 * images);
      for (int64_t v = 0; v < kLine; v += kLanes) store(to + v, load_valid(from + v, count - v, apart));
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
  const float* centre = nullptr;  // of the input channels, taken from them; for training
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
      for (int64_t w = 0; w < p.width; ++w, input += panel_step(block.in)) {
        float* to = planes + (h + p.half()) * row_floats + (w + p.half()) * kLine;
        if (block.has_expansion) {
          pointwise::rows_times_panel(group.count, expand.of(i), input, block.in, to, plane, kLine, finish);
        } else {
          std::memcpy(to, input + group.first * kLine, kLine * sizeof(float));
        }
      }
  }

  // Calls use(group, lines) with each group's depthwise outputs, before their norm: [channel][out position][16].
  template <typename Use>
  void for_each_group(int64_t first, int64_t count, const Use& use) const {
    const auto& p = block.problem;
    Scratch& mine = scratch();
    float* input = reserved(mine.input, block.positions() * panel_step(block.in));
    pack(x, block.in, block.positions(), p.images, first, count, centre, input);
    const int64_t row_floats = (p.width + 2 * p.half()) * kLine, plane = (p.height + 2 * p.half()) * row_floats;
    float* planes = reserved(mine.planes, pointwise::kRows * plane);
    std::fill(planes, planes + pointwise::kRows * plane, 0.0f);
    float* lines = reserved(mine.lines, pointwise::kRows * block.out_positions() * kLine);
    for (int64_t i = 0; i < groups(); ++i) {
      const Group channels = group(i);
      fill_planes(channels, i, input, planes, plane, row_floats);
      for (int64_t c = 0; c < channels.count; ++c) {
        const depthwise::Taps taps = p.taps(block.kernels, channels.first + c);
        for (int64_t oh = 0; oh < p.out_height; ++oh) {
          const int64_t top = oh * p.stride;  // in the plane with its border
          row(planes + c * plane + top * row_floats, row_floats, taps, 0, p.size, p.out_width,
              lines + (c * p.out_height + oh) * p.out_width * kLine, kLine, kLine);
        }
      }
      use(channels, lines);
    }
  }

  NormAndActivate<kActivation> depthwise_finish(int64_t channel) const {
    return {depthwise_norm.factor.data() + channel, depthwise_norm.shift.data() + channel};
  }

  // A group's depthwise outputs to panels[out position][channel][16].
  void to_panels(const Group& group, const float* lines, float* panels) const {
    const int64_t positions = block.out_positions();
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t c = 0; c < group.count; ++c)
        for (int64_t v = 0; v < kLine; v += kLanes)
          store(panels + (p * block.mid() + group.first + c) * kLine + v, load(lines + (c * positions + p) * kLine + v));
  }

  // Likewise, normalised and activated; `pooled` gets the channels' sums over positions.
  void to_finished_panels(const Group& group, const float* lines, float* panels, float* pooled) const {
    const int64_t positions = block.out_positions();
    for (int64_t c = 0; c < group.count; ++c) {
      const auto finish = depthwise_finish(group.first + c);
      float* to = panels + (group.first + c) * kLine;
      Vector sums[kVectors] = {};
      for (int64_t p = 0; p < positions; ++p, to += block.mid() * kLine, lines += kLine)
        for (int64_t v = 0; v < kVectors; ++v) {
          const Vector value = finish(0, load(lines + v * kLanes));
          sums[v] += value;
          store(to + v * kLanes, value);
        }
      for (int64_t v = 0; v < kVectors; ++v) store(pooled + (group.first + c) * kLine + v * kLanes, sums[v]);
    }
  }

  // Adds a panel of depthwise outputs, normalised and activated, to `pooled`.
  void add_finished(const float* panel, float* pooled) const {
    for (int64_t c = 0; c < block.mid(); ++c)
      for (int64_t v = c * kLine; v < (c + 1) * kLine; v += kLanes)
        store(pooled + v, load(pooled + v) + depthwise_finish(c)(0, load(panel + v)));
  }

  // A panel of depthwise outputs, normalised, activated and gated where there are gates.
  void finish_panel(const float* panel, const float* gates, float* to) const {
    for (int64_t c = 0; c < block.mid(); ++c)
      for (int64_t v = c * kLine; v < (c + 1) * kLine; v += kLanes) {
        const Vector value = depthwise_finish(c)(0, load(panel + v));
        store(to + v, gates == nullptr ? value : value * load(gates + v));
      }
  }

  // Gates for a chunk of depthwise outputs; null without squeeze-excite.
  float* gates_of(const float* panels, float* pooled) const {
    if (!block.squeeze) return nullptr;
    std::fill(pooled, pooled + block.mid() * kLine, 0.0f);
    for (int64_t p = 0; p < block.out_positions(); ++p) add_finished(panels + p * block.mid() * kLine, pooled);
    return to_gates(pooled);
  }

  // Sums over positions, [channel][16], become means; squeeze-excite makes of them what is hidden, and then the gates.
  float* to_gates(float* pooled) const {
    float* hidden = reserved(scratch().hidden, block.squeeze * kLine);
    float* gates = reserved(scratch().gates, block.mid() * kLine);
    const float inverse = 1.0f / block.out_positions();
    for (int64_t i = 0; i < block.mid() * kLine; i += kLanes) store(pooled + i, load(pooled + i) * inverse);
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
                                  gates + se_expand.begin(i) * kLine, kLine, kLine, [bias](int64_t row, Vector v) {
                                    return batch_norm::clip(v + broadcast(bias[row]) + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
                                  });
    }
    return gates;
  }

  // The projection at a position, before its norm: output[channel][out position][16].
  void run_project(const float* panel, int64_t position, float* output) const {
    const int64_t positions = block.out_positions();
    for (int64_t i = 0; i < project.blocks; ++i)
      pointwise::rows_times_panel(project.rows_of(i), project.of(i), panel, block.mid(),
                                  output + (project.begin(i) * positions + position) * kLine, positions * kLine, kLine);
  }

  // Outputs of the projection of a chunk, normalised, with the residual.
  void write_output(const float* output, int64_t first, int64_t count) const {
    const int64_t positions = block.out_positions(), images = block.problem.images;
    for (int64_t c = 0; c < block.out; ++c) {
      const Vector factor = broadcast(project_norm.factor[c]), shift = broadcast(project_norm.shift[c]);
      for (int64_t p = 0; p < positions; ++p, output += kLine) {
        const int64_t line = (c * positions + p) * images + first;
        for (int64_t i = 0; i < count; i += kLanes) {
          const int64_t lanes = std::min(kLanes, count - i);
          Vector value = load(output + i) * factor + shift;
          if (block.has_residual) value += batch_norm::load_part(x + line + i, lanes);
          batch_norm::store_part(y + line + i, value, lanes);
        }
      }
    }
  }

  // The whole block on `count` images from `first`, all statistics known.
  void score(int64_t first, int64_t count) const {
    const int64_t mid = block.mid(), positions = block.out_positions();
    float* panels = reserved(scratch().panels, positions * mid * kLine);
    float* pooled = reserved(scratch().pooled, mid * kLine);
    float* output = reserved(scratch().output, positions * block.out * kLine);
    for_each_group(first, count, [&](const Group& group, const float* lines) {
      to_finished_panels(group, lines, panels, pooled);
    });
    const float* gates = block.squeeze ? to_gates(pooled) : nullptr;
    for (int64_t p = 0; p < positions; ++p) {
      float* panel = panels + p * mid * kLine;
      if (gates != nullptr)
        for (int64_t k = 0; k < mid * kLine; k += kLanes) store(panel + k, load(panel + k) * load(gates + k));
      run_project(panel, p, output);
    }
    write_output(output, first, count);
  }

  // Take `mean` from the input's channels: the norm after the expansion has no mean to take any more.
  void use_centre(const Norm& norm, const float* mean) {
    centre = mean;
    expand_norm = norm.affine(block.epsilon);
    std::copy(norm.row(1), norm.row(1) + norm.channels, expand_norm.shift.begin());
  }
};

// ---- forward ------------------------------------------------------------------------------------------------------

// Of a block's input over the images that set the norms.
struct InputMoments {
  std::vector<float> mean, covariance;  // covariance: in rows of padded(in), zero beyond
};

// along = w Cov: a row of weights with the covariance of the input.
inline void times_covariance(const float* w, int64_t in, const float* covariance, float* along) {
  const int64_t width = padded(in);
  for (int64_t k = 0; k < width; k += kLanes) {
    Vector sums = {};
    for (int64_t j = 0; j < in; ++j) sums += broadcast(w[j]) * load(covariance + j * width + k);
    store(along + k, sums);
  }
}

// Differences are taken from the means of the first chunk: a covariance found from large values would be lost in rounding.
inline InputMoments input_moments(ffi::ThreadPool& pool, const Block& block, const float* x, int64_t images) {
  const int64_t in = block.in, positions = block.positions(), chunks = (images + kImages - 1) / kImages;
  const int64_t parts = std::min(pointwise::kParts, chunks), size = (in + 3) / 4 * 4 * in;  // see dot_products
  const auto counted = [&](int64_t i) { return std::min(kImages, images - i * kImages); };
  std::vector<float> origin(in);
  Floats first(positions * panel_step(in));
  pack(x, in, positions, block.problem.images, 0, counted(0), nullptr, first.data());
  for (int64_t c = 0; c < in; ++c) {
    double total = 0.0;
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t lane = 0; lane < counted(0); ++lane) total += first.data()[p * panel_step(in) + c * kLine + lane];
    origin[c] = static_cast<float>(total / (positions * counted(0)));
  }
  std::vector<double> products(parts * size, 0.0), sums(parts * in, 0.0);
  for_each(pool, parts, 1, [&](int64_t part) {
    float* input = reserved(scratch().input, positions * panel_step(in));
    std::vector<float> found(size), totals(in * kLine);
    for (int64_t i = part * chunks / parts; i < (part + 1) * chunks / parts; ++i) {
      pack(x, in, positions, block.problem.images, i * kImages, counted(i), origin.data(), input);
      std::fill(found.begin(), found.end(), 0.0f);
      std::fill(totals.begin(), totals.end(), 0.0f);
      for (int64_t p = 0; p < positions; ++p)
        for (int64_t k = 0; k < in * kLine; k += kLanes)
          store(totals.data() + k, load(totals.data() + k) + load(input + p * panel_step(in) + k));
      pointwise::dot_products(input, in, panel_step(in), input, in, panel_step(in), positions, found.data());
      for (int64_t k = 0; k < size; ++k) products[part * size + k] += found[k];
      for (int64_t k = 0; k < in * kLine; ++k) sums[part * in + k / kLine] += totals[k];
    }
  });
  const double count = static_cast<double>(positions) * images;
  std::vector<double> apart(in, 0.0);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < in; ++c) apart[c] += sums[part * in + c] / count;
  InputMoments moments{std::vector<float>(in), std::vector<float>(in * padded(in), 0.0f)};
  for (int64_t i = 0; i < in; ++i) {
    moments.mean[i] = static_cast<float>(origin[i] + apart[i]);
    for (int64_t j = 0; j < in; ++j) {
      double product = 0.0;
      for (int64_t part = 0; part < parts; ++part) product += products[part * size + (i / 4 * in + j) * 4 + i % 4];
      moments.covariance[i * padded(in) + j] = static_cast<float>(product / count - apart[i] * apart[j]);
    }
  }
  return moments;
}

// Mean and variance of w x per row of w.
inline void expansion_moments(const Block& block, const InputMoments& moments, const Norm& norm) {
  const int64_t in = block.in;
  std::vector<float> along(padded(in));
  for (int64_t m = 0; m < block.mid(); ++m) {
    const float* w = block.expand + m * in;
    times_covariance(w, in, moments.covariance.data(), along.data());
    double total = 0.0, square = 0.0;
    for (int64_t i = 0; i < in; ++i) {
      total += static_cast<double>(w[i]) * moments.mean[i];
      square += static_cast<double>(w[i]) * along[i];
    }
    norm.mean[m] = static_cast<float>(total);
    norm.variance[m] = static_cast<float>(std::max(0.0, square));
  }
}

struct Norms {
  Norm expand, depthwise, project;
};

// The block on the first `images` images, which set the norms of the depthwise convolution and the projection; that of the
// expansion is set. `kept` gets the depthwise outputs, [chunk][out position][channel][16], and `projected` those of the
// projection, [chunk][channel][out position][16], both before their norms.
template <Activation kActivation>
void calibrate(ffi::ThreadPool& pool, Plan<kActivation>& plan, int64_t images, const Norms& norms, float* kept,
               float* projected) {
  const Block& block = plan.block;
  const int64_t mid = block.mid(), positions = block.out_positions(), chunks = (images + kImages - 1) / kImages;
  const int64_t chunk_floats = positions * mid * kLine, out_floats = positions * block.out * kLine;
  const auto counted = [&](int64_t i) { return std::min(kImages, images - i * kImages); };
  std::vector<ChunkMoments> found(chunks * std::max(mid, block.out));
  const auto merge_into = [&](const Norm& norm) {
    for (int64_t c = 0; c < norm.channels; ++c) {
      const Moments moments = merge(found.data() + c, norm.channels, chunks, images, positions);
      norm.mean[c] = moments.mean;
      norm.variance[c] = moments.variance;
    }
  };
  for_each(pool, chunks, 1, [&](int64_t i) {
    plan.for_each_group(i * kImages, counted(i), [&](const Group& group, const float* lines) {
      for (int64_t c = 0; c < group.count; ++c)
        found[i * mid + group.first + c] = moments_of(lines + c * positions * kLine, positions, counted(i));
      plan.to_panels(group, lines, kept + i * chunk_floats);
    });
  });
  merge_into(norms.depthwise);
  plan.depthwise_norm = norms.depthwise.affine(block.epsilon);
  for_each(pool, chunks, 1, [&](int64_t i) {
    const float* panels = kept + i * chunk_floats;
    float* panel = reserved(scratch().panels, mid * kLine);
    float* output = projected + i * out_floats;
    const float* gates = plan.gates_of(panels, reserved(scratch().pooled, mid * kLine));
    for (int64_t p = 0; p < positions; ++p) {
      plan.finish_panel(panels + p * mid * kLine, gates, panel);
      plan.run_project(panel, p, output);
    }
    for (int64_t c = 0; c < block.out; ++c)
      found[i * block.out + c] = moments_of(output + c * positions * kLine, positions, counted(i));
  });
  merge_into(norms.project);
  plan.project_norm = norms.project.affine(block.epsilon);
  for_each(pool, chunks, 1, [&](int64_t i) { plan.write_output(projected + i * out_floats, i * kImages, counted(i)); });
}

// The block on all images. The first `calibrating` of them set the norms, unless that is 0: then statistics are given.
template <Activation kActivation>
void evaluate(ffi::ThreadPool& pool, const Block& block, const float* x, float* y, int64_t calibrating,
              const Norms& norms) {
  Plan<kActivation> plan(block, x, y);
  const int64_t positions = block.out_positions(), chunks = (calibrating + kImages - 1) / kImages;
  if (calibrating == 0) {
    for (const Norm* norm : {&norms.expand, &norms.depthwise, &norms.project}) norm->take_given();
    plan.depthwise_norm = norms.depthwise.affine(block.epsilon);
    plan.project_norm = norms.project.affine(block.epsilon);
  } else if (block.has_expansion) {
    expansion_moments(block, input_moments(pool, block, x, calibrating), norms.expand);
  }
  if (block.has_expansion) plan.expand_norm = norms.expand.affine(block.epsilon);
  if (calibrating > 0) {
    Floats kept(chunks * positions * block.mid() * kLine), projected(chunks * positions * block.out * kLine);
    calibrate(pool, plan, calibrating, norms, kept.data(), projected.data());
  }
  const int64_t scored = block.problem.images - calibrating;
  for_each(pool, (scored + kImages - 1) / kImages, 1, [&](int64_t i) {
    plan.score(calibrating + i * kImages, std::min(kImages, scored - i * kImages));
  });
}

// What the way back needs besides the block's inputs: see `calibrate`. moments: those of the input, the mean last.
struct Kept {
  float* moments;
  float* depthwise;
  float* projected;
};

struct KeptFloats {  // of each part of Kept
  int64_t moments, depthwise, projected;

  explicit KeptFloats(const Block& block) {
    const int64_t lines = padded(block.problem.images) * block.out_positions();
    moments = (block.in + 1) * padded(block.in);
    depthwise = lines * block.mid();
    projected = lines * block.out;
  }
};

// The block in training: all images set the norms.
template <Activation kActivation>
void forward(ffi::ThreadPool& pool, const Block& block, const float* x, float* y, const Norms& norms, const Kept& kept) {
  Plan<kActivation> plan(block, x, y);
  const int64_t images = block.problem.images, in = block.in;
  if (block.has_expansion) {
    const InputMoments moments = input_moments(pool, block, x, images);
    std::copy(moments.covariance.begin(), moments.covariance.end(), kept.moments);
    std::copy(moments.mean.begin(), moments.mean.end(), kept.moments + in * padded(in));
    expansion_moments(block, moments, norms.expand);
    plan.use_centre(norms.expand, kept.moments + in * padded(in));
  }
  calibrate(pool, plan, images, norms, kept.depthwise, kept.projected);
}

// ---- backward -----------------------------------------------------------------------------------------------------

struct Gradients {  // norms: rows of scale and offset
  float *x, *expand, *expand_norm, *kernels, *depthwise_norm, *se_reduce, *se_reduce_bias, *se_expand, *se_expand_bias,
      *project, *project_norm;
};

// The gradient by what a batch norm is given: g -> factor (g - mean g - unit mean(g unit)), unit = (v - mean) inverse.
struct NormGradient {
  std::vector<float> factor, mean, inverse;  // per channel
  std::vector<double> by_offset, by_scale;   // sums of g and of g unit

  NormGradient(const Norm& norm, float epsilon)
      : factor(norm.channels), mean(norm.row(2), norm.row(2) + norm.channels), inverse(norm.channels),
        by_offset(norm.channels, 0.0), by_scale(norm.channels, 0.0) {
    for (int64_t c = 0; c < norm.channels; ++c) {
      inverse[c] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(norm.row(3)[c]) + epsilon));
      factor[c] = norm.row(0)[c] * inverse[c];
    }
  }
  void write(float* rows) const {
    std::copy(by_scale.begin(), by_scale.end(), rows);
    std::copy(by_offset.begin(), by_offset.end(), rows + by_scale.size());
  }
  struct Channel {
    Vector factor, from_mean, mean, from_unit;
    Vector operator()(Vector g, Vector value) const { return (g - from_mean) * factor - (value - mean) * from_unit; }
  };
  Channel of(int64_t c, double count) const {
    return {broadcast(factor[c]), broadcast(static_cast<float>(by_offset[c] / count)), broadcast(mean[c]),
            broadcast(static_cast<float>(factor[c] * inverse[c] * by_scale[c] / count))};
  }
};

inline Vector only_valid(Vector v, int64_t lanes) { return lanes >= kLanes ? v : batch_norm::only(v, lanes); }

inline float sum_of_line(const Vector* v) {
  float total = 0.0f;
  for (int64_t i = 0; i < kVectors; ++i) total += sum(v[i]);
  return total;
}

// Sums of products of given and seen rows over all columns, a part for each chunk: see dot_products.
class Products {
 public:
  Products(int64_t chunks, int64_t given, int64_t seen)
      : chunks_(chunks), given_(given), seen_(seen), size_((given + 3) / 4 * 4 * seen), sums_(chunks * padded(size_)) {}

  void clear(int64_t chunk) {
    std::fill(sums_.data() + chunk * padded(size_), sums_.data() + (chunk + 1) * padded(size_), 0.0f);
  }
  // Of panels that are panel_step apart.
  void add(int64_t chunk, const float* given, const float* seen, int64_t panels) {
    float* own = sums_.data() + chunk * padded(size_);
    const int64_t given_step = panel_step(given_), seen_step = panel_step(seen_);
    const int64_t block = std::max<int64_t>(4, pointwise::kCacheFloats / (given_step + seen_step));
    for (int64_t first = 0; first < panels; first += block)
      pointwise::dot_products(given + first * given_step, given_, given_step, seen + first * seen_step, seen_, seen_step,
                              std::min(block, panels - first), own);
  }

  // Their totals, [given][seen].
  void write(float* to) {
    float* total = sums_.data();
    for (int64_t chunk = 1; chunk < chunks_; ++chunk)
      for (int64_t k = 0; k < padded(size_); k += kLanes)
        store(total + k, load(total + k) + load(sums_.data() + chunk * padded(size_) + k));
    for (int64_t i = 0; i < given_; ++i)
      for (int64_t j = 0; j < seen_; ++j) to[i * seen_ + j] = total[(i / 4 * seen_ + j) * 4 + i % 4];
  }

 private:
  int64_t chunks_, given_, seen_, size_;
  Floats sums_;
};

template <Activation kActivation>
class Backward {
 public:
  // `plan` is that of the forward pass, with all norms set.
  Backward(ffi::ThreadPool& pool, const Plan<kActivation>& plan, const Norms& norms, const Kept& kept, const float* dy,
           const Gradients& to)
      : pool_(pool), plan_(plan), block_(plan.block), kept_(kept), dy_(dy), to_(to),
        expand_(norms.expand, block_.epsilon), depthwise_(norms.depthwise, block_.epsilon),
        project_(norms.project, block_.epsilon), chunks_((block_.problem.images + kImages - 1) / kImages),
        dlinear_(chunks_ * chunk_floats()) {}

  void run() {
    sum_over_outputs();
    project_.write(to_.project_norm);
    through_projection();
    depthwise_.write(to_.depthwise_norm);
    through_depthwise();
    if (block_.has_expansion) through_expansion_norm();
  }

 private:
  int64_t mid() const { return block_.mid(); }
  int64_t chunk_floats() const { return block_.out_positions() * mid() * kLine; }
  int64_t counted(int64_t i) const { return std::min(kImages, block_.problem.images - i * kImages); }
  double out_count() const { return static_cast<double>(block_.out_positions()) * block_.problem.images; }
  const float* depthwise_outputs(int64_t i) const { return kept_.depthwise + i * chunk_floats(); }

  // Sums of the projection's norm.
  void sum_over_outputs() {
    const int64_t positions = block_.out_positions(), images = block_.problem.images;
    for_each(pool_, block_.out, 1, [&](int64_t c) {
      for (int64_t i = 0; i < chunks_; ++i) {
        Vector offset[kVectors] = {}, scale[kVectors] = {};
        for (int64_t p = 0; p < positions; ++p)
          for (int64_t v = 0; v < kVectors; ++v) {
            const Vector g = load_valid(dy_ + (c * positions + p) * images + i * kImages + v * kLanes,
                                        counted(i) - v * kLanes, Vector{});
            const Vector value = load(kept_.projected + ((i * block_.out + c) * positions + p) * kLine + v * kLanes);
            offset[v] += g;
            scale[v] += g * ((value - project_.mean[c]) * project_.inverse[c]);
          }
        project_.by_offset[c] += sum_of_line(offset);
        project_.by_scale[c] += sum_of_line(scale);
      }
    });
  }

  // Of the projection, squeeze-excite and the depthwise activation; dlinear_ gets the gradient by what is activated.
  void through_projection() {
    const int64_t out = block_.out, squeeze = block_.squeeze, positions = block_.out_positions();
    const int64_t images = block_.problem.images, m = mid();
    const Weights transposed(block_.project, m, out, 1, m);
    const Weights reduce_transposed(block_.se_reduce, squeeze ? m : 0, squeeze, 1, m);
    const Weights expand_transposed(block_.se_expand, squeeze, m, 1, squeeze);
    Products project(chunks_, out, m), reduce(chunks_, squeeze, m), expand(chunks_, squeeze ? m : 0, squeeze);
    std::vector<float> reduce_bias(chunks_ * squeeze), expand_bias(squeeze ? chunks_ * m : 0);
    std::vector<float> by_offset(chunks_ * m), by_scale(chunks_ * m);
    std::vector<typename NormGradient::Channel> dprojected;
    for (int64_t o = 0; o < out; ++o) dprojected.push_back(project_.of(o, out_count()));

    const int64_t block = std::min(positions, std::max<int64_t>(2, pointwise::kCacheFloats / (m + out) / kLine));

    for_each(pool_, chunks_, 1, [&](int64_t i) {
      Scratch& mine = scratch();
      const float* kept = depthwise_outputs(i);
      float* dlinear = dlinear_.data() + i * chunk_floats();
      float* pooled = reserved(mine.pooled, m * kLine);
      const float* gates = plan_.gates_of(kept, pooled);
      float* given = reserved(mine.given, block * panel_step(out));
      float* panels = reserved(mine.panels, block * panel_step(m));
      float* dgates = reserved(mine.dgates, m * kLine);
      float* sums = reserved(mine.sums, 2 * m * kLine);
      std::fill(dgates, dgates + m * kLine, 0.0f);
      std::fill(sums, sums + 2 * m * kLine, 0.0f);
      project.clear(i);
      for (int64_t first = 0; first < positions; first += block) {
        const int64_t count = std::min(block, positions - first);
        for (int64_t o = 0; o < out; ++o)
          for (int64_t p = 0; p < count; ++p)
            for (int64_t v = 0; v < kLine; v += kLanes) {
              const int64_t line = o * positions + first + p;
              const Vector g = load_valid(dy_ + line * images + i * kImages + v, counted(i) - v, Vector{});
              const Vector value = load(kept_.projected + (i * out * positions + line) * kLine + v);
              store(given + p * panel_step(out) + o * kLine + v, only_valid(dprojected[o](g, value), counted(i) - v));
            }
        for (int64_t p = 0; p < count; ++p) {
          const float* values = kept + (first + p) * m * kLine;
          float* dpanel = dlinear + (first + p) * m * kLine;
          for (int64_t b = 0; b < transposed.blocks; ++b)
            pointwise::rows_times_panel(transposed.rows_of(b), transposed.of(b), given + p * panel_step(out), out,
                                        dpanel + transposed.begin(b) * kLine, kLine, kLine);
          plan_.finish_panel(values, gates, panels + p * panel_step(m));
          if (squeeze) {
            add_dgates(values, dpanel, dgates);
          } else {
            through_activation(values, nullptr, nullptr, dpanel, sums);
          }
        }
        project.add(i, given, panels, count);
      }
      if (squeeze) {
        const float* hidden = mine.hidden.data();
        float* dhidden = reserved(mine.dhidden, squeeze * kLine);
        float* dpooled = reserved(mine.dpooled, m * kLine);
        through_gates(hidden, gates, dgates, dhidden, dpooled, reduce_transposed, expand_transposed);
        reduce.clear(i);
        reduce.add(i, dhidden, pooled, 1);
        expand.clear(i);
        expand.add(i, dgates, hidden, 1);
        for (int64_t c = 0; c < squeeze; ++c) reduce_bias[i * squeeze + c] = line_sum(dhidden + c * kLine);
        for (int64_t c = 0; c < m; ++c) expand_bias[i * m + c] = line_sum(dgates + c * kLine);
        for (int64_t p = 0; p < positions; ++p)
          through_activation(kept + p * m * kLine, gates, dpooled, dlinear + p * m * kLine, sums);
      }
      for (int64_t c = 0; c < m; ++c) {
        by_offset[i * m + c] = line_sum(sums + c * kLine);
        by_scale[i * m + c] = line_sum(sums + (m + c) * kLine);
      }
    });

    project.write(to_.project);
    reduce.write(to_.se_reduce);
    expand.write(to_.se_expand);
    std::fill(to_.se_reduce_bias, to_.se_reduce_bias + squeeze, 0.0f);
    std::fill(to_.se_expand_bias, to_.se_expand_bias + (squeeze ? m : 0), 0.0f);
    for (int64_t i = 0; i < chunks_; ++i) {
      for (int64_t c = 0; c < squeeze; ++c) to_.se_reduce_bias[c] += reduce_bias[i * squeeze + c];
      for (int64_t c = 0; c < m; ++c) {
        if (squeeze) to_.se_expand_bias[c] += expand_bias[i * m + c];
        depthwise_.by_offset[c] += by_offset[i * m + c];
        depthwise_.by_scale[c] += by_scale[i * m + c];
      }
    }
  }

  // dgates += the gradient of a gated panel times what was gated.
  void add_dgates(const float* values, const float* dpanel, float* dgates) const {
    for (int64_t c = 0; c < mid(); ++c)
      for (int64_t v = c * kLine; v < (c + 1) * kLine; v += kLanes)
        store(dgates + v, load(dgates + v) + load(dpanel + v) * plan_.depthwise_finish(c)(0, load(values + v)));
  }

  // Makes the gradient by a panel of the projection's input that by what is activated; adds it, and it times the
  // normalised values, to two panels of `sums`.
  void through_activation(const float* values, const float* gates, const float* dpooled, float* dpanel,
                          float* sums) const {
    const int64_t m = mid();
    for (int64_t c = 0; c < m; ++c) {
      const Vector factor = broadcast(plan_.depthwise_norm.factor[c]), shift = broadcast(plan_.depthwise_norm.shift[c]);
      const Vector mean = broadcast(depthwise_.mean[c]), inverse = broadcast(depthwise_.inverse[c]);
      for (int64_t v = c * kLine; v < (c + 1) * kLine; v += kLanes) {
        const Vector value = load(values + v);
        Vector g = load(dpanel + v);
        if (gates != nullptr) g = g * load(gates + v) + load(dpooled + v);
        g *= batch_norm::slope<kActivation>(value * factor + shift);
        store(dpanel + v, g);
        store(sums + v, load(sums + v) + g);
        store(sums + m * kLine + v, load(sums + m * kLine + v) + g * ((value - mean) * inverse));
      }
    }
  }

  static float line_sum(const float* line) {
    float total = 0.0f;
    for (int64_t v = 0; v < kLine; v += kLanes) total += sum(load(line + v));
    return total;
  }

  // dgates and dhidden become gradients by what squeeze-excite activates; dpooled: by each position of its input.
  void through_gates(const float* hidden, const float* gates, float* dgates, float* dhidden, float* dpooled,
                     const Weights& reduce_transposed, const Weights& expand_transposed) const {
    const Vector zero = {}, one = broadcast(1.0f), sixth = broadcast(1.0f / 6.0f);
    for (int64_t k = 0; k < mid() * kLine; k += kLanes) {
      const Vector gate = load(gates + k);
      store(dgates + k, (gate > zero) & (gate < one) ? load(dgates + k) * sixth : zero);
    }
    for (int64_t b = 0; b < expand_transposed.blocks; ++b)
      pointwise::rows_times_panel(expand_transposed.rows_of(b), expand_transposed.of(b), dgates, mid(),
                                  dhidden + expand_transposed.begin(b) * kLine, kLine, kLine);
    for (int64_t k = 0; k < block_.squeeze * kLine; k += kLanes)
      store(dhidden + k, load(hidden + k) > zero ? load(dhidden + k) : zero);
    const Vector inverse = broadcast(1.0f / block_.out_positions());
    for (int64_t b = 0; b < reduce_transposed.blocks; ++b)
      pointwise::rows_times_panel(reduce_transposed.rows_of(b), reduce_transposed.of(b), dhidden, block_.squeeze,
                                  dpooled + reduce_transposed.begin(b) * kLine, kLine, kLine,
                                  [inverse](int64_t, Vector v) { return v * inverse; });
  }

  // Of the depthwise convolution and the expansion but for its norm. dx gets all but what comes through that norm.
  void through_depthwise() {
    const auto& p = block_.problem;
    const int64_t positions = block_.positions(), m = mid(), in = block_.in, taps = p.size * p.size;
    depthwise::Problem line_problem = p;  // of one chunk
    line_problem.images = kLine;
    const depthwise::AccumulateRow accumulate = depthwise::accumulate_row_for(p.size, p.stride);
    const int64_t row_floats = (p.width + 2 * p.half()) * kLine, plane = (p.height + 2 * p.half()) * row_floats;
    if (block_.has_expansion) products_ = std::make_unique<Products>(chunks_, m, in);
    std::vector<float> dkernels(chunks_ * m * taps), by_offset(chunks_ * m);
    std::vector<float> scaled(block_.has_expansion ? m * in : 0);
    for (int64_t k = 0; k < static_cast<int64_t>(scaled.size()); ++k)
      scaled[k] = block_.expand[k] * expand_.factor[k / in];
    const Weights transposed(scaled.data(), block_.has_expansion ? in : 0, m, 1, in);
    std::vector<typename NormGradient::Channel> doutputs;
    for (int64_t c = 0; c < m; ++c) doutputs.push_back(depthwise_.of(c, out_count()));

    for_each(pool_, chunks_, 1, [&](int64_t i) {
      Scratch& mine = scratch();
      const int64_t first = i * kImages, count = counted(i);
      float* input = reserved(mine.input, positions * panel_step(in));
      pack(plan_.x, in, positions, p.images, first, count, plan_.centre, input);
      float* planes = reserved(mine.planes, pointwise::kRows * plane);
      std::fill(planes, planes + pointwise::kRows * plane, 0.0f);
      float* linear = reserved(mine.linear, pointwise::kRows * positions * kLine);
      float* lines = reserved(mine.lines, pointwise::kRows * positions * kLine);
      float* dpanels = reserved(mine.panels, positions * panel_step(m));
      for (depthwise::Plane& dy : mine.dy) dy.shape(p.out_height, p.out_width, p.half());
      for (int64_t g = 0; g < plan_.groups(); ++g) {
        const Group group = plan_.group(g);
        fill_planes(group, g, input, planes, plane, row_floats, linear);
        fill_gradients(doutputs.data() + group.first, i, group, mine.dy);
        for (int64_t c = 0; c < group.count; ++c) {
          const int64_t channel = group.first + c;
          float* own = lines + c * positions * kLine;
          depthwise::input_gradient(line_problem, mine.dy[c], p.centre(block_.kernels, channel), 0, kLine, own);
          Vector sums[depthwise::kMaxSize * depthwise::kMaxSize] = {};
          for (int64_t oh = 0; oh < p.out_height; ++oh)
            for (int64_t a = 0; a < p.size; ++a)
              accumulate(planes + c * plane + (oh * p.stride + a) * row_floats, mine.dy[c].at(oh, 0), p.out_width,
                         sums + a * p.size);
          for (int64_t t = 0; t < taps; ++t) dkernels[(i * m + channel) * taps + t] = sum(sums[t]);
          if (!block_.has_expansion)
            for (int64_t q = 0; q < positions; ++q) {
              const int64_t line = (channel * positions + q) * p.images + first;
              add_residual(own + q * kLine, line, count, to_.x + line);
            }
        }
        if (block_.has_expansion) {
          Vector offset[pointwise::kRows][kVectors] = {};
          for (int64_t q = 0; q < positions; ++q)
            for (int64_t c = 0; c < group.count; ++c)
              for (int64_t v = 0; v < kVectors; ++v) {
                const int64_t at = (c * positions + q) * kLine + v * kLanes;
                const Vector d = load(lines + at) * batch_norm::slope<kActivation>(load(linear + at));
                offset[c][v] += d;
                store(dpanels + q * panel_step(m) + (group.first + c) * kLine + v * kLanes, d);
              }
          for (int64_t c = 0; c < group.count; ++c) by_offset[i * m + group.first + c] = sum_of_line(offset[c]);
        }
      }
      if (!block_.has_expansion) return;
      products_->clear(i);
      products_->add(i, dpanels, input, positions);
      for (int64_t q = 0; q < positions; ++q)
        for (int64_t b = 0; b < transposed.blocks; ++b)
          pointwise::rows_times_panel(transposed.rows_of(b), transposed.of(b), dpanels + q * panel_step(m), m,
                                      to_.x + (transposed.begin(b) * positions + q) * p.images + first,
                                      positions * p.images, count);
    });

    const int64_t all = p.largest * p.largest, margin = (p.largest - p.size) / 2;
    std::fill(to_.kernels, to_.kernels + m * all, 0.0f);
    for (int64_t i = 0; i < chunks_; ++i)
      for (int64_t c = 0; c < m; ++c) {
        for (int64_t t = 0; t < taps; ++t)
          to_.kernels[c * all + (margin + t / p.size) * p.largest + margin + t % p.size] +=
              dkernels[(i * m + c) * taps + t];
        if (block_.has_expansion) expand_.by_offset[c] += by_offset[i * m + c];
      }
  }

  void add_residual(const float* from, int64_t line, int64_t count, float* to) const {
    for (int64_t v = 0; v < count; v += kLanes) {
      const int64_t lanes = std::min(kLanes, count - v);
      Vector value = load(from + v);
      if (block_.has_residual) value += batch_norm::load_part(dy_ + line + v, lanes);
      batch_norm::store_part(to + v, value, lanes);
    }
  }

  // As Plan::fill_planes; `linear` gets what is activated, [channel][position][16].
  void fill_planes(const Group& group, int64_t g, const float* input, float* planes, int64_t plane, int64_t row_floats,
                   float* linear) const {
    const auto& p = block_.problem;
    if (!block_.has_expansion) return plan_.fill_planes(group, g, input, planes, plane, row_floats);
    const int64_t positions = block_.positions();
    const NormAndActivate<batch_norm::kNone> finish{plan_.expand_norm.factor.data() + group.first,
                                                    plan_.expand_norm.shift.data() + group.first};
    for (int64_t q = 0; q < positions; ++q)
      pointwise::rows_times_panel(group.count, plan_.expand.of(g), input + q * panel_step(block_.in), block_.in,
                                  linear + q * kLine, positions * kLine, kLine, finish);
    for (int64_t c = 0; c < group.count; ++c)
      for (int64_t h = 0; h < p.height; ++h) {
        const float* from = linear + (c * positions + h * p.width) * kLine;
        float* to = planes + c * plane + (h + p.half()) * row_floats + p.half() * kLine;
        for (int64_t k = 0; k < p.width * kLine; k += kLanes)
          store(to + k, batch_norm::activate<kActivation>(load(from + k)));
      }
  }

  // The gradient by a group's depthwise outputs.
  void fill_gradients(const typename NormGradient::Channel* doutputs, int64_t i, const Group& group,
                      depthwise::Plane* planes) const {
    const auto& p = block_.problem;
    const float* value = depthwise_outputs(i) + group.first * kLine;
    const float* g = dlinear_.data() + i * chunk_floats() + group.first * kLine;
    for (int64_t h = 0; h < p.out_height; ++h)
      for (int64_t w = 0; w < p.out_width; ++w, value += mid() * kLine, g += mid() * kLine)
        for (int64_t c = 0; c < group.count; ++c)
          for (int64_t v = 0; v < kLine; v += kLanes)
            store(planes[c].at(h, w) + v,
                  only_valid(doutputs[c](load(g + c * kLine + v), load(value + c * kLine + v)), counted(i) - v));
  }

  // What comes through the expansion's norm: see the top.
  void through_expansion_norm() {
    const int64_t in = block_.in, m = mid(), positions = block_.positions(), images = block_.problem.images;
    const double count = static_cast<double>(positions) * images;
    const int64_t width = padded(in);
    std::vector<float> products(m * in), from_x(in * width, 0.0f), along(width), w(width, 0.0f);
    std::vector<double> constant(in, 0.0);
    products_->write(products.data());
    for (int64_t c = 0; c < m; ++c) {
      std::copy(block_.expand + c * in, block_.expand + (c + 1) * in, w.begin());
      const double inverse = expand_.inverse[c], factor = expand_.factor[c];
      double by_scale = 0.0;
      for (int64_t k = 0; k < in; ++k) by_scale += static_cast<double>(products[c * in + k]) * w[k];
      expand_.by_scale[c] = by_scale * inverse;
      times_covariance(w.data(), in, kept_.moments, along.data());
      const float from_unit = static_cast<float>(factor * expand_.by_scale[c] * inverse);
      for (int64_t k = 0; k < in; ++k) {
        to_.expand[c * in + k] = expand_.factor[c] * products[c * in + k] - from_unit * along[k];
        constant[k] -= w[k] * factor * expand_.by_offset[c] / count;
        const Vector apart = broadcast(static_cast<float>(w[k] * from_unit / count));
        for (int64_t j = 0; j < width; j += kLanes)
          store(from_x.data() + k * width + j, load(from_x.data() + k * width + j) - apart * load(w.data() + j));
      }
    }
    expand_.write(to_.expand_norm);
    const Weights weights(from_x.data(), in, in, width, 1);
    for_each(pool_, chunks_, 1, [&](int64_t i) {
      float* input = reserved(scratch().input, positions * panel_step(in));
      pack(plan_.x, in, positions, images, i * kImages, counted(i), plan_.centre, input);
      float* output = reserved(scratch().output, in * kLine);
      for (int64_t q = 0; q < positions; ++q) {
        for (int64_t b = 0; b < weights.blocks; ++b)
          pointwise::rows_times_panel(weights.rows_of(b), weights.of(b), input + q * panel_step(in), in,
                                      output + weights.begin(b) * kLine, kLine, kLine);
        for (int64_t c = 0; c < in; ++c) {
          const int64_t line = (c * positions + q) * images + i * kImages;
          const Vector shift = broadcast(static_cast<float>(constant[c]));
          for (int64_t v = 0; v < kLine; v += kLanes) {
            const Vector rest = load(output + c * kLine + v) + shift +
                                load_valid(to_.x + line + v, counted(i) - v, Vector{});
            store(output + c * kLine + v, rest);
          }
          add_residual(output + c * kLine, line, counted(i), to_.x + line);
        }
      }
    });
  }

  ffi::ThreadPool& pool_;
  const Plan<kActivation>& plan_;
  const Block& block_;
  const Kept& kept_;
  const float* dy_;
  const Gradients& to_;
  NormGradient expand_, depthwise_, project_;
  int64_t chunks_;
  Floats dlinear_;                    // gradients by what is activated after the depthwise convolution, as kept_.depthwise
  std::unique_ptr<Products> products_;  // of the gradients by what is activated after the expansion with the input
};

// Gradients of `forward` for `dy`. The norms' statistics are given.
template <Activation kActivation>
void backward(ffi::ThreadPool& pool, const Block& block, const float* x, const float* dy, const Norms& norms,
              const Kept& kept, const Gradients& to) {
  Plan<kActivation> plan(block, x, nullptr);
  for (const Norm* norm : {&norms.expand, &norms.depthwise, &norms.project}) norm->take_given();
  if (block.has_expansion) plan.use_centre(norms.expand, kept.moments + block.in * padded(block.in));
  plan.depthwise_norm = norms.depthwise.affine(block.epsilon);
  Backward<kActivation>(pool, plan, norms, kept, dy, to).run();
}

}  // namespace hanax::mbconv
