// The work on one block of queries, written once on vectors of LANES floats and included once for each instruction set.
//
// For a query head at query i the pairs (j, l) are the entries of a matrix product: rows are the small window's folds
// f_j = fold(q, k_j), columns the large window's keys. So everything is small matrix products on tiles of up to six
// rows and two vectors that stay in registers:
//
//   forward    S = F K^T,  P = exp(scale S - m),  out = sum_j v_j * (P V)_j                                  2 products
//   backward   S and P again,  Z = (g v_j) V^T,  dS = P (Z - delta),
//              T = dS K,  U = P V  (gradients of the folds and of v_j),  dK += dS^T F,  dV += P^T (g v_j)    6 products
//
// A query sees exactly its windows: rows beyond them are not read, not even to be multiplied by zero.

namespace NAMESPACE {

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int Integers __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr long TILE = 2 * LANES;  // columns
constexpr int ROWS = 6;

static inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
static inline void store(float* to, Vector x) { *reinterpret_cast<Loose*>(to) = x; }
static inline Vector spread(float x) { return x - Vector{}; }
static inline long up(long n) { return (n + TILE - 1) / TILE * TILE; }

// A row's leading size: whole tiles, and an odd number of cache lines, so that a column of tiles uses every set of the
// first-level cache.
static inline long pitch(long n) { return (up(n) + 15) / 16 % 2 ? up(n) : up(n) + 16; }

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

// accumulators [R][2] = A [R, K] B [K, TILE]; element (r, k) of A lies at a[r * row + k * step].
template <int R>
static inline void product(const float* a, long row, long step, const float* b, long ldb, long K, Vector (&c)[R][2]) {
  for (int r = 0; r < R; r++) c[r][0] = c[r][1] = Vector{};
  for (long k = 0; k < K; k++) {
    const Vector b0 = load(b + k * ldb), b1 = load(b + k * ldb + LANES);
    for (int r = 0; r < R; r++) {
      const float x = a[r * row + k * step];
      c[r][0] += x * b0;
      c[r][1] += x * b1;
    }
  }
}

// Calls use(row, column, accumulators of R rows) for every tile of A [M, K] B [K, N]; N a multiple of TILE. Rows are
// dealt evenly, so that no tile is left with a single row where six and five would do.
template <int R, class Use>
static inline void one(const float* a, long row, long step, const float* b, long ldb, long K, long m, long n, Use& use) {
  Vector c[R][2];
  product<R>(a + m * row, row, step, b + n, ldb, K, c);
  use(m, n, c, R);
}

template <class Use>
static inline void multiply(const float* a, long row, long step, const float* b, long ldb, long M, long N, long K,
                            Use use) {
  const long parts = (M + ROWS - 1) / ROWS;
  for (long n = 0; n < N; n += TILE) {
    for (long part = 0; part < parts; part++) {
      const long m = M * part / parts, rows = M * (part + 1) / parts - m;
      switch (rows) {
        case 1: one<1>(a, row, step, b, ldb, K, m, n, use); break;
        case 2: one<2>(a, row, step, b, ldb, K, m, n, use); break;
        case 3: one<3>(a, row, step, b, ldb, K, m, n, use); break;
        case 4: one<4>(a, row, step, b, ldb, K, m, n, use); break;
        case 5: one<5>(a, row, step, b, ldb, K, m, n, use); break;
        default: one<6>(a, row, step, b, ldb, K, m, n, use); break;
      }
    }
  }
}

struct Put {
  float* to;
  long ld;
  void operator()(long m, long n, Vector (*c)[2], int rows) const {
    for (int r = 0; r < rows; r++) {
      store(to + (m + r) * ld + n, c[r][0]);
      store(to + (m + r) * ld + n + LANES, c[r][1]);
    }
  }
};

struct Add {
  float* to;
  long ld;
  void operator()(long m, long n, Vector (*c)[2], int rows) const {
    for (int r = 0; r < rows; r++) {
      float* at = to + (m + r) * ld + n;
      store(at, load(at) + c[r][0]);
      store(at + LANES, load(at + LANES) + c[r][1]);
    }
  }
};

// total[n] += sum over rows of c[row] * weight[row]: the forward's last step, without writing P V anywhere.
struct Weigh {
  float* sum;
  const float* weight;
  long ld;
  void operator()(long m, long n, Vector (*c)[2], int rows) const {
    Vector s0 = load(sum + n), s1 = load(sum + n + LANES);
    for (int r = 0; r < rows; r++) {
      const float* w = weight + (m + r) * ld + n;
      s0 += c[r][0] * load(w);
      s1 += c[r][1] * load(w + LANES);
    }
    store(sum + n, s0);
    store(sum + n + LANES, s1);
  }
};

static inline void times(const float* a, const float* b, float* to, long n) {
  for (long d = 0; d < n; d += LANES) store(to + d, load(a + d) * load(b + d));
}

static inline void add_times(const float* a, const float* b, float* to, long n) {
  for (long d = 0; d < n; d += LANES) store(to + d, load(to + d) + load(a + d) * load(b + d));
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

// The leading size of a turned window of `rows` rows: the last tile of a query may read a tile past its end.
static inline long turned_size(long rows) { return pitch(rows + TILE); }

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

// The same queries' gradients: dq whole; of the windows' rows a slab of their own, which `collect` adds up.
static void backward(const Problem& p, long b, long head, long begin, long end, Slab slab, Scratch& scratch) {
  const long W = up(p.D), P = pitch(p.D), G = p.H / p.N, first = std::max(0L, begin - p.wl + 1), rows = end - first;
  const long first_s = std::max(0L, begin - p.ws + 1), small = end - first_s, ld = turned_size(rows);
  const long S = pitch(std::min(p.wl, rows));
  float* k = scratch.take(rows * P);
  float* kt = scratch.take(p.D * ld);
  float* v = scratch.take(rows * P);
  float* vt = scratch.take(p.D * ld);
  float* ks = scratch.take(small * P);
  float* vs = scratch.take(small * P);
  float* dkl = scratch.take(rows * P);
  float* dvl = scratch.take(rows * P);
  float* dks = scratch.take(small * P);
  float* dvs = scratch.take(small * P);
  float* folds = scratch.take(CHUNK * P);
  float* values = scratch.take(CHUNK * P);
  float* weights = scratch.take(CHUNK * S);
  float* slopes = scratch.take(CHUNK * S);
  float* product_k = scratch.take(CHUNK * P);
  float* product_v = scratch.take(CHUNK * P);
  float* query = scratch.take(P);
  float* grad = scratch.take(P);
  float* dq = scratch.take(P);
  std::memset(kt, 0, sizeof(float) * p.D * ld);
  std::memset(vt, 0, sizeof(float) * p.D * ld);
  for (float* x : {dkl, dvl}) std::memset(x, 0, sizeof(float) * rows * P);
  for (float* x : {dks, dvs}) std::memset(x, 0, sizeof(float) * small * P);
  for (float* x : {query, grad}) std::memset(x, 0, sizeof(float) * P);
  std::memset(folds, 0, sizeof(float) * CHUNK * P);
  gather(p, p.kl, b, head, first, end, P, k, kt, ld);
  gather(p, p.vl, b, head, first, end, P, v, vt, ld);
  gather(p, p.ks, b, head, first_s, end, P, ks, nullptr, 0);
  gather(p, p.vs, b, head, first_s, end, P, vs, nullptr, 0);
  for (long i = begin; i < end; i++) {
    const long l = std::max(0L, i - p.wl + 1), L = i + 1 - l, width = up(L), low = std::max(0L, i - p.ws + 1);
    for (long g = 0; g < G; g++) {
      const long at = (b * p.T + i) * p.H + head * G + g;
      std::memcpy(query, p.q + at * p.D, sizeof(float) * p.D);
      std::memcpy(grad, p.grad + at * p.D, sizeof(float) * p.D);
      std::memset(dq, 0, sizeof(float) * P);
      const Vector shift = spread(p.lse[at]), delta = spread(p.delta[at]);
      for (long j = low; j <= i; j += CHUNK) {
        const long n = std::min(CHUNK, i + 1 - j), s = j - first_s;
        for (long r = 0; r < n; r++) {
          const float* other = ks + (s + r) * P;
          if (p.form) cross(query, other, folds + r * P, p.D);
          else times(query, other, folds + r * P, W);
          times(grad, vs + (s + r) * P, values + r * P, W);
        }
        multiply(folds, P, 1, kt + l - first, ld, n, width, p.D, Put{weights, S});
        multiply(values, P, 1, vt + l - first, ld, n, width, p.D, Put{slopes, S});
        for (long r = 0; r < n; r++) {
          float *w = weights + r * S, *z = slopes + r * S;
          for (long c = 0; c < width; c += LANES) {
            const Vector x = exponential(load(w + c) * p.scale - shift);
            store(w + c, x);
            store(z + c, x * (load(z + c) - delta));
          }
        }
        multiply(slopes, S, 1, k + (l - first) * P, P, n, W, L, Put{product_k, P});
        multiply(weights, S, 1, v + (l - first) * P, P, n, W, L, Put{product_v, P});
        for (long r = 0; r < n; r++) {
          const float *t = product_k + r * P, *other = ks + (s + r) * P;
          if (p.form) {
            add_cross(other, t, dq, p.D);
            add_cross(t, query, dks + (s + r) * P, p.D);
          } else {
            add_times(t, other, dq, W);
            add_times(t, query, dks + (s + r) * P, W);
          }
          add_times(product_v + r * P, grad, dvs + (s + r) * P, W);
        }
        multiply(slopes, 1, S, folds, P, L, W, n, Add{dkl + (l - first) * P, P});
        multiply(weights, 1, S, values, P, L, W, n, Add{dvl + (l - first) * P, P});
      }
      for (long d = 0; d < p.D; d++) p.dq[at * p.D + d] = dq[d] * p.scale;
    }
  }
  for (long t = 0; t < rows; t++) {
    std::memcpy(slab.kl + t * p.D, dkl + t * P, sizeof(float) * p.D);
    std::memcpy(slab.vl + t * p.D, dvl + t * P, sizeof(float) * p.D);
  }
  for (long t = 0; t < small; t++) {
    std::memcpy(slab.ks + t * p.D, dks + t * P, sizeof(float) * p.D);
    std::memcpy(slab.vs + t * p.D, dvs + t * P, sizeof(float) * p.D);
  }
}

}  // namespace NAMESPACE
