// The backward pass on one block of queries (cpu_kernel.h has the tiles and what the letters are).
//
// With the keys folded, kk_l = fold(k_j, k_l), the pairs (j, l) of one row j of the small stream are plain attention
// with values v_j * v_l. The rows are the heads of the queries that see j, and five products do everything:
//
//   S = Q KK^T,  Z = grad VV^T,  P = exp(scale S - lse),  dS = P (Z - delta),
//   dQ += dS KK,  E = dS^T Q,  F = P^T grad
//
// E, summed over queries, then gives dk_l (folded with k_j) as well as dk_j (folded with k_l, summed over l), and F the
// same of the values: a sixth product, P V for dv_j alone, is not there.
//
// Rows are worked on a band at a time. The up to four rows of a tile share the union of their windows, which is one
// window where they are heads of one query; what a row does not see has weight zero.

namespace NAMESPACE {

// Row j of the small stream with the rows low .. low + L - 1 of the large one: keys as rows [L, P] and turned, values
// turned; k, kt and vt begin at `low` too. The turned ones a vector further, as far as a tile may read.
static inline void fold_pairs(const Problem& p, const float* kj, const float* vj, const float* k, const float* kt,
                              const float* vt, long ld, long L, long W, long P, float* kk, float* kkt, float* vvt) {
  const long wide = up(L) + LANES;
  for (long l = 0; l < L; l++) {
    if (p.form) cross(kj, k + l * P, kk + l * P, p.D);
    else times(kj, k + l * P, kk + l * P, W);
  }
  for (long d = 0; d < p.D; d++) {
    const float* from = vt + d * ld;
    for (long c = 0; c < wide; c += LANES) store(vvt + d * ld + c, vj[d] * load(from + c));
    if (!p.form) {
      for (long c = 0; c < wide; c += LANES) store(kkt + d * ld + c, kj[d] * load(kt + d * ld + c));
      continue;
    }
    const long chunk = d / 3 * 3, next = chunk + (d + 1) % 3, last = chunk + (d + 2) % 3;
    const float *a = kt + last * ld, *b = kt + next * ld;
    for (long c = 0; c < wide; c += LANES) store(kkt + d * ld + c, kj[next] * load(a + c) - kj[last] * load(b + c));
  }
}

// E and F [L, P] of row j to the gradients of both streams.
static inline void unfold_pairs(const Problem& p, const float* kj, const float* vj, const float* k, const float* v,
                                const float* e, const float* f, long L, long W, long P, float* dkj, float* dvj,
                                float* dk, float* dv) {
  for (long d = 0; d < W; d += LANES) {
    const Vector by = load(vj + d);
    Vector sum = load(dvj + d);
    for (long at = d; at < L * P; at += P) {
      const Vector x = load(f + at);
      store(dv + at, load(dv + at) + x * by);
      sum += x * load(v + at);
    }
    store(dvj + d, sum);
    if (p.form) continue;
    const Vector key = load(kj + d);
    sum = load(dkj + d);
    for (long at = d; at < L * P; at += P) {
      const Vector x = load(e + at);
      store(dk + at, load(dk + at) + x * key);
      sum += x * load(k + at);
    }
    store(dkj + d, sum);
  }
  if (!p.form) return;
  for (long l = 0; l < L; l++) {
    add_cross(e + l * P, kj, dk + l * P, p.D);
    add_cross(k + l * P, e + l * P, dkj, p.D);
  }
}

// A tile's rows of a band, and what they see: columns left .. left + width - 1 of the band's.
struct Seen {
  long row, rows, left, width;
};

struct Band {
  const Problem& p;
  long b, head, begin, G;              // row r belongs to query begin + r / G
  const float *q, *grad;               // [rows of the block, P]
  float* dq;
  const float *kk, *kkt, *vvt;         // the pairs, from row `low` of the large stream on
  float *e, *f;
  float *weights, *slopes;             // [BAND, S]
  long low, ld, P, S, W;

  // Rows r .. r + n - 1.
  void operator()(long r, long n) const {
    Seen seen[BAND / ROWS];
    const Deal deal(n, ROWS);
    const auto query = [&](long row) { return begin + row / G; };
    const auto oldest = [&](long i) { return std::max(0L, i - p.wl + 1); };
    const long base = oldest(query(r)), columns = query(r + n - 1) + 1 - base;
    long widest = 0;
    for (long part = 0; part < deal.parts; part++) {
      const long m = deal.begin(part), rows = deal.begin(part + 1) - m, left = oldest(query(r + m));
      seen[part] = {m, rows, left - base, query(r + m + rows - 1) + 1 - left};
      widest = std::max(widest, seen[part].width);
    }
    scores(q + r * P, kkt + base - low, seen, deal.parts, widest, weights);
    scores(grad + r * P, vvt + base - low, seen, deal.parts, widest, slopes);
    for (long row = 0; row < n; row++) slope(r + row, row * S, base, columns);
    const Deal widths(W / LANES, VECTORS), keys(columns, ROWS);
    for (long part = 0; part < widths.parts; part++) {
      const long d = widths.begin(part) * LANES, vectors = widths.begin(part + 1) - widths.begin(part);
      for (const Seen* s = seen; s < seen + deal.parts; s++)
        tile(s->rows, vectors, slopes + s->row * S + s->left, S, 1, kk + (base - low + s->left) * P + d, P, s->width,
             r + s->row, d, Add{dq, P});
      for (long each = 0; each < keys.parts; each++) {
        // The rows that see any of these keys.
        const long l = keys.begin(each), rows = keys.begin(each + 1) - l;
        const long first = std::max(0L, (base + l - begin) * G - r);
        const long K = std::min(n, (base + l + rows - 1 + p.wl - begin) * G - r) - first;
        if (K <= 0) continue;
        const long at = first * S + l, from = (r + first) * P + d, to = base - low + l;
        tile(rows, vectors, slopes + at, 1, S, q + from, P, K, to, d, Add{e, P});
        tile(rows, vectors, weights + at, 1, S, grad + from, P, K, to, d, Add{f, P});
      }
    }
  }

  // x [rows, P] times turned keys, each tile of rows at its own columns.
  void scores(const float* x, const float* keys, const Seen* seen, long parts, long widest, float* to) const {
    const Deal deal(up(widest) / LANES, VECTORS);
    for (long part = 0; part < deal.parts; part++) {
      const long first = deal.begin(part), last = deal.begin(part + 1);
      for (const Seen* s = seen; s < seen + parts; s++) {
        const long vectors = std::min(last, up(s->width) / LANES) - first, column = s->left + first * LANES;
        if (vectors > 0) tile(s->rows, vectors, x + s->row * P, P, 1, keys + column, ld, p.D, s->row, column, Put{to, S});
      }
    }
  }

  // Row r's scores and products with the gradient become weights and slopes; zeros where it does not look.
  void slope(long r, long at, long base, long columns) const {
    const long i = begin + r / G, from = std::max(0L, i - p.wl + 1) - base, to = i + 1 - base;
    const long number = (b * p.T + i) * p.H + head * G + r % G;
    const Vector shift = spread(p.lse[number]), delta = spread(p.delta[number]);
    float *w = weights + at, *z = slopes + at;
    for (long c = from; c < to; c += LANES) {
      const Vector x = exponential(load(w + c) * p.scale - shift);
      store(w + c, x);
      store(z + c, x * (load(z + c) - delta));
    }
    for (float* x : {w, z}) {
      std::memset(x, 0, sizeof(float) * from);
      std::memset(x + to, 0, sizeof(float) * (columns - to));
    }
  }
};

// Rows begin .. end - 1 of a tensor of query heads as [(end - begin) G, P]; padding is zero.
static inline void gather_queries(const Problem& p, const float* x, long b, long head, long begin, long end, long P,
                                  float* to) {
  const long G = p.H / p.N;
  for (long i = begin; i < end; i++)
    for (long g = 0; g < G; g++, to += P) {
      std::memcpy(to, x + ((b * p.T + i) * p.H + head * G + g) * p.D, sizeof(float) * p.D);
      std::memset(to + p.D, 0, sizeof(float) * (P - p.D));
    }
}

// Queries begin .. end - 1 of one key head: dq whole; of the windows' rows a slab of their own, which is added up later.
static void backward(const Problem& p, long b, long head, long begin, long end, Slab slab, Scratch& scratch) {
  const long W = up(p.D), P = pitch(p.D), G = p.H / p.N, first = std::max(0L, begin - p.wl + 1), rows = end - first;
  const long first_s = std::max(0L, begin - p.ws + 1), small = end - first_s, ld = turned_size(rows + LANES);
  const long heads = (end - begin) * G, S = pitch(std::min(rows, p.wl + (BAND - 1) / G + 1) + LANES);
  const auto zeros = [&](long n, long m) {
    return static_cast<float*>(std::memset(scratch.take(n * m), 0, sizeof(float) * n * m));
  };
  float *q = scratch.take(heads * P), *grad = scratch.take(heads * P), *dq = zeros(heads, P);
  float *k = scratch.take(rows * P), *v = scratch.take(rows * P), *kt = zeros(p.D, ld), *vt = zeros(p.D, ld);
  float *ks = scratch.take(small * P), *vs = scratch.take(small * P), *dks = zeros(small, P), *dvs = zeros(small, P);
  float *dkl = zeros(rows, P), *dvl = zeros(rows, P), *kk = zeros(rows, P);
  float *kkt = scratch.take(p.D * ld), *vvt = scratch.take(p.D * ld), *e = scratch.take(rows * P);
  float *f = scratch.take(rows * P), *weights = scratch.take(BAND * S), *slopes = scratch.take(BAND * S);
  gather_queries(p, p.q, b, head, begin, end, P, q);
  gather_queries(p, p.grad, b, head, begin, end, P, grad);
  gather(p, p.kl, b, head, first, end, P, k, kt, ld);
  gather(p, p.vl, b, head, first, end, P, v, vt, ld);
  gather(p, p.ks, b, head, first_s, end, P, ks, nullptr, 0);
  gather(p, p.vs, b, head, first_s, end, P, vs, nullptr, 0);
  for (long j = first_s; j < end; j++) {
    const long from = std::max(begin, j), to = std::min(end, j + p.ws);  // the queries that see row j
    const long low = std::max(0L, from - p.wl + 1), L = to - low;        // and the large stream's rows that they see
    const long at = low - first, own = (j - first_s) * P;
    fold_pairs(p, ks + own, vs + own, k + at * P, kt + at, vt + at, ld, L, W, P, kk, kkt, vvt);
    for (float* x : {e, f}) std::memset(x, 0, sizeof(float) * L * P);
    const Band band{p, b, head, begin, G, q, grad, dq, kk, kkt, vvt, e, f, weights, slopes, low, ld, P, S, W};
    for (long r = (from - begin) * G; r < (to - begin) * G; r += BAND) band(r, std::min(BAND, (to - begin) * G - r));
    unfold_pairs(p, ks + own, vs + own, k + at * P, v + at * P, e, f, L, W, P, dks + own, dvs + own, dkl + at * P,
                 dvl + at * P);
  }
  for (long r = 0; r < heads; r++) {
    float* out = p.dq + ((b * p.T + begin + r / G) * p.H + head * G + r % G) * p.D;
    for (long d = 0; d < p.D; d++) out[d] = dq[r * P + d] * p.scale;
  }
  const auto hand_over = [&](float* to, const float* x, long n) {
    for (long t = 0; t < n; t++) std::memcpy(to + t * p.D, x + t * P, sizeof(float) * p.D);
  };
  hand_over(slab.kl, dkl, rows);
  hand_over(slab.vl, dvl, rows);
  hand_over(slab.ks, dks, small);
  hand_over(slab.vs, dvs, small);
}

}  // namespace NAMESPACE
