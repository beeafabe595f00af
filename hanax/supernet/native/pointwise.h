// 1x1 convolution: y[o, m] = sum over k of w[o, k] x[k, m], for few channels and very many columns m = (h, w, n).
//
// A block of columns is packed once into panels of one cache line's width, since rows lie a power of two apart and would
// share cache sets; then blocks of up to 6 x 16 outputs are summed in registers. The weight gradient keeps 4 x 3 dot
// products over a block in registers. Its sums are made per part of the columns and added in a fixed order: the number of
// parts does not depend on that of threads, so neither does the result.

#pragma once

#include "threads.h"

namespace hanax::pointwise {

constexpr int64_t kRows = 6;                   // outputs of a block
constexpr int64_t kCacheFloats = 64 * 1024;    // of packed columns at a time: they stay in a second-level cache
constexpr int64_t kFewestColumns = 64;         // of a block, where rows are many
constexpr int64_t kMostColumns = 1024;
constexpr int64_t kParts = 8;                  // of the columns, for sums over them

inline int64_t padded(int64_t columns) { return (columns + kLine - 1) / kLine * kLine; }

// panels[panel][row][16] of `columns` columns from `first`; columns beyond the last are zero.
inline void pack_columns(const float* x, int64_t rows, int64_t stride, int64_t first, int64_t columns, float* panels) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * stride + first;
    int64_t column = 0;
    for (; column + kLine <= columns; column += kLine) {
      float* to = panels + (column * rows) + row * kLine;
      for (int64_t v = 0; v < kLine; v += kLanes) store(to + v, load(from + column + v));
    }
    if (column < columns) {
      float* to = panels + (column * rows) + row * kLine;
      std::memset(to, 0, kLine * sizeof(float));
      std::memcpy(to, from + column, (columns - column) * sizeof(float));
    }
  }
}

// Weights in blocks of rows: block b holds [k][rows of the block]. `row_step` and `depth_step` allow a transposed matrix.
struct Weights {
  Floats values;
  int64_t rows, depth, blocks;

  Weights(const float* w, int64_t rows, int64_t depth, int64_t row_step, int64_t depth_step)
      : values(rows * depth), rows(rows), depth(depth), blocks((rows + kRows - 1) / kRows) {
    for (int64_t block = 0; block < blocks; ++block) {
      float* to = values.data() + begin(block) * depth;
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t row = begin(block); row < begin(block + 1); ++row) *to++ = w[row * row_step + k * depth_step];
    }
  }
  int64_t begin(int64_t block) const { return block * rows / blocks; }
  int64_t rows_of(int64_t block) const { return begin(block + 1) - begin(block); }
  const float* of(int64_t block) const { return values.data() + begin(block) * depth; }
};

// What becomes of an output before it is stored.
struct Raw {
  Vector operator()(int64_t, Vector v) const { return v; }
};

// out[row][0 ... width) of one block of rows and one panel, each through finish(row, vector).
template <int kBlockRows, typename Finish = Raw>
void block_times_panel(const float* weights, const float* panel, int64_t depth, float* out, int64_t out_stride,
                       int64_t width, const Finish& finish = Finish()) {
  Vector sums[kBlockRows][kVectors];
  for (int row = 0; row < kBlockRows; ++row)
    for (int v = 0; v < kVectors; ++v) sums[row][v] = Vector{};
  for (int64_t k = 0; k < depth; ++k, weights += kBlockRows, panel += kLine) {
    Vector columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kBlockRows; ++row) {
      const Vector weight = broadcast(weights[row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[row][v] += weight * columns[v];
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kBlockRows; ++row)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[row][v] = finish(row, sums[row][v]);
  if (width >= kLine) {
    for (int row = 0; row < kBlockRows; ++row)
      for (int v = 0; v < kVectors; ++v) store(out + row * out_stride + v * kLanes, sums[row][v]);
  } else {
    for (int row = 0; row < kBlockRows; ++row) {
      float line[kLine];
      for (int v = 0; v < kVectors; ++v) store(line + v * kLanes, sums[row][v]);
      std::memcpy(out + row * out_stride, line, width * sizeof(float));
    }
  }
}

// The same for a block of `rows` (1 ... kRows) rows.
template <typename Finish = Raw>
void rows_times_panel(int64_t rows, const float* weights, const float* panel, int64_t depth, float* out,
                      int64_t out_stride, int64_t width, const Finish& finish = Finish()) {
  switch (rows) {
    case 1: return block_times_panel<1>(weights, panel, depth, out, out_stride, width, finish);
    case 2: return block_times_panel<2>(weights, panel, depth, out, out_stride, width, finish);
    case 3: return block_times_panel<3>(weights, panel, depth, out, out_stride, width, finish);
    case 4: return block_times_panel<4>(weights, panel, depth, out, out_stride, width, finish);
    case 5: return block_times_panel<5>(weights, panel, depth, out, out_stride, width, finish);
    default: return block_times_panel<6>(weights, panel, depth, out, out_stride, width, finish);
  }
}

inline void weights_times_panels(const Weights& w, const float* panels, int64_t columns, float* out, int64_t out_stride) {
  for (int64_t block = 0; block < w.blocks; ++block)
    for (int64_t column = 0; column < columns; column += kLine)
      rows_times_panel(w.rows_of(block), w.of(block), panels + column * w.depth, w.depth,
                       out + w.begin(block) * out_stride + column, out_stride, columns - column);
}

// gradient[j][i] += sum over the block's columns of given[i] seen[j], for kGiven (4 or 1) x kSeen rows of packed columns.
// Steps: floats from a panel to the next.
template <int kGiven, int kSeen>
void dot_block(const float* given, int64_t given_step, const float* seen, int64_t seen_step, int64_t panels,
               float* gradient) {
  Vector sums[kSeen][kGiven];
  for (int j = 0; j < kSeen; ++j)
    for (int i = 0; i < kGiven; ++i) sums[j][i] = Vector{};
  for (int64_t panel = 0; panel < panels; ++panel, given += given_step, seen += seen_step) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Vector columns[kSeen];
#pragma GCC unroll 4
      for (int j = 0; j < kSeen; ++j) columns[j] = load(seen + j * kLine + v * kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kGiven; ++i) {
        const Vector row = load(given + i * kLine + v * kLanes);
#pragma GCC unroll 4
        for (int j = 0; j < kSeen; ++j) sums[j][i] += row * columns[j];
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kSeen; ++j) {
    if constexpr (kGiven == 4) {
      add_sums(sums[j][0], sums[j][1], sums[j][2], sums[j][3], gradient + j * 4);
    } else {
      gradient[j * 4] += sum(sums[j][0]);
    }
  }
}

template <int kGiven>
void dot_rows(const float* given, int64_t given_step, const float* seen, int64_t seen_rows, int64_t seen_step,
              int64_t panels, float* gradient) {
  int64_t j = 0;
  for (; j + 3 <= seen_rows; j += 3)
    dot_block<kGiven, 3>(given, given_step, seen + j * kLine, seen_step, panels, gradient + j * 4);
  for (; j < seen_rows; ++j)
    dot_block<kGiven, 1>(given, given_step, seen + j * kLine, seen_step, panels, gradient + j * 4);
}

// Sums in groups of four given rows: gradient[i / 4][j][i % 4].
inline void dot_products(const float* given, int64_t given_rows, int64_t given_step, const float* seen, int64_t seen_rows,
                         int64_t seen_step, int64_t panels, float* gradient) {
  int64_t i = 0;
  for (; i + 4 <= given_rows; i += 4)
    dot_rows<4>(given + i * kLine, given_step, seen, seen_rows, seen_step, panels, gradient + i * seen_rows);
  for (; i < given_rows; ++i)
    dot_rows<1>(given + i * kLine, given_step, seen, seen_rows, seen_step, panels,
                gradient + i / 4 * 4 * seen_rows + i % 4);
}

inline float* scratch(int64_t floats, int which) {
  static thread_local Floats buffers[2];
  buffers[which].reserve(floats);
  return buffers[which].data();
}

inline int64_t block_columns(int64_t rows) {  // so that `rows` packed rows of them stay in a cache
  return std::clamp(kCacheFloats / rows / kLine * kLine, kFewestColumns, kMostColumns);
}

inline void forward(ffi::ThreadPool& pool, const float* x, const float* w, float* y, int64_t in, int64_t out,
                    int64_t columns) {
  const Weights weights(w, out, in, in, 1);
  const int64_t fair_share = padded(columns / (4 * pool.num_threads()));  // blocks enough for all threads
  const int64_t block = std::min(block_columns(in), std::max(kFewestColumns, fair_share));
  for_each(pool, (columns + block - 1) / block, 1, [&](int64_t i) {
    const int64_t first = i * block, count = std::min(block, columns - first);
    float* panels = scratch(in * padded(count), 0);
    pack_columns(x, in, columns, first, count, panels);
    weights_times_panels(weights, panels, count, y + first, columns);
  });
}

inline void backward(ffi::ThreadPool& pool, const float* x, const float* w, const float* dy, float* dx, float* dw,
                     int64_t in, int64_t out, int64_t columns) {
  const Weights transposed(w, in, out, 1, in);
  const int64_t part = padded((columns + kParts - 1) / kParts), block = block_columns(in + out);
  const int64_t size = (out + 3) / 4 * 4 * in;  // see dot_products
  Floats sums(kParts * size);
  for_each(pool, kParts, 1, [&](int64_t i) {
    float* own = sums.data() + i * size;
    std::fill(own, own + size, 0.0f);
    const int64_t end = std::min(columns, (i + 1) * part);
    for (int64_t first = i * part; first < end; first += block) {
      const int64_t count = std::min(block, end - first);
      float* seen = scratch(in * padded(count), 0);
      float* given = scratch(out * padded(count), 1);
      pack_columns(x, in, columns, first, count, seen);
      pack_columns(dy, out, columns, first, count, given);
      weights_times_panels(transposed, given, count, dx + first, columns);
      dot_products(given, out, out * kLine, seen, in, in * kLine, padded(count) / kLine, own);
    }
  });
  for (int64_t o = 0; o < out; ++o)
    for (int64_t k = 0; k < in; ++k) {
      float total = 0.0f;
      for (int64_t i = 0; i < kParts; ++i) total += sums.data()[i * size + (o / 4 * in + k) * 4 + o % 4];
      dw[o * in + k] = total;
    }
}

}  // namespace hanax::pointwise
