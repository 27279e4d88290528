// 2:4 compression, products with what was kept, and row-skipping products on the CPU: plain C entries, instruction set
// chosen at run time. Activations and outputs are contiguous float32, weights float32 or bfloat16, metadata a nibble a
// group of four in rows ("dense" layout). Every output is written by one thread in a fixed order: the same bits for any
// number of threads.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr long ROWS = 64;               // rows of the sparse operand that share a panel of the dense one
constexpr long PANEL = 256 * 1024 / 4;  // floats of the dense operand worked on at once: half a second-level cache

// The two largest magnitudes of four, by integers: magnitude bits above, tie order (2, 3, 0, 1) below, sign lowest.
inline void largest(const float* x, bool relu, float* values, uint8_t* nibble) {
  uint64_t key[4];
  for (int i = 0; i < 4; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    const uint32_t magnitude = bits & 0x7fffffffu, sign = bits >> 31;
    const bool negative = relu && sign && magnitude <= 0x7f800000u;  // a NaN is not negative
    key[i] = negative ? uint64_t(i ^ 1) << 1 : uint64_t(magnitude) << 3 | uint64_t(i ^ 1) << 1 | sign;
  }
  auto more = [](uint64_t a, uint64_t b) { return a > b ? a : b; };
  auto less = [](uint64_t a, uint64_t b) { return a > b ? b : a; };
  const uint64_t h01 = more(key[0], key[1]), h23 = more(key[2], key[3]);
  uint64_t first = more(h01, h23);
  uint64_t second = more(less(h01, h23), more(less(key[0], key[1]), less(key[2], key[3])));
  if (((first >> 1 & 3) ^ 1) > ((second >> 1 & 3) ^ 1)) {
    const uint64_t other = first;
    first = second;
    second = other;
  }
  for (uint64_t k : {first, second}) {
    const uint32_t bits = uint32_t(k >> 3) | uint32_t(k & 1) << 31;
    std::memcpy(values++, &bits, 4);
  }
  *nibble = uint8_t(((first >> 1 & 3) ^ 1) | ((second >> 1 & 3) ^ 1) << 2);
}

}  // namespace

#define KERNEL "sparse_relu2/cpu_kernel.h"
#include "../instruction_sets.h"

extern "C" {

int sparse_relu2_instruction_set() { return best(); }

// x [M, K] -> values [M, K / 2], metadata [M, K / 8]. relu: negative values count as zero; square: survivors squared.
void sparse_relu2_compress(const float* x, float* values, uint8_t* metadata, long M, long K, int relu, int square,
                           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long m = 0; m < M; m++)
    for (long k = 0; k < K; k += 8) {
      uint8_t low, high;
      float* out = values + m * (K / 2) + k / 2;
      largest(x + m * K + k, relu, out, &low);
      largest(x + m * K + k + 4, relu, out + 2, &high);
      metadata[m * (K / 8) + k / 8] = uint8_t(low | high << 4);
      if (square)
        for (int i = 0; i < 4; i++) out[i] *= out[i];
    }
}

// out [M, N] = the compressed [M, K] times dense [K, N]; zeros among the kept values are not multiplied either.
void sparse_relu2_matmul(const float* values, const uint8_t* metadata, const float* dense, float* out, long M, long K,
                         long N, int threads, int set) {
  DISPATCH(set, matmul(values, metadata, dense, out, M, K, N, threads))
}

// The nonzero activations of h [F]: their places and values; returns how many. relu2: positive ones, squared.
long sparse_relu2_nonzeros(const float* h, int32_t* places, float* values, long F, int relu2) {
  long n = 0;
  for (long i = 0; i < F; i++) {
    const float a = relu2 ? (h[i] <= 0 ? 0.f : h[i] * h[i]) : h[i];
    places[n] = int32_t(i);
    values[n] = a;
    n += a != 0;  // true for NaN
  }
  return n;
}

// out [D] = sum over the n places of values * down[place, :]; down [F, D] is float32 or bfloat16.
void sparse_relu2_skip_rows(const int32_t* places, const float* values, long n, const void* down, float* out, long D,
                            int bfloat16, int threads, int set) {
  DISPATCH(set, skip_rows(places, values, n, down, out, D, bfloat16, threads))
}

}  // extern "C"
