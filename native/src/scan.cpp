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
constexpr int V = 4;          /* vectors of channels side by side in long chains of operations */
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

/* R numbers of the states of a vector of channels through one token: h and A [R, BLOCK], A times log2(e). */
template <int R>
LEANLM_INLINE void scan_states(float *h, const float *A, Vec dt, Vec inputs, const float *Bm, const float *Cm, Vec (&scanned)[2]) {
    Vec decays[R];
    for (int r = 0; r < R; r++) decays[r] = dt * load(A + r * BLOCK);
    exp2s_of_negative(decays);
    for (int r = 0; r < R; r++) {
        const Vec state = fma(load(h + r * BLOCK), decays[r], inputs * splat(Bm[r]));
        store(h + r * BLOCK, state);
        scanned[r] = fma(state, splat(Cm[r]), scanned[r]);
    }
}

/* The values from i on, of `count`; zeros where there are none. */
LEANLM_INLINE Vec part(const float *values, int64_t i, int64_t count) {
    return i < count ? load_up_to(values + i, count - i) : zeros();
}

/* One token of a block of channels: h and A [N, BLOCK]. What is computed once for a channel is computed for all of them before and
 * after their states: one alone would leave the units waiting. */
void scan_token(const Scan &s, int64_t m, int64_t first, int64_t count, float *h, const float *A) {
    const float *x = s.x + m * s.x_stride + first, *a = s.a + m * s.a_stride + first, *z = s.z + m * s.z_stride + first;
    const float *Bm = s.Bm + m * s.B_stride, *Cm = s.Cm + m * s.C_stride;
    float dts[BLOCK], sums[BLOCK];
    for (int64_t i = 0; i < count; i += V * W) {
        Vec dt[V];
        for (int v = 0; v < V; v++) dt[v] = part(a, i + v * W, count) + part(s.dt_bias + first, i + v * W, count);
        softpluses(dt);
        for (int v = 0; v < V; v++) store(dts + i + v * W, dt[v]);
    }
    for (int64_t i = 0; i < count; i += W) {
        const Vec dt = load(dts + i), inputs = dt * load_up_to(x + i, count - i);
        Vec scanned[2] = {};
        int64_t n = 0;
        for (; n + 2 <= s.N; n += 2) scan_states<2>(h + n * BLOCK + i, A + n * BLOCK + i, dt, inputs, Bm + n, Cm + n, scanned);
        if (n < s.N) scan_states<1>(h + n * BLOCK + i, A + n * BLOCK + i, dt, inputs, Bm + n, Cm + n, scanned);
        store(sums + i, scanned[0] + scanned[1]);
    }
    for (int64_t i = 0; i < count; i += V * W) {
        Vec gates[V];
        for (int v = 0; v < V; v++) gates[v] = part(z, i + v * W, count);
        silus(gates);
        for (int64_t v = 0, at = i; v < V && at < count; v++, at += W) {
            const Vec scanned = fma(part(s.D + first, at, count), part(x, at, count), load(sums + at));
            store_up_to(s.y + m * s.y_stride + first + at, scanned * gates[v], count - at);
        }
    }
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
        scan_token(s, m, first, count, h, A);
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
