// Vectors and work sharing that all kernels use.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace hanax {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

constexpr int64_t kLine = 16;                 // floats in a cache line
constexpr int64_t kVectors = kLine / kLanes;  // vectors in a cache line; loads take turns among them, as loads from the
                                              // same part of different lines wait for each other

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
inline Vector broadcast(float v) { return v - Vector{}; }
inline float sum(Vector v) {
  float total = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

#if defined(__AVX__)
inline __m256 half(Vector v) {  // with the same sum
#if defined(__AVX512F__)
  const __m512 whole = (__m512)v;
  return _mm256_add_ps(_mm512_castps512_ps256(whole),
                       _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(whole), 1)));
#else
  return (__m256)v;
#endif
}
#endif

// sums[i] += the sum of the i-th vector, for four at once: three times fewer shuffles than one by one.
inline void add_sums(Vector a, Vector b, Vector c, Vector d, float* sums) {
#if defined(__AVX__)
  const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
  const __m128 total = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm_loadu_ps(sums), total));
#else
  sums[0] += sum(a), sums[1] += sum(b), sums[2] += sum(c), sums[3] += sum(d);
#endif
}

// Floats that begin on a cache line, so that no vector crosses two; kept and reused by each thread.
class Floats {
 public:
  Floats() = default;
  explicit Floats(int64_t count) { reserve(count); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { std::free(data_); }

  void reserve(int64_t count) {  // does not keep the values
    if (count <= count_) return;
    std::free(data_);
    const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) {
      std::fprintf(stderr, "hanax: a native kernel needs %zu more bytes of memory than there are\n", bytes);
      std::abort();
    }
    count_ = count;
  }
  float* data() { return data_; }
  const float* data() const { return data_; }

 private:
  float* data_ = nullptr;
  int64_t count_ = 0;
};

// Threads now at work in any kernel. Two subnets may run side by side: a helper that would be one thread too many for the
// processor stays away, since a thread that is preempted with a chunk in hand keeps its caller waiting for milliseconds.
inline std::atomic<int64_t> at_work{0};

constexpr int kSpins = 2000;  // looks at a counter before a thread sleeps: some microseconds

// Calls work(0) ... work(count - 1), each once, on the calling thread and on those of the pool that are free. Waits only for
// what others have begun: a pool that is busy with other things cannot block the caller.
template <typename Work>
void for_each(ffi::ThreadPool& pool, int64_t count, int64_t grain, const Work& work) {
  const int64_t chunks = (count + grain - 1) / grain, threads = pool.num_threads();
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto state = std::make_shared<State>();
  const Work* shared_work = &work;  // not touched by a helper that finds nothing left, so it may run after we return
  auto run = [state, shared_work, count, grain, chunks] {
    for (int64_t chunk; (chunk = state->next.fetch_add(1)) < chunks;) {
      for (int64_t i = chunk * grain; i < std::min(count, (chunk + 1) * grain); ++i) (*shared_work)(i);
      if (state->done.fetch_add(1) + 1 == chunks) {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->all_done.notify_all();
      }
    }
  };
  auto help = [run, threads] {
    if (at_work.fetch_add(1) < threads) run();
    at_work.fetch_sub(1);
  };
  at_work.fetch_add(1);
  for (int64_t i = std::min(threads, chunks); i > 1 && at_work.load() < threads; --i)
    pool.Schedule(std::function<void()>(help));
  run();
  at_work.fetch_sub(1);
  for (int spin = 0; spin < kSpins; ++spin)
    if (state->done.load() == chunks) return;
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done.load() == chunks; });
}

}  // namespace hanax
