/* Selective scan: h = exp(dt A) h + dt x B, y = h . C + D x, gated (Gu & Dao 2023, section 3.2).
 *
 * B texts  L tokens  I channels  N state width
 *
 * One or a few tokens: vectors along N, the state streamed once. More: vectors of channels, the states of a block of channels
 * transposed in the first cache while its tokens go by.
 */
#include <type_traits>

#include "elementary.h"
#include "workspace.h"
#include "threads.h"
#include "transpose.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t BLOCK = 64; /* channels of a task */
constexpr int64_t FEW = 4;    /* tokens up to which steps are faster */
constexpr int64_t AHEAD = 2;  /* tokens whose inputs are fetched early: they lie whole rows apart */

struct Scan {
    const float *x, *a, *Bm, *Cm, *z;
    float *y;
    int64_t x_stride, a_stride, B_stride, C_stride, z_stride, y_stride;
    int64_t B, L, I, N;
    const float *A, *dt_bias, *D;

    /* dt of up to n channels from i on of token m. */
    LEANLM_INLINE Vec dt(int64_t m, int64_t i, int64_t n) const {
        return softplus(load_up_to(a + m * a_stride + i, n) + load_up_to(dt_bias + i, n));
    }

    LEANLM_INLINE void write(int64_t m, int64_t i, int64_t n, Vec scanned, Vec input) const {
        const Vec gate = silu(load_up_to(z + m * z_stride + i, n));
        store_up_to(y + m * y_stride + i, fma(load_up_to(D + i, n), input, scanned) * gate, n);
    }
};

/* The states [R, N] of R channels after their token; their products with C. `rates`: dt log2(e). */
template <int R, class T>
LEANLM_INLINE void step_channels(T *h, const float *A, int64_t N, const float *rates, const float *inputs, const float *Bm,
                                 const float *Cm, Vec *products) {
    for (int64_t n = 0; n < N; n += W) {
        const int64_t left = N - n;
        const Vec b = load_up_to(Bm + n, left), c = load_up_to(Cm + n, left);
        Vec decays[R];
        for (int r = 0; r < R; r++) decays[r] = load_up_to(A + r * N + n, left) * rates[r];
        exp2s_of_negative(decays);
        for (int r = 0; r < R; r++) {
            const Vec state = fma(load_up_to(h + r * N + n, left), decays[r], inputs[r] * b);
            store_up_to(h + r * N + n, state, left);
            products[r] = fma(state, c, products[r]);
        }
    }
}

/* One token of the channels first .. first + count - 1; h is the first one's state. */
template <class T>
void step(const Scan &s, int64_t m, int64_t first, int64_t count, T *h) {
    const float *Bm = s.Bm + m * s.B_stride, *Cm = s.Cm + m * s.C_stride;
    for (int64_t i = 0; i < count; i += W) {
        const int64_t channel = first + i, n = count - i < W ? count - i : W;
        const Vec dt = s.dt(m, channel, n), x = load_up_to(s.x + m * s.x_stride + channel, n);
        float rates[W], inputs[W], scanned[W < 8 ? 8 : W];
        store(rates, dt * LOG2_E);
        store(inputs, dt * x);
        for (int64_t eight = 0; eight < W; eight += 8) {
            Vec products[8] = {};
            const int64_t end = n < eight + 8 ? n : eight + 8;
            const auto channels = [&](int64_t j, auto count) {
                step_channels<count>(h + (i + j) * s.N, s.A + (channel + j) * s.N, s.N, rates + j, inputs + j, Bm, Cm,
                                     products + j - eight);
            };
            int64_t j = eight;
            for (; j + 4 <= end; j += 4) channels(j, std::integral_constant<int, 4>());
            for (; j < end; j++) channels(j, std::integral_constant<int, 1>());
            sums(products, scanned + eight);
        }
        s.write(m, channel, n, load(scanned), x);
    }
}

/* V vectors of channels through one token: h and A [N, BLOCK], A times log2(e). */
template <int V>
LEANLM_INLINE void scan_vectors(const Scan &s, int64_t m, int64_t channel, int64_t left, float *h, const float *A) {
    const float *Bm = s.Bm + m * s.B_stride, *Cm = s.Cm + m * s.C_stride;
    Vec dt[V], x[V], inputs[V], scanned[V];
    for (int v = 0; v < V; v++) {
        dt[v] = s.dt(m, channel + v * W, left - v * W);
        x[v] = load_up_to(s.x + m * s.x_stride + channel + v * W, left - v * W);
        inputs[v] = dt[v] * x[v];
        scanned[v] = zeros();
    }
    for (int64_t n = 0; n < s.N; n++) {
        const Vec b = splat(Bm[n]), c = splat(Cm[n]);
        Vec decays[V];
        for (int v = 0; v < V; v++) decays[v] = dt[v] * load(A + n * BLOCK + v * W);
        exp2s_of_negative(decays);
        for (int v = 0; v < V; v++) {
            const Vec state = fma(load(h + n * BLOCK + v * W), decays[v], inputs[v] * b);
            store(h + n * BLOCK + v * W, state);
            scanned[v] = fma(state, c, scanned[v]);
        }
    }
    for (int v = 0; v < V; v++) s.write(m, channel + v * W, left - v * W, scanned[v], x[v]);
}

LEANLM_INLINE void fetch_row(const float *row, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) fetch(row + i, 0);
}

/* All tokens of one text for the channels first .. first + count - 1; h and A [N, BLOCK]. */
void scan_block(const Scan &s, int64_t b, int64_t first, int64_t count, float *h, const float *A) {
    for (int64_t t = 0; t < s.L; t++) {
        const int64_t m = b * s.L + t;
        if (t + AHEAD < s.L) {
            fetch_row(s.x + (m + AHEAD) * s.x_stride + first, count);
            fetch_row(s.a + (m + AHEAD) * s.a_stride + first, count);
            fetch_row(s.z + (m + AHEAD) * s.z_stride + first, count);
        }
        int64_t i = 0;
        for (; i + 2 * W <= count; i += 2 * W) scan_vectors<2>(s, m, first + i, count - i, h + i, A + i);
        for (; i < count; i += W) scan_vectors<1>(s, m, first + i, count - i, h + i, A + i);
    }
}

/* All tokens of one block of channels of one text; `state` [count, N]. */
template <class T>
void sequence(const Scan &s, int64_t b, int64_t first, int64_t count, T *state) {
    float *h = workspace(Workspace::Own, 2 * s.N * BLOCK), *A = h + s.N * BLOCK;
    transpose_rows([&](int64_t i) { return state + i * s.N; }, count, s.N, h, BLOCK, BLOCK);
    transpose_rows([&](int64_t i) { return s.A + (first + i) * s.N; }, count, s.N, A, BLOCK, BLOCK);
    for (int64_t i = 0; i < s.N * BLOCK; i += W) store(A + i, load(A + i) * LOG2_E);
    scan_block(s, b, first, count, h, A);
    transpose_back(h, BLOCK, count, s.N, state, s.N);
}

/* A few tokens, the state in float32 meanwhile. */
template <class T>
void steps(const Scan &s, int64_t b, int64_t first, int64_t count, T *state) {
    if (s.L == 1) return step(s, b, first, count, state);
    const int64_t size = count * s.N;
    float *wide = workspace(Workspace::Own, size);
    for (int64_t i = 0; i < size; i += W) store_up_to(wide + i, load_up_to(state + i, size - i), size - i);
    for (int64_t t = 0; t < s.L; t++) step(s, b * s.L + t, first, count, wide);
    for (int64_t i = 0; i < size; i += W) store_up_to(state + i, load_up_to(wide + i, size - i), size - i);
}

} // namespace

int scan(const float *x, int64_t x_stride, const float *a, int64_t a_stride, const float *Bm, int64_t B_stride, const float *Cm,
         int64_t C_stride, const float *z, int64_t z_stride, float *y, int64_t y_stride, int64_t B, int64_t L, int64_t I, int32_t N,
         const float *A, const float *dt_bias, const float *D, void *state, int32_t dtype) {
    const Scan s{x,        a,        Bm,       Cm, z, y, x_stride, a_stride, B_stride, C_stride,
                 z_stride, y_stride, B, L, I, N, A, dt_bias, D};
    const int64_t blocks = (I + BLOCK - 1) / BLOCK;
    with_dtype(dtype, [&](auto *typed) {
        auto *states = static_cast<decltype(typed)>(state);
        parallel_for(B * blocks, [&](int64_t task) {
            const int64_t b = task / blocks, first = task % blocks * BLOCK, count = I - first < BLOCK ? I - first : BLOCK;
            if (L < FEW)
                steps(s, b, first, count, states + (b * I + first) * N);
            else
                sequence(s, b, first, count, states + (b * I + first) * N);
        });
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
