// One token of each row on its way through a block, a few rows at most: every weight is read once, so memory sets the
// pace, and all that counts is that every core reads all the time. Compiled by kernels/compiler.py; the instruction set
// is picked at run time (AVX2 keeps ahead of memory, wider registers would bring nothing).
//
// Sums run in one fixed order, whatever the number of rows and threads: what a row gets does not depend on the others.
// Weights, keys and values are float32 or, where `halves` is set, bfloat16; everything else is float32.

#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int64_t LANES = 8, CHAINS = 4, STEP = LANES * CHAINS;
constexpr int64_t MOST_ROWS = 64;
// With fewer weights than this, waking a second thread costs more than it brings.
constexpr int64_t WORTH_A_THREAD = 1 << 15;

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(sizeof(uint16_t)), may_alias));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));

INLINE void load(Lanes& into, const float* from) { into = *reinterpret_cast<const Lanes*>(from); }

// bfloat16 is the upper half of a float32.
INLINE void load(Lanes& into, const uint16_t* from) {
  const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16;
  std::memcpy(&into, &bits, sizeof(into));
}

INLINE float number(float value) { return value; }

INLINE float number(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

INLINE void store(float* to, float value) { *to = value; }

INLINE void store(uint16_t* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  // To the nearest, ties to even; a NaN must not be rounded up into an infinity.
  *to = std::isnan(value) ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// out[m] = sum_k x[m, k] * w[k] for M rows of x.
template <int M, typename Weight>
INLINE void dots(const Weight* w, const float* x, int64_t K, float* out) {
  Lanes sums[M][CHAINS] = {};
  int64_t k = 0;
  for (; k + STEP <= K; k += STEP)
    for (int c = 0; c < CHAINS; ++c) {
      Lanes weights, values;
      load(weights, w + k + c * LANES);
      for (int m = 0; m < M; ++m) {
        load(values, x + m * K + k + c * LANES);
        sums[m][c] += weights * values;
      }
    }
  for (int m = 0; m < M; ++m) {
    const Lanes lanes = (sums[m][0] + sums[m][1]) + (sums[m][2] + sums[m][3]);
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
    for (int64_t rest = k; rest < K; ++rest) sum += number(w[rest]) * x[m * K + rest];
    out[m] = sum;
  }
}

// The same for any number of rows: w stays in the nearest cache from one group of rows to the next.
template <typename Weight>
INLINE void all_dots(const Weight* w, const float* x, int64_t M, int64_t K, float* out) {
  int64_t m = 0;
  for (; m + 4 <= M; m += 4) dots<4>(w, x + m * K, K, out + m);
  for (; m + 2 <= M; m += 2) dots<2>(w, x + m * K, K, out + m);
  for (; m < M; ++m) dots<1>(w, x + m * K, K, out + m);
}

// Several weights over the same rows, seen as one matrix of N rows.
struct Weights {
  const void* data[3];
  int64_t sizes[3];
};

// y[m, n] = base[m, n] + scale * (x[m] . w[n]) for n in `from` .. `to` - 1; no base is a base of zeros.
template <typename Weight>
INLINE void multiply(const Weights& weights, const float* x, int64_t M, int64_t K, const float* base, float scale,
                     float* y, int64_t N, int64_t from, int64_t to) {
  float out[MOST_ROWS];
  for (int64_t i = 0, first = 0; first < to; first += weights.sizes[i++]) {
    const Weight* w = static_cast<const Weight*>(weights.data[i]);
    const int64_t last = first + weights.sizes[i];
    for (int64_t n = from > first ? from : first; n < (to < last ? to : last); ++n) {
      all_dots(w + (n - first) * K, x, M, K, out);
      for (int64_t m = 0; m < M; ++m) y[m * N + n] = (base ? base[m * N + n] : 0.0f) + scale * out[m];
    }
  }
}

// hidden[m, h] = silu(x[m] . gate[h]) * (x[m] . up[h]) for h in `from` .. `to` - 1.
template <typename Weight>
INLINE void gated(const void* gate, const void* up, const float* x, int64_t M, int64_t K, float* hidden, int64_t H,
                  int64_t from, int64_t to) {
  float opened[MOST_ROWS], raised[MOST_ROWS];
  for (int64_t h = from; h < to; ++h) {
    all_dots(static_cast<const Weight*>(gate) + h * K, x, M, K, opened);
    all_dots(static_cast<const Weight*>(up) + h * K, x, M, K, raised);
    for (int64_t m = 0; m < M; ++m) hidden[m * H + h] = opened[m] / (1 + std::exp(-opened[m])) * raised[m];
  }
}

// One query (scaled already) to S keys and values, of which `sees` (none: all) may be looked at; `scores` holds S.
template <typename Number>
INLINE void attend(const float* q, const Number* keys, const Number* values, const uint8_t* sees, int64_t S, int64_t K,
                   float* scores, float* __restrict out) {
  float most = -INFINITY, total = 0;
  for (int64_t s = 0; s < S; ++s) {
    dots<1>(keys + s * K, q, K, scores + s);
    if (sees && !sees[s]) scores[s] = -INFINITY;
    if (scores[s] > most || std::isnan(scores[s])) most = scores[s];
  }
  for (int64_t k = 0; k < K; ++k) out[k] = 0;
  for (int64_t s = 0; s < S; ++s) {
    const float share = std::exp(scores[s] - most);
    const Number* value = values + s * K;
    total += share;
    for (int64_t k = 0; k < K; ++k) out[k] += share * number(value[k]);
  }
  for (int64_t k = 0; k < K; ++k) out[k] /= total;
}

// y[m] = x[m] / rms(x[m]) * weight
INLINE void normalise(const float* x, const float* weight, float eps, int64_t M, int64_t D, float* y) {
  for (int64_t m = 0; m < M; ++m) {
    float squares;
    dots<1>(x + m * D, x + m * D, D, &squares);
    const float factor = 1 / std::sqrt(squares / float(D) + eps);
    for (int64_t d = 0; d < D; ++d) y[m * D + d] = x[m * D + d] * factor * weight[d];
  }
}

// The first half of each pair (k, k + K/2) turned against the second; `sine` bears the sign.
INLINE void turn(float* x, const float* cosine, const float* sine, int64_t K) {
  for (int64_t k = 0; k < K / 2; ++k) {
    const float low = x[k], high = x[k + K / 2];
    x[k] = low * cosine[k] + high * sine[k];
    x[k + K / 2] = high * cosine[k + K / 2] + low * sine[k + K / 2];
  }
}

// What the heads of one row that share a key head need to know; H heads in G groups, each K wide.
struct Heads {
  int64_t H, G, K;
  int64_t span;            // places that `keys` and `values` have room for, [M, G, span, K]
  void *keys, *values;
  // Of self-attention: where each row's token goes, and how it is turned.
  const int64_t* places;
  int64_t places_apart;    // 0 where all rows stand at one place, else 1
  const float *cosine, *sine;
  int64_t turned_apart;    // 0 where all rows are turned alike, else K
  // Of cross-attention: the norm of a query, and which features each row may look at.
  const float* query_norm;
  float query_eps;
  const uint8_t* sees;     // [M, span], none: all
};

// Group `number` = m * G + g: out[m, heads of g] from projected[m] = q | k | v (of cross-attention: q).
template <typename Number>
INLINE void group(const Heads& heads, int64_t number, float* projected, int64_t width, float* scores, float* out) {
  const int64_t m = number / heads.G, g = number % heads.G, K = heads.K, sharing = heads.H / heads.G;
  Number* keys = static_cast<Number*>(heads.keys) + number * heads.span * K;
  Number* values = static_cast<Number*>(heads.values) + number * heads.span * K;
  float* q = projected + m * width + g * sharing * K;
  int64_t S = heads.span;
  if (heads.places) {
    const int64_t place = heads.places[m * heads.places_apart];
    const float *cosine = heads.cosine + m * heads.turned_apart, *sine = heads.sine + m * heads.turned_apart;
    float* k = projected + m * width + (heads.H + g) * K;
    const float* v = k + heads.G * K;
    turn(k, cosine, sine, K);
    for (int64_t h = 0; h < sharing; ++h) turn(q + h * K, cosine, sine, K);
    for (int64_t i = 0; i < K; ++i) {
      store(keys + place * K + i, k[i]);
      store(values + place * K + i, v[i]);
    }
    S = place + 1;
  } else {
    normalise(q, heads.query_norm, heads.query_eps, sharing, K, q);
  }
  const float scale = 1 / std::sqrt(float(K));
  for (int64_t h = 0; h < sharing; ++h) {
    for (int64_t i = 0; i < K; ++i) q[h * K + i] *= scale;
    attend<Number>(q + h * K, keys, values, heads.sees ? heads.sees + m * heads.span : nullptr, S, K,
                   scores + (number * sharing + h) * heads.span, out + m * heads.H * K + (g * sharing + h) * K);
  }
}

struct Version {
  decltype(&multiply<float>) multiply;
  decltype(&gated<float>) gated;
  decltype(&group<float>) group;
};

#define VERSION(NAME, TARGET, NUMBER)                                                                                 \
  TARGET void NAME##_multiply(const Weights& weights, const float* x, int64_t M, int64_t K, const float* base,        \
                              float scale, float* y, int64_t N, int64_t from, int64_t to) {                           \
    multiply<NUMBER>(weights, x, M, K, base, scale, y, N, from, to);                                                  \
  }                                                                                                                   \
  TARGET void NAME##_gated(const void* gate, const void* up, const float* x, int64_t M, int64_t K, float* hidden,     \
                           int64_t H, int64_t from, int64_t to) {                                                     \
    gated<NUMBER>(gate, up, x, M, K, hidden, H, from, to);                                                            \
  }                                                                                                                   \
  TARGET void NAME##_group(const Heads& heads, int64_t number, float* projected, int64_t width, float* scores,        \
                           float* out) {                                                                              \
    group<NUMBER>(heads, number, projected, width, scores, out);                                                      \
  }                                                                                                                   \
  constexpr Version NAME{NAME##_multiply, NAME##_gated, NAME##_group};

VERSION(plain_float, , float)
VERSION(plain_half, , uint16_t)
#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
VERSION(avx2_float, AVX2, float)
VERSION(avx2_half, AVX2, uint16_t)
#endif

const Version& version(bool halves) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return halves ? avx2_half : avx2_float;
#endif
  return halves ? plain_half : plain_float;
}

// y = x + scale * (heads of the projections of `normed`) @ out^T, in three parts with a barrier behind each.
void attention(const Version& run, const Weights& in, int64_t width, const Heads& heads, const void* out, float scale,
               const float* x, const float* normed, float* room, float* y, int64_t M, int64_t D, int32_t threads) {
  const int64_t inner = heads.H * heads.K;
  float *projected = room, *attended = projected + M * width, *scores = attended + M * inner;
  const Weights last{{out}, {D}};
  if (width * D < WORTH_A_THREAD) threads = 1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; ++part)
      run.multiply(in, normed, M, D, nullptr, 1, projected, width, width * part / threads,
                   width * (part + 1) / threads);
#pragma omp for schedule(static)
    for (int64_t number = 0; number < M * heads.G; ++number)
      run.group(heads, number, projected, width, scores, attended);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; ++part)
      run.multiply(last, attended, M, inner, x, scale, y, D, D * part / threads, D * (part + 1) / threads);
  }
}

}  // namespace

extern "C" {

// y = x + attention(norm(x)); the new keys and values are written at `places` [M], and a row sees those up to its own.
// room: M * (D + (2 * H + 2 * G) * K + H * span) numbers.
void self_attention_step(const float* x, const float* norm, float eps, const void* q, const void* k, const void* v,
                         const void* out, const float* cosine, const float* sine, int64_t turned_apart, void* keys,
                         void* values, int64_t span, const int64_t* places, int64_t places_apart, float* room, float* y,
                         int64_t M, int64_t D, int64_t H, int64_t G, int64_t K, int32_t halves, int32_t threads) {
  normalise(x, norm, eps, M, D, room);
  Heads heads{H, G, K, span, keys, values, places, places_apart, cosine, sine, turned_apart, nullptr, 0, nullptr};
  attention(version(halves), {{q, k, v}, {H * K, G * K, G * K}}, (H + 2 * G) * K, heads, out, 1, x, room, room + M * D,
            y, M, D, threads);
}

// y = x + scale * cross_attention(norm(x)) to all `span` keys and values, or to those that `sees` [M, span] marks.
// room: M * (D + 2 * H * K + H * span) numbers.
void cross_attention_step(const float* x, const float* norm, float eps, const void* q, const float* query_norm,
                          float query_eps, const void* out, float scale, void* keys, void* values, int64_t span,
                          const uint8_t* sees, float* room, float* y, int64_t M, int64_t D,
                          int64_t H, int64_t G, int64_t K, int32_t halves, int32_t threads) {
  normalise(x, norm, eps, M, D, room);
  Heads heads{H, G, K, span, keys, values, nullptr, 0, nullptr, nullptr, 0, query_norm, query_eps, sees};
  attention(version(halves), {{q}, {H * K}}, H * K, heads, out, scale, x, room, room + M * D, y, M, D, threads);
}

// y = x + scale * down(silu(gate(norm(x))) * up(norm(x))), N hidden. room: M * (D + N) numbers.
void swiglu_step(const float* x, const float* norm, float eps, const void* gate, const void* up, const void* down,
                 float scale, float* room, float* y, int64_t M, int64_t D, int64_t N, int32_t halves,
                 int32_t threads) {
  const Version& run = version(halves);
  const Weights last{{down}, {D}};
  float *normed = room, *hidden = room + M * D;
  normalise(x, norm, eps, M, D, normed);
  if (D * N < WORTH_A_THREAD) threads = 1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; ++part)
      run.gated(gate, up, normed, M, D, hidden, N, N * part / threads, N * (part + 1) / threads);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; ++part)
      run.multiply(last, hidden, M, N, x, scale, y, D, D * part / threads, D * (part + 1) / threads);
  }
}

// y[M, N] = norm(x) @ weight^T. room: M * D numbers.
void head_step(const float* x, const float* norm, float eps, const void* weight, float* room, float* y, int64_t M,
               int64_t D, int64_t N, int32_t halves, int32_t threads) {
  const Version& run = version(halves);
  const Weights only{{weight}, {N}};
  normalise(x, norm, eps, M, D, room);
  if (D * N < WORTH_A_THREAD) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t part = 0; part < threads; ++part)
    run.multiply(only, room, M, D, nullptr, 1, y, N, N * part / threads, N * (part + 1) / threads);
}
}
