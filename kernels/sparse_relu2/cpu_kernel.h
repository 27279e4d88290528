// The loops of cpu.cpp for one instruction set: LANES floats a vector, in the namespace NAMESPACE.

namespace {
namespace NAMESPACE {

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* at) {
  Vector v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

inline Vector load(const uint16_t* at) {
  Halves half;
  std::memcpy(&half, at, sizeof half);
  const Words words = __builtin_convertvector(half, Words) << 16;
  Vector v;
  std::memcpy(&v, &words, sizeof v);
  return v;
}

inline float one(const float* at) { return *at; }

inline float one(const uint16_t* at) {
  const uint32_t bits = uint32_t(*at) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline void store(float* at, Vector v) { std::memcpy(at, &v, sizeof v); }

// out[begin..end) += sum_j values[j] * dense[places[j], begin..end). Eight rows at a time: as many streams as the
// memory's prefetchers follow, and one pass over `out` (which stays in the first-level cache) for all of them.
template <class W>
inline void accumulate(const int32_t* places, const float* values, long n, const W* dense, long stride, float* out,
                       long begin, long end) {
  long j = 0;
  for (; j + 8 <= n; j += 8) {
    const W* row[8];
    for (int r = 0; r < 8; r++) row[r] = dense + long(places[j + r]) * stride;
    const float* a = values + j;
    long c = begin;
    for (; c + LANES <= end; c += LANES) {
      Vector low = load(out + c) + a[0] * load(row[0] + c), high = a[1] * load(row[1] + c);
      low += a[2] * load(row[2] + c);
      high += a[3] * load(row[3] + c);
      low += a[4] * load(row[4] + c);
      high += a[5] * load(row[5] + c);
      low += a[6] * load(row[6] + c);
      high += a[7] * load(row[7] + c);
      store(out + c, low + high);
    }
    for (; c < end; c++) {
      float sum = out[c];
      for (int r = 0; r < 8; r++) sum += a[r] * one(row[r] + c);
      out[c] = sum;
    }
  }
  for (; j < n; j++) {
    const W* row = dense + long(places[j]) * stride;
    long c = begin;
    for (; c + LANES <= end; c += LANES) store(out + c, load(out + c) + values[j] * load(row + c));
    for (; c < end; c++) out[c] += values[j] * one(row + c);
  }
}

void matmul(const float* values, const uint8_t* metadata, const float* dense, float* out, long M, long K, long N,
            int threads) {
  long panel = PANEL / K / LANES * LANES;
  panel = panel < 64 ? 64 : panel > 512 ? 512 : panel;
#pragma omp parallel num_threads(threads)
  {
    std::vector<int32_t> places(ROWS * (K / 2));
    std::vector<float> kept(ROWS * (K / 2));
#pragma omp for schedule(dynamic)
    for (long first = 0; first < M; first += ROWS) {
      const long last = first + ROWS < M ? first + ROWS : M;
      long starts[ROWS + 1] = {0}, n = 0;
      for (long m = first; m < last; m++) {
        for (long k = 0; k < K; k += 4) {
          const int nibble = metadata[m * (K / 8) + k / 8] >> (k & 4) & 15;
          for (int i = 0; i < 2; i++) {
            places[n] = int32_t(k + (nibble >> 2 * i & 3));
            kept[n] = values[m * (K / 2) + k / 2 + i];
            n += kept[n] != 0;
          }
        }
        starts[m - first + 1] = n;
      }
      std::memset(out + first * N, 0, sizeof(float) * (last - first) * N);
      for (long begin = 0; begin < N; begin += panel) {
        const long end = begin + panel < N ? begin + panel : N;
        for (long m = first; m < last; m++) {
          const long at = starts[m - first];
          accumulate(places.data() + at, kept.data() + at, starts[m - first + 1] - at, dense, N, out + m * N, begin,
                     end);
        }
      }
    }
  }
}

void skip_rows(const int32_t* places, const float* values, long n, const void* down, float* out, long D, int bfloat16,
               int threads) {
  // Threads own columns: no reduction. 2048 columns of a row are 8 KiB in one piece, which memory gives quickest.
  const long share = ((D + threads - 1) / threads + 63) / 64 * 64, columns = share < 2048 ? share : 2048;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long begin = 0; begin < D; begin += columns) {
    const long end = begin + columns < D ? begin + columns : D;
    std::memset(out + begin, 0, sizeof(float) * (end - begin));
    if (bfloat16)
      accumulate(places, values, n, static_cast<const uint16_t*>(down), D, out, begin, end);
    else
      accumulate(places, values, n, static_cast<const float*>(down), D, out, begin, end);
  }
}

}  // namespace NAMESPACE
}  // namespace
