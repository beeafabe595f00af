// Depthwise convolution, forward and backward.
//
// Layout C H W N, images innermost: a vector holds the same pixel of several images, so no shuffles and no borders within
// a vector. A channel is one unit of work and is always summed in the same order: the result does not depend on the
// number of threads. Per channel and block of images the plane is copied once into a scratch with a border of zeros that
// fits the first or second cache; the loops over outputs and taps then run without conditions, sums in registers.
//
// The kernel size is data: the weights come at the largest size and the centre of `size` x `size` taps is used.

#pragma once

#include <array>
#include <utility>

#include "threads.h"

namespace hanax::depthwise {

constexpr int64_t kImages = kLine;  // images in a block: a cache line of each position
constexpr int64_t kMaxSize = 7;
using Sizes = std::make_integer_sequence<int, kMaxSize>;  // each of the sizes less 1

// ---- a plane of one channel and one block of images ---------------------------------------------------------------

// [height][width][kImages] floats in the middle of zeros.
struct Plane {
  Floats values;
  int64_t height = 0, width = 0, border = 0;

  int64_t row_stride() const { return (width + 2 * border) * kImages; }
  float* at(int64_t row, int64_t column) {
    return values.data() + (row + border) * row_stride() + (column + border) * kImages;
  }
  void shape(int64_t new_height, int64_t new_width, int64_t new_border) {
    if (new_height == height && new_width == width && new_border == border) return;
    height = new_height, width = new_width, border = new_border;
    const int64_t floats = (height + 2 * border) * row_stride();
    values.reserve(floats);
    std::fill(values.data(), values.data() + floats, 0.0f);
  }
  void fill(const float* channel, int64_t images, int64_t first, int64_t count) {
    for (int64_t row = 0; row < height; ++row) {
      float* to = at(row, 0);
      const float* from = channel + row * width * images + first;
      for (int64_t column = 0; column < width; ++column, to += kImages, from += images) {
        if (count == kImages) {
          __builtin_prefetch(from + kImages);  // the next block of images
          for (int64_t lane = 0; lane < kImages; lane += kLanes) store(to + lane, load(from + lane));
        } else {
          std::memcpy(to, from, count * sizeof(float));
          std::memset(to + count, 0, (kImages - count) * sizeof(float));
        }
      }
    }
  }
};

// ---- correlation of a plane with taps ------------------------------------------------------------------------------

struct Taps {  // taps[row][column], compact
  int64_t rows = 0, columns = 0;
  float values[kMaxSize * kMaxSize];
};

// kOutputs neighbouring outputs of one row, all kImages images: sums[j] over taps in rows [first, last).
template <int kColumns, int kStride, int kOutputs>
inline void outputs(const float* source, int64_t row_stride, const Taps& taps, int64_t first, int64_t last,
                    Vector (&sums)[kOutputs][kVectors]) {
  for (int j = 0; j < kOutputs; ++j)
    for (int v = 0; v < kVectors; ++v) sums[j][v] = Vector{};
  for (int64_t a = first; a < last; ++a) {
    const float* row = source + a * row_stride;
    Vector weights[kColumns];
    for (int b = 0; b < kColumns; ++b) weights[b] = broadcast(taps.values[a * kColumns + b]);
#pragma GCC unroll 8
    for (int b = 0; b < kColumns; ++b)
#pragma GCC unroll 8
      for (int j = 0; j < kOutputs; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          sums[j][v] += weights[b] * load(row + (j * kStride + b) * kImages + v * kLanes);
  }
}

template <int kColumns, int kStride, int kOutputs>
inline int64_t segments(const float* source, int64_t row_stride, const Taps& taps, int64_t first, int64_t last, int64_t j,
                        int64_t count, float* out, int64_t out_step, int64_t images) {
  for (; j + kOutputs <= count; j += kOutputs) {
    Vector sums[kOutputs][kVectors];
    outputs<kColumns, kStride, kOutputs>(source + j * kStride * kImages, row_stride, taps, first, last, sums);
    if (images == kImages) {
      for (int i = 0; i < kOutputs; ++i)
        for (int v = 0; v < kVectors; ++v) store(out + (j + i) * out_step + v * kLanes, sums[i][v]);
    } else {
      for (int i = 0; i < kOutputs; ++i) std::memcpy(out + (j + i) * out_step, sums[i], images * sizeof(float));
    }
  }
  return j;
}

// One row of `count` outputs, of which the first `images` (1 ... kImages) images are written.
template <int kColumns, int kStride>
void correlate_row(const float* source, int64_t row_stride, const Taps& taps, int64_t first, int64_t last, int64_t count,
                   float* out, int64_t out_step, int64_t images) {
  constexpr int kMost = 8 / kVectors;
  int64_t j = segments<kColumns, kStride, kMost>(source, row_stride, taps, first, last, 0, count, out, out_step, images);
  segments<kColumns, kStride, 1>(source, row_stride, taps, first, last, j, count, out, out_step, images);
}

using CorrelateRow = void (*)(const float*, int64_t, const Taps&, int64_t, int64_t, int64_t, float*, int64_t, int64_t);

template <int kStride, int... kLess>
constexpr std::array<CorrelateRow, kMaxSize> correlate_rows(std::integer_sequence<int, kLess...>) {
  return {correlate_row<kLess + 1, kStride>...};
}

inline CorrelateRow correlate_row_for(int64_t columns, int64_t stride) {
  static constexpr std::array<CorrelateRow, kMaxSize> by_stride[] = {correlate_rows<1>(Sizes()), correlate_rows<2>(Sizes())};
  return by_stride[stride - 1][columns - 1];
}

// Gradient of one row of taps, as vectors of partial sums: sums[b] += given[j] * source[j * kStride + b] over outputs j.
template <int kColumns, int kStride>
void accumulate_row(const float* source, const float* given, int64_t count, Vector* sums) {
  Vector own[kColumns];
  for (int b = 0; b < kColumns; ++b) own[b] = sums[b];
  for (int64_t j = 0; j < count; ++j, given += kImages, source += kStride * kImages) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vector gradient = load(given + v * kLanes);
#pragma GCC unroll 8
      for (int b = 0; b < kColumns; ++b) own[b] += gradient * load(source + b * kImages + v * kLanes);
    }
  }
  for (int b = 0; b < kColumns; ++b) sums[b] = own[b];
}

using AccumulateRow = void (*)(const float*, const float*, int64_t, Vector*);

template <int kStride, int... kLess>
constexpr std::array<AccumulateRow, kMaxSize> accumulate_rows(std::integer_sequence<int, kLess...>) {
  return {accumulate_row<kLess + 1, kStride>...};
}

inline AccumulateRow accumulate_row_for(int64_t columns, int64_t stride) {
  static constexpr std::array<AccumulateRow, kMaxSize> by_stride[] = {accumulate_rows<1>(Sizes()),
                                                                      accumulate_rows<2>(Sizes())};
  return by_stride[stride - 1][columns - 1];
}

// ---- one channel -----------------------------------------------------------------------------------------------------

struct Problem {
  int64_t channels, height, width, images, out_height, out_width, largest, size, stride;
  int64_t half() const { return size / 2; }
  int64_t plane() const { return height * width * images; }
  int64_t out_plane() const { return out_height * out_width * images; }
  const float* centre(const float* weights, int64_t channel) const {  // of the taps in use, in rows of `largest`
    const int64_t margin = (largest - size) / 2;
    return weights + (channel * largest + margin) * largest + margin;
  }
  Taps taps(const float* weights, int64_t channel) const {
    Taps taps;
    taps.rows = taps.columns = size;
    for (int64_t a = 0; a < size; ++a)
      std::memcpy(taps.values + a * size, centre(weights, channel) + a * largest, size * sizeof(float));
    return taps;
  }
};

struct Scratch {
  Plane x, dy;
};

inline Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

inline void forward_channel(const Problem& p, int64_t channel, const float* x, const float* weights, float* y) {
  Plane& plane = scratch().x;
  plane.shape(p.height, p.width, p.half());
  const Taps taps = p.taps(weights, channel);
  const CorrelateRow row = correlate_row_for(p.size, p.stride);
  for (int64_t image = 0; image < p.images; image += kImages) {
    const int64_t count = std::min(kImages, p.images - image);
    plane.fill(x + channel * p.plane(), p.images, image, count);
    for (int64_t oh = 0; oh < p.out_height; ++oh) {
      const int64_t top = oh * p.stride - p.half();
      const int64_t first = std::max<int64_t>(0, -top), last = std::min(p.size, p.height - top);
      float* out = y + channel * p.out_plane() + oh * p.out_width * p.images + image;
      row(plane.at(top, -p.half()), plane.row_stride(), taps, first, last, p.out_width, out, p.images, count);
    }
  }
}

// dx of stride s: the positions of one parity of rows and of columns see every s-th tap, and each such part is a dense
// correlation of dy with those taps, flipped.
inline void input_gradient(const Problem& p, Plane& dy, const float* centre, int64_t image, int64_t count, float* dx) {
  for (int64_t row_parity = 0; row_parity < p.stride; ++row_parity) {
    for (int64_t column_parity = 0; column_parity < p.stride; ++column_parity) {
      const int64_t a0 = (row_parity + p.half()) % p.stride, b0 = (column_parity + p.half()) % p.stride;
      Taps taps;
      taps.rows = (p.size - a0 + p.stride - 1) / p.stride;
      taps.columns = (p.size - b0 + p.stride - 1) / p.stride;
      const int64_t n_columns = (p.width - column_parity + p.stride - 1) / p.stride;
      if (taps.rows <= 0 || taps.columns <= 0) {  // a 1x1 kernel of stride 2 never saw these positions
        for (int64_t ih = row_parity; ih < p.height; ih += p.stride)
          for (int64_t iw = column_parity; iw < p.width; iw += p.stride)
            std::memset(dx + (ih * p.width + iw) * p.images + image, 0, count * sizeof(float));
        continue;
      }
      for (int64_t a = 0; a < taps.rows; ++a)
        for (int64_t b = 0; b < taps.columns; ++b)
          taps.values[(taps.rows - 1 - a) * taps.columns + (taps.columns - 1 - b)] =
              centre[(a0 + a * p.stride) * p.largest + b0 + b * p.stride];
      const CorrelateRow row = correlate_row_for(taps.columns, 1);
      const int64_t left = (column_parity + p.half() - b0) / p.stride - (taps.columns - 1);
      for (int64_t ih = row_parity; ih < p.height; ih += p.stride) {
        const int64_t top = (ih + p.half() - a0) / p.stride - (taps.rows - 1);
        const int64_t first = std::max<int64_t>(0, -top), last = std::min(taps.rows, p.out_height - top);
        float* out = dx + (ih * p.width + column_parity) * p.images + image;
        row(dy.at(top, left), dy.row_stride(), taps, first, last, n_columns, out, p.stride * p.images, count);
      }
    }
  }
}

inline void backward_channel(const Problem& p, int64_t channel, const float* x, const float* weights, const float* dy,
                             float* dx, float* dweights) {
  Plane& seen = scratch().x;
  Plane& given = scratch().dy;
  seen.shape(p.height, p.width, p.half());
  given.shape(p.out_height, p.out_width, p.half());
  const float* centre = p.centre(weights, channel);
  const AccumulateRow accumulate = accumulate_row_for(p.size, p.stride);
  Vector sums[kMaxSize * kMaxSize] = {};
  for (int64_t image = 0; image < p.images; image += kImages) {
    const int64_t count = std::min(kImages, p.images - image);
    seen.fill(x + channel * p.plane(), p.images, image, count);
    given.fill(dy + channel * p.out_plane(), p.images, image, count);
    input_gradient(p, given, centre, image, count, dx + channel * p.plane());
    for (int64_t oh = 0; oh < p.out_height; ++oh) {
      const int64_t top = oh * p.stride - p.half();
      for (int64_t a = std::max<int64_t>(0, -top); a < std::min(p.size, p.height - top); ++a)
        accumulate(seen.at(top + a, -p.half()), given.at(oh, 0), p.out_width, sums + a * p.size);
    }
  }
  float* all = dweights + channel * p.largest * p.largest;
  std::fill(all, all + p.largest * p.largest, 0.0f);
  const int64_t margin = (p.largest - p.size) / 2;
  for (int64_t a = 0; a < p.size; ++a)
    for (int64_t b = 0; b < p.size; ++b) all[(margin + a) * p.largest + margin + b] = sum(sums[a * p.size + b]);
}

}  // namespace hanax::depthwise
