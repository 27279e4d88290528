// 2-simplicial attention on the CPU: plain C entries, threads over blocks of queries, instruction set chosen at run
// time. Tensors are contiguous float32: q, out, grad, dq [B, T, H, D]; keys and values [B, T, N, D]; lse, delta
// [B, T, H]. The window of the s stream is the small one; README.md has the derivation.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

constexpr long CHUNK = 32;    // rows of the small window worked on at once: their scores stay in the first-level cache
constexpr long QUERIES = 16;  // queries of a forward block; they share one copy of the windows
constexpr long BAND = 64;     // the backward pass's rows (heads of queries) worked on at once

struct Problem {
  long B, T, H, N, D, ws, wl;
  float scale;
  int form;  // 0 trilinear, 1 determinant
  const float *q, *ks, *vs, *kl, *vl;
  float *out, *lse;                 // forward
  const float *grad, *delta;        // backward
  float* dq;
};

struct Slab {
  float *ks, *vs, *kl, *vl;
};

// Working memory of one thread, handed out front to back, whole cache lines at a time.
class Scratch {
 public:
  explicit Scratch(long floats) : size_(floats), memory_(new float[floats + 16]) {}
  void restart() { used_ = (16 - reinterpret_cast<size_t>(memory_.get()) / 4 % 16) % 16; }
  float* take(long floats) {
    float* here = memory_.get() + used_;
    used_ += (floats + 15) / 16 * 16;
    if (used_ > size_ + 16) std::abort();
    return here;
  }

 private:
  long size_, used_ = 0;
  std::unique_ptr<float[]> memory_;
};

}  // namespace

#define KERNEL "simplicial_attention/cpu_kernel.h"
#include "../instruction_sets.h"

namespace {

// Queries that share a slab in the backward pass: fixed by the shapes, so that sums do not depend on the threads. As many
// as pay for the rows of the windows before them, and no more than keep their heads' rows in the second-level cache.
long slab_queries(long wl, long G) { return std::min({256L, std::max(32L, wl), std::max(16L, 2048 / G)}); }

long forward_scratch(const Problem& p) {
  const long P = p.D + 64, rows = QUERIES + p.wl, small = QUERIES + p.ws, wide = rows + 64;
  return 2 * rows * P + p.D * wide + 2 * small * P + CHUNK * (P + wide) + 2 * P + 16 * 16;
}

long backward_scratch(const Problem& p, long queries) {
  const long P = p.D + 64, rows = queries + p.wl, small = queries + p.ws, wide = rows + 64, heads = queries * p.H / p.N;
  return (7 * rows + 4 * small + 3 * heads) * P + 4 * p.D * wide + 2 * BAND * wide + 32 * 16;
}

}  // namespace

extern "C" {

int simplicial_instruction_set() { return best(); }

long simplicial_slab_queries(long wl, long G) { return slab_queries(wl, G); }

void simplicial_forward(const float* q, const float* ks, const float* vs, const float* kl, const float* vl, float* out,
                        float* lse, long B, long T, long H, long N, long D, long ws, long wl, float scale, int form,
                        int threads, int set) {
  const Problem p{B, T, H, N, D, ws, wl, scale, form, q, ks, vs, kl, vl, out, lse, nullptr, nullptr, nullptr};
  const long blocks = (T + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(forward_scratch(p));
#pragma omp for schedule(dynamic)
    for (long task = 0; task < B * N * blocks; task++) {
      const long begin = task % blocks * QUERIES, pair = task / blocks;
      scratch.restart();
      DISPATCH(set, forward(p, pair / N, pair % N, begin, std::min(T, begin + QUERIES), scratch))
    }
  }
}

// `slabs` holds, for each (row, key head, block), 2 (slab + ws) and 2 (slab + wl) rows of D floats.
void simplicial_backward(const float* grad, const float* delta, const float* q, const float* ks, const float* vs,
                         const float* kl, const float* vl, const float* lse, float* dq, float* dks, float* dvs,
                         float* dkl, float* dvl, float* slabs, long B, long T, long H, long N, long D, long ws, long wl,
                         float scale, int form, int threads, int set) {
  Problem p{B, T, H, N, D, ws, wl, scale, form, q, ks, vs, kl, vl, nullptr, const_cast<float*>(lse), grad, delta, dq};
  const long queries = slab_queries(wl, H / N), blocks = (T + queries - 1) / queries;
  const long small = (queries + ws) * D, large = (queries + wl) * D, size = 2 * (small + large);
  const auto slab = [&](long pair, long block) {
    float* at = slabs + (pair * blocks + block) * size;
    return Slab{at, at + small, at + 2 * small, at + 2 * small + large};
  };
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(backward_scratch(p, queries));
#pragma omp for schedule(dynamic)
    for (long task = 0; task < B * N * blocks; task++) {
      const long block = task % blocks, pair = task / blocks, begin = block * queries;
      scratch.restart();
      const long end = std::min(T, begin + queries);
      DISPATCH(set, backward(p, pair / N, pair % N, begin, end, slab(pair, block), scratch))
    }
    // Row t of a stream is in the slabs of its own block and of those whose windows reach back to it, in this order.
#pragma omp for schedule(static)
    for (long row = 0; row < B * N * T; row++) {
      const long t = row % T, pair = row / T, to = ((pair / N * T + t) * N + pair % N) * D;
      for (int large_stream = 0; large_stream < 2; large_stream++) {
        const long w = large_stream ? wl : ws;
        float *dk = (large_stream ? dkl : dks) + to, *dv = (large_stream ? dvl : dvs) + to;
        std::memset(dk, 0, sizeof(float) * D);
        std::memset(dv, 0, sizeof(float) * D);
        const long last = std::min(blocks - 1, std::min(T - 1, t + w - 1) / queries);
        for (long block = t / queries; block <= last; block++) {
          const long at = (t - std::max(0L, block * queries - w + 1)) * D;
          const Slab s = slab(pair, block);
          const float *k = (large_stream ? s.kl : s.ks) + at, *v = (large_stream ? s.vl : s.vs) + at;
          for (long d = 0; d < D; d++) dk[d] += k[d], dv[d] += v[d];
        }
        for (long d = 0; d < D; d++) dk[d] *= scale;
      }
    }
  }
}

}  // extern "C"
