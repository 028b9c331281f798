/* Causal depthwise convolution with its tail of earlier inputs.   B texts  L tokens  C channels  K taps */
#include <type_traits>

#include "elementary.h"
#include "threads.h"
#include "triples.h"
#include "workspace.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t BLOCK = 256; /* channels whose last inputs stay in the first cache */
constexpr int64_t SHARE = 4;   /* blocks of a task of one token: worth waking a thread for */

struct Conv {
    float *x;
    int64_t x_stride, L, C;
    int32_t K;
    const float *weight, *bias;
    bool silu;

    LEANLM_INLINE Vec tap(int64_t k, int64_t c) const { return load_up_to(weight + k * C + c, C - c); }
    LEANLM_INLINE Vec added(int64_t c) const { return bias ? load_up_to(bias + c, C - c) : zeros(); }

    /* V vectors of outputs, of the last of which n values count. */
    template <int V>
    LEANLM_INLINE void write(float *to, Vec (&y)[V], int64_t n) const {
        if (silu) silus(y);
        for (int v = 0; v < V; v++) store_up_to(to + v * W, y[v], v == V - 1 ? n : W);
    }
};

/* One token of a text for V vectors of channels from c on, of the last of which n channels count; four taps, `tail` [C, 3]. */
template <int V, class T>
LEANLM_INLINE void four_taps(const Conv &s, float *x, int64_t c, int64_t n, T *tail) {
    Vec y[V];
    for (int v = 0; v < V; v++) {
        const int64_t at = c + v * W, count = v == V - 1 ? n : W;
        Vec last[3];
        load_triples(tail + 3 * at, count, last);
        const Vec input = load_up_to(x + at, count), old = fma(last[1], s.tap(1, at), last[0] * s.tap(0, at));
        y[v] = fma(input, s.tap(3, at), s.added(at)) + fma(last[2], s.tap(2, at), old);
        last[0] = last[1], last[1] = last[2], last[2] = input;
        store_triples(tail + 3 * at, count, last);
    }
    s.write(x + c, y, n);
}

/* One block of channels of one text. The last K inputs lie in a ring of K rows: token t, counted from the first of the tail, in
 * row t mod K. K is a constant where it is the usual one. */
template <class Taps>
struct Block {
    const Conv &s;
    Taps K;
    int64_t first, channels;
    float *ring; /* [K, BLOCK] */

    template <class T>
    void read_tail(const T *tail) const {
        if constexpr (!std::is_same_v<Taps, int32_t>) {
            for (int64_t c = 0; c < channels; c += W) {
                Vec x[3];
                load_triples(tail + 3 * c, channels - c < W ? channels - c : W, x);
                for (int k = 0; k < 3; k++) store(ring + k * BLOCK + c, x[k]);
            }
        } else {
            for (int64_t i = 0; i < channels * (K - 1); i++) ring[i % (K - 1) * BLOCK + i / (K - 1)] = load_some(tail + i, 1)[0];
        }
    }

    template <class T>
    void write_tail(T *tail) const {
        if constexpr (!std::is_same_v<Taps, int32_t>) {
            for (int64_t c = 0; c < channels; c += W) {
                Vec x[3];
                for (int k = 0; k < 3; k++) x[k] = load(ring + (s.L + k) % K * BLOCK + c);
                store_triples(tail + 3 * c, channels - c < W ? channels - c : W, x);
            }
        } else {
            for (int64_t i = 0; i < channels * (K - 1); i++)
                store_some(tail + i, splat(ring[(s.L + i % (K - 1)) % K * BLOCK + i / (K - 1)]), 1);
        }
    }

    LEANLM_INLINE void token(float *x, int64_t t) const {
        float *newest = ring + (t + K - 1) % K * BLOCK;
        int64_t c = 0;
        for (; c + 4 * W <= channels; c += 4 * W) vectors<4>(x, t, newest, c, W);
        for (; c < channels; c += W) vectors<1>(x, t, newest, c, channels - c);
    }

    template <int V>
    LEANLM_INLINE void vectors(float *x, int64_t t, float *newest, int64_t begin, int64_t n) const {
        Vec y[V];
        for (int v = 0; v < V; v++) {
            const int64_t c = begin + v * W;
            const Vec input = load_up_to(x + c, v == V - 1 ? n : W);
            store(newest + c, input);
            y[v] = fma(input, s.tap(K - 1, first + c), s.added(first + c));
            for (int64_t k = 0, row = t % K; k < K - 1; k++, row = row + 1 < K ? row + 1 : 0)
                y[v] = fma(load(ring + row * BLOCK + c), s.tap(k, first + c), y[v]);
        }
        s.write(x + begin, y, n);
    }

    template <class T>
    void run(int64_t b, T *tail) const {
        read_tail(tail);
        for (int64_t t = 0; t < s.L; t++) token(s.x + (b * s.L + t) * s.x_stride + first, t);
        write_tail(tail);
    }
};

template <class T>
void one_token(const Conv &s, int64_t B, T *tails) {
    const int64_t width = SHARE * BLOCK, pieces = (s.C + width - 1) / width;
    parallel_for(B * pieces, [&](int64_t task) {
        const int64_t b = task / pieces, begin = task % pieces * width, end = begin + width < s.C ? begin + width : s.C;
        T *tail = tails + b * s.C * 3;
        float *x = s.x + b * s.x_stride;
        int64_t c = begin;
        for (; c + 4 * W <= end; c += 4 * W) four_taps<4>(s, x, c, W, tail);
        for (; c < end; c += W) four_taps<1>(s, x, c, end - c < W ? end - c : W, tail);
    });
}

template <class T>
void sequence(const Conv &s, int64_t B, T *tails) {
    const int64_t blocks = (s.C + BLOCK - 1) / BLOCK;
    parallel_for(B * blocks, [&](int64_t task) {
        const int64_t b = task / blocks, first = task % blocks * BLOCK;
        const int64_t channels = s.C - first < BLOCK ? s.C - first : BLOCK;
        T *tail = tails + (b * s.C + first) * (s.K - 1);
        float *ring = workspace(Workspace::Own, s.K * BLOCK);
        if (s.K == 4)
            Block<std::integral_constant<int32_t, 4>>{s, {}, first, channels, ring}.run(b, tail);
        else
            Block<int32_t>{s, s.K, first, channels, ring}.run(b, tail);
    });
}

} // namespace

int conv(float *x, int64_t x_stride, int64_t B, int64_t L, int64_t C, int32_t K, const float *weight, const float *bias, void *tail,
         int32_t dtype, int32_t silu) {
    const Conv s{x, x_stride, L, C, K, weight, bias, silu != 0};
    with_dtype(dtype, [&](auto *typed) {
        auto *tails = static_cast<decltype(typed)>(tail);
        if (K == 4 && L == 1)
            one_token(s, B, tails);
        else
            sequence(s, B, tails);
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
