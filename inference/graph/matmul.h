// Products of matrices, triangular solves and running sums, for the loop of `replay.py`. Its calls
// have sizes and strides as constants, so what is inlined is compiled for them.
//
// Register tiles of MR rows and NV vectors, as in Goto & van de Geijn 2008, "Anatomy of
// high-performance matrix multiplication" (ACM TOMS 34:3), without the blocking for caches that
// matrices of a few hundred columns do not need. W, the floats of a vector, is defined before.
#include <cstdint>
#include <cstdlib>
#include <cstring>

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(4 * W)));

// c (MR, NV * W) = a b + bias, for b (k, NV * W)
template <int MR, int NV>
static inline void tile(int64_t k, const float* a, int64_t am, int64_t ak, const float* b,
                        int64_t bk, float* c, int64_t cm, const float* bias,
                        int64_t biasm) {
    vec s[MR][NV];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NV; j++)
            s[i][j] = bias ? *(const vec*)(bias + i * biasm + j * W) : vec{};
    for (int64_t l = 0; l < k; l++) {
        vec row[NV];
        for (int j = 0; j < NV; j++) row[j] = *(const vec*)(b + l * bk + j * W);
        for (int i = 0; i < MR; i++) {
            const float x = a[i * am + l * ak];
            for (int j = 0; j < NV; j++) s[i][j] += x * row[j];
        }
    }
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NV; j++) *(vec*)(c + i * cm + j * W) = s[i][j];
}

// what is left below the last whole tile: fewer than MR rows
template <int MR, int NV>
static inline void rest(int64_t m, int64_t k, const float* a, int64_t am, int64_t ak,
                        const float* b, int64_t bk, float* c, int64_t cm, const float* bias,
                        int64_t biasm) {
    if constexpr (MR > 0) {
        if (m == MR) return tile<MR, NV>(k, a, am, ak, b, bk, c, cm, bias, biasm);
        rest<MR - 1, NV>(m, k, a, am, ak, b, bk, c, cm, bias, biasm);
    }
}

template <int MR, int NV>
static inline void columns(int64_t m, int64_t k, const float* a, int64_t am, int64_t ak,
                           const float* b, int64_t bk, float* c, int64_t cm, const float* bias,
                           int64_t biasm) {
    int64_t i = 0;
    for (; i + MR <= m; i += MR)
        tile<MR, NV>(k, a + i * am, am, ak, b, bk, c + i * cm, cm,
                     bias ? bias + i * biasm : nullptr, biasm);
    rest<MR - 1, NV>(m - i, k, a + i * am, am, ak, b, bk, c + i * cm, cm,
                     bias ? bias + i * biasm : nullptr, biasm);
}

// to (W, W), rows `stride` apart: the transpose of a block of b
static inline void transpose(const float* b, int64_t bn, float* to, int64_t stride) {
    vec x[W], y[W];
    places low, high;
    for (int i = 0; i < W; i++) {
        low[i] = i / 2 + (i % 2) * W;
        high[i] = low[i] + W / 2;
        x[i] = *(const vec*)(b + i * bn);
    }
#pragma GCC unroll 8
    for (int n = 1; n < W; n *= 2) {  // a perfect shuffle of the rows, log W times
#pragma GCC unroll 16
        for (int i = 0; i < W / 2; i++) {
            y[2 * i] = __builtin_shuffle(x[i], x[i + W / 2], low);
            y[2 * i + 1] = __builtin_shuffle(x[i], x[i + W / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) x[i] = y[i];
    }
    for (int i = 0; i < W; i++) *(vec*)(to + i * stride) = x[i];
}

// panel (k, NV * W): NV * W columns of b, whose columns lie together
template <int NV>
static void pack(int64_t k, const float* b, int64_t bn, float* panel) {
    if (k < W) {
        for (int64_t l = 0; l < k; l++)
            for (int j = 0; j < NV * W; j++) panel[l * NV * W + j] = b[j * bn + l];
        return;
    }
    for (int64_t l = 0; l < k; l += W) {
        const int64_t from = l + W <= k ? l : k - W;
        for (int j = 0; j < NV; j++)
            transpose(b + j * W * bn + from, bn, panel + from * NV * W + j * W, NV * W);
    }
}

// NV * W columns of c = a b + bias, by way of a panel where the columns of b lie together
template <int MR, int NV>
static void block(int64_t m, int64_t k, const float* a, int64_t am, int64_t ak, const float* b,
                  int64_t bk, int64_t bn, float* c, int64_t cm, const float* bias,
                  int64_t biasm) {
    if (bn == 1) return columns<MR, NV>(m, k, a, am, ak, b, bk, c, cm, bias, biasm);
    float* panel = (float*)std::aligned_alloc(64, 4 * NV * W * k);
    pack<NV>(k, b, bn, panel);
    columns<MR, NV>(m, k, a, am, ak, panel, NV * W, c, cm, bias, biasm);
    std::free(panel);
}

// n < W columns of c, by way of a panel of b that is filled up with zeros, whatever b's strides
template <int MR>
static void narrow(int64_t m, int64_t n, int64_t k, const float* a, int64_t am, int64_t ak,
                   const float* b, int64_t bk, int64_t bn, float* c, int64_t cm,
                   const float* bias, int64_t biasm) {
    float* panel = (float*)std::aligned_alloc(64, 4 * W * k);
    for (int64_t l = 0; l < k; l++)
        for (int64_t j = 0; j < W; j++) panel[l * W + j] = j < n ? b[l * bk + j * bn] : 0.0f;
    float out[MR * W];
    for (int64_t i = 0; i < m; i += MR) {
        const int64_t rows = i + MR <= m ? MR : m - i;
        rest<MR, 1>(rows, k, a + i * am, am, ak, panel, W, out, W, nullptr, 0);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < n; j++)
                c[(i + r) * cm + j] = out[r * W + j] + (bias ? bias[(i + r) * biasm + j] : 0.0f);
    }
    std::free(panel);
}

// c (m, n) = a (m, k) b (k, n) + bias (m, n), the rows of bias `biasm` apart or, with 0, all one.
// The rows of c lie together, and the rows or the columns of b. The last vector may be computed
// twice.
template <int MR, int NV>
static void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t am, int64_t ak,
                    const float* b, int64_t bk, int64_t bn, float* c, int64_t cm,
                    const float* bias, int64_t biasm) {
    if (n < W) return narrow<MR>(m, n, k, a, am, ak, b, bk, bn, c, cm, bias, biasm);
    for (int64_t j = 0; j < n;) {
        if (j + NV * W <= n) {
            block<MR, NV>(m, k, a, am, ak, b + j * bn, bk, bn, c + j, cm,
                          bias ? bias + j : nullptr, biasm);
            j += NV * W;
        } else {
            const int64_t at = j + W <= n ? j : n - W;
            block<MR, 1>(m, k, a, am, ak, b + at * bn, bk, bn, c + at, cm,
                         bias ? bias + at : nullptr, biasm);
            j += W;
        }
    }
}

// The same by several threads, each with some of the rows or columns, at least a tile for each
template <int MR, int NV>
static void shared(int threads, int64_t m, int64_t n, int64_t k, const float* a, int64_t am,
                   int64_t ak, const float* b, int64_t bk, int64_t bn, float* c, int64_t cm,
                   const float* bias, int64_t biasm) {
    const int64_t high = m / MR / threads, wide = n / (NV * W) / threads;
    if (threads == 1 || (high == 0 && wide == 0))
        return product<MR, NV>(m, n, k, a, am, ak, b, bk, bn, c, cm, bias, biasm);
    const bool rows = high >= wide;
    const int64_t unit = rows ? MR : NV * W, units = (rows ? m : n) / unit;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++) {
        const int64_t from = units * t / threads * unit;
        const int64_t to = t + 1 < threads ? units * (t + 1) / threads * unit : (rows ? m : n);
        if (rows)
            product<MR, NV>(to - from, n, k, a + from * am, am, ak, b, bk, bn, c + from * cm, cm,
                            bias ? bias + from * biasm : nullptr, biasm);
        else
            product<MR, NV>(m, to - from, k, a, am, ak, b + from * bn, bk, bn, c + from, cm,
                            bias ? bias + from : nullptr, biasm);
    }
}

// The entries of a tensor of batches, rows and columns, whatever its strides
template <class T>
struct Entries {
    T* p;
    int64_t batch, row, column;
    T& operator()(int64_t h, int64_t i, int64_t j) const {
        return p[h * batch + i * row + j * column];
    }
};

#define INLINED static inline __attribute__((always_inline)) void

// c (batch, m, n) = a (batch, m, k) b (batch, k, n) + bias (m, n), for a few numbers of any type
template <class T>
INLINED plain(int batch, int m, int n, int k, Entries<T> a, Entries<T> b, Entries<T> c,
              Entries<T> bias) {
    for (int h = 0; h < batch; h++)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) {
                T s = bias.p ? bias(0, i, j) : T(0);
                for (int l = 0; l < k; l++) s += a(h, i, l) * b(h, l, j);
                c(h, i, j) = s;
            }
}

// to (m, n) += term (m, n)
template <class T>
INLINED add(int m, int n, Entries<T> to, Entries<T> term) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) to(0, i, j) += term(0, i, j);
}

// x (batch, n, columns) = a^-1 b by substitution, a (batch, n, n) triangular
template <class T>
INLINED solve(int batch, int n, int columns, bool upper, bool unit, Entries<T> a, Entries<T> b,
              Entries<T> x) {
    for (int h = 0; h < batch; h++)
        for (int j = 0; j < columns; j++)
            for (int r = 0; r < n; r++) {
                const int i = upper ? n - 1 - r : r, end = upper ? n : i;
                T s = b(h, i, j);
                for (int l = upper ? i + 1 : 0; l < end; l++) s -= a(h, i, l) * x(h, l, j);
                x(h, i, j) = unit ? s : s / a(h, i, i);
            }
}

// to (outer, n, inner): sums of `from` along the middle axis so far
template <class T>
INLINED running_sums(int outer, int n, int inner, const T* from, T* to) {
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i++) {
            T s = 0;
            for (int j = 0; j < n; j++) {
                const int64_t at = ((int64_t)o * n + j) * inner + i;
                to[at] = s += from[at];
            }
        }
}
