// The work on one block of queries, written once on vectors of LANES floats and included once for each instruction set.
// Everything is small matrix products on tiles of up to four rows and three vectors that stay in registers.
//
// For a query head at query i the rows are the small window's folds f_j = fold(q, k_j), the columns the large
// window's keys:
//
//   S = F K^T,  P = exp(scale S - m),  out = sum_j v_j * (P V)_j
//
// cpu_backward.h has the backward pass, on the same tiles.

namespace NAMESPACE {

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int Integers __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr int ROWS = 4, VECTORS = 3;  // twelve sums, three columns and a row's number: AVX2's sixteen registers

static inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
static inline void store(float* to, Vector x) { *reinterpret_cast<Loose*>(to) = x; }
static inline Vector spread(float x) { return x - Vector{}; }
static inline long up(long n) { return (n + LANES - 1) / LANES * LANES; }

// A row's leading size: whole vectors, and an odd number of cache lines, so that a column of tiles uses every set of the
// first-level cache.
static inline long pitch(long n) { return ((n + 15) / 16 | 1) * 16; }

// exp to within two units in the last place; 2^-126 below, NaN stays NaN.
static inline Vector exponential(Vector x) {
  x = x < spread(-87.33f) ? spread(-87.33f) : x;
  x = x > spread(88.7f) ? spread(88.7f) : x;
  const Vector shifted = x * 1.442695041f + 12582912.0f;  // the integer part lands in the low bits
  const Vector n = shifted - 12582912.0f;
  Vector r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return reinterpret_cast<Vector>(reinterpret_cast<Integers>(p) + (reinterpret_cast<Integers>(shifted) << 23));
}

static inline float total(Vector x) {
  float sum = 0;
  for (int lane = 0; lane < LANES; lane++) sum += x[lane];
  return sum;
}

// sums [R][C] = A [R, K] B [K, C vectors], given to `use`; element (r, k) of A lies at a[r * row + k * step].
template <int R, int C, class Use>
static inline void product(const float* a, long row, long step, const float* b, long ldb, long K, long m, long n,
                           const Use& use) {
  Vector sums[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sums[r][c] = Vector{};
  for (long k = 0; k < K; k++) {
    Vector column[C];
    for (int c = 0; c < C; c++) column[c] = load(b + k * ldb + c * LANES);
    for (int r = 0; r < R; r++) {
      const float x = a[r * row + k * step];
      for (int c = 0; c < C; c++) sums[r][c] += x * column[c];
    }
  }
  use(m, n, sums);
}

template <int R, class Use>
static inline void wide(long vectors, const float* a, long row, long step, const float* b, long ldb, long K, long m,
                        long n, const Use& use) {
  switch (vectors) {
    case 1: product<R, 1>(a, row, step, b, ldb, K, m, n, use); break;
    case 2: product<R, 2>(a, row, step, b, ldb, K, m, n, use); break;
    default: product<R, 3>(a, row, step, b, ldb, K, m, n, use); break;
  }
}

// One tile of `rows` rows and `vectors` vectors of columns; `use` gets it as the tile at row m and column n.
template <class Use>
static __attribute__((noinline)) void tile(long rows, long vectors, const float* a, long row, long step, const float* b,
                                           long ldb, long K, long m, long n, const Use& use) {
  switch (rows) {
    case 1: wide<1>(vectors, a, row, step, b, ldb, K, m, n, use); break;
    case 2: wide<2>(vectors, a, row, step, b, ldb, K, m, n, use); break;
    case 3: wide<3>(vectors, a, row, step, b, ldb, K, m, n, use); break;
    default: wide<4>(vectors, a, row, step, b, ldb, K, m, n, use); break;
  }
}

// Rows or vectors dealt evenly to tiles: none is left with one where three and three would do.
struct Deal {
  long n, parts;
  Deal(long n, long most) : n(n), parts((n + most - 1) / most) {}
  long begin(long part) const { return n * part / parts; }
};

// A [M, K] B [K, N], tile by tile; N a multiple of LANES.
template <class Use>
static inline void multiply(const float* a, long row, long step, const float* b, long ldb, long M, long N, long K,
                            const Use& use) {
  const Deal columns(N / LANES, VECTORS), rows(M, ROWS);
  for (long part = 0; part < columns.parts; part++) {
    const long n = columns.begin(part) * LANES, vectors = columns.begin(part + 1) - columns.begin(part);
    for (long each = 0; each < rows.parts; each++) {
      const long m = rows.begin(each);
      tile(rows.begin(each + 1) - m, vectors, a + m * row, row, step, b + n, ldb, K, m, n, use);
    }
  }
}

struct Put {
  float* to;
  long ld;
  template <int R, int C>
  void operator()(long m, long n, Vector (&sums)[R][C]) const {
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) store(to + (m + r) * ld + n + c * LANES, sums[r][c]);
  }
};

struct Add {
  float* to;
  long ld;
  template <int R, int C>
  void operator()(long m, long n, Vector (&sums)[R][C]) const {
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) {
        float* at = to + (m + r) * ld + n + c * LANES;
        store(at, load(at) + sums[r][c]);
      }
  }
};

// total[n] += sum over rows of sums[row] * weight[row]: the forward's last step, without writing P V anywhere.
struct Weigh {
  float* total;
  const float* weight;
  long ld;
  template <int R, int C>
  void operator()(long m, long n, Vector (&sums)[R][C]) const {
    for (int c = 0; c < C; c++) {
      const long at = n + c * LANES;
      Vector all = load(total + at);
      for (int r = 0; r < R; r++) all += sums[r][c] * load(weight + (m + r) * ld + at);
      store(total + at, all);
    }
  }
};

static inline void times(const float* a, const float* b, float* to, long n) {
  for (long d = 0; d < n; d += LANES) store(to + d, load(a + d) * load(b + d));
}

static inline void cross(const float* a, const float* b, float* to, long n) {
  for (long d = 0; d < n; d += 3) {
    to[d] = a[d + 1] * b[d + 2] - a[d + 2] * b[d + 1];
    to[d + 1] = a[d + 2] * b[d] - a[d] * b[d + 2];
    to[d + 2] = a[d] * b[d + 1] - a[d + 1] * b[d];
  }
}

static inline void add_cross(const float* a, const float* b, float* to, long n) {
  for (long d = 0; d < n; d += 3) {
    to[d] += a[d + 1] * b[d + 2] - a[d + 2] * b[d + 1];
    to[d + 1] += a[d + 2] * b[d] - a[d] * b[d + 2];
    to[d + 2] += a[d] * b[d + 1] - a[d + 1] * b[d];
  }
}

// Rows first .. last - 1 of one key head as [rows, P] and, where `turned` is given, as [P, ld]; padding is zero.
static inline void gather(const Problem& p, const float* x, long b, long head, long first, long last, long P, float* to,
                          float* turned, long ld) {
  for (long t = first; t < last; t++) {
    const float* from = x + ((b * p.T + t) * p.N + head) * p.D;
    float* row = to + (t - first) * P;
    std::memcpy(row, from, sizeof(float) * p.D);
    std::memset(row + p.D, 0, sizeof(float) * (P - p.D));
    if (turned) {
      for (long d = 0; d < p.D; d++) turned[d * ld + t - first] = from[d];
    }
  }
}

// The leading size of a turned window of `rows` rows: the last vector of a tile may reach past its end.
static inline long turned_size(long rows) { return pitch(rows + LANES); }

// Queries begin .. end - 1 of one key head's query heads.
static void forward(const Problem& p, long b, long head, long begin, long end, Scratch& scratch) {
  const long W = up(p.D), P = pitch(p.D), G = p.H / p.N, first = std::max(0L, begin - p.wl + 1), rows = end - first;
  const long first_s = std::max(0L, begin - p.ws + 1), ld = turned_size(rows), S = pitch(std::min(p.wl, rows));
  float* k = scratch.take(rows * P);
  float* kt = scratch.take(p.D * ld);
  float* v = scratch.take(rows * P);
  float* ks = scratch.take((end - first_s) * P);
  float* vs = scratch.take((end - first_s) * P);
  float* folds = scratch.take(CHUNK * P);
  float* scores = scratch.take(CHUNK * S);
  float* sum = scratch.take(P);
  float* query = scratch.take(P);
  std::memset(kt, 0, sizeof(float) * p.D * ld);
  std::memset(query, 0, sizeof(float) * P);
  std::memset(folds, 0, sizeof(float) * CHUNK * P);
  gather(p, p.kl, b, head, first, end, P, k, kt, ld);
  gather(p, p.vl, b, head, first, end, P, v, nullptr, 0);
  gather(p, p.ks, b, head, first_s, end, P, ks, nullptr, 0);
  gather(p, p.vs, b, head, first_s, end, P, vs, nullptr, 0);
  for (long i = begin; i < end; i++) {
    const long l = std::max(0L, i - p.wl + 1), L = i + 1 - l, width = up(L), low = std::max(0L, i - p.ws + 1);
    for (long g = 0; g < G; g++) {
      const long at = (b * p.T + i) * p.H + head * G + g;
      std::memcpy(query, p.q + at * p.D, sizeof(float) * p.D);
      std::memset(sum, 0, sizeof(float) * P);
      float most = -INFINITY, weight = 0;
      for (long j = low; j <= i; j += CHUNK) {
        const long n = std::min(CHUNK, i + 1 - j);
        for (long r = 0; r < n; r++) {
          const float* other = ks + (j + r - first_s) * P;
          if (p.form) cross(query, other, folds + r * P, p.D);
          else times(query, other, folds + r * P, W);
        }
        multiply(folds, P, 1, kt + l - first, ld, n, width, p.D, Put{scores, S});
        Vector top = spread(-INFINITY);
        for (long r = 0; r < n; r++) {
          float* row = scores + r * S;
          for (long c = L; c < width; c++) row[c] = -INFINITY;
          for (long c = 0; c < width; c += LANES) top = load(row + c) > top ? load(row + c) : top;
        }
        float now = most;
        for (int lane = 0; lane < LANES; lane++) now = top[lane] > now ? top[lane] : now;
        const float keep = most == -INFINITY ? 0 : std::exp((most - now) * p.scale);
        const Vector shift = spread(now * p.scale);
        Vector added{};
        for (long r = 0; r < n; r++) {
          float* row = scores + r * S;
          for (long c = 0; c < width; c += LANES) {
            const Vector x = exponential(load(row + c) * p.scale - shift);
            store(row + c, x);
            added += x;
          }
        }
        for (long d = 0; d < W; d += LANES) store(sum + d, load(sum + d) * keep);
        weight = weight * keep + total(added);
        most = now;
        multiply(scores, S, 1, v + (l - first) * P, P, n, W, L, Weigh{sum, vs + (j - first_s) * P, P});
      }
      for (long d = 0; d < p.D; d++) p.out[at * p.D + d] = sum[d] / weight;
      p.lse[at] = most * p.scale + std::log(weight);
    }
  }
}

}  // namespace NAMESPACE

#include "cpu_backward.h"
