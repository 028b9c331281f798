/* Causal depthwise convolution with its tail of earlier inputs.   B texts  L tokens  C channels  K taps */
#include <type_traits>

#include "elementary.h"
#include "workspace.h"
#include "threads.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t BLOCK = 256; /* channels of a task; what it keeps of them stays in the first cache */

/* to[k][c] = from[c][k]: the layout of taps and tails is channel by channel, the work is on vectors of channels. K is a constant
 * where it can be, for the compiler to work on whole vectors. */
template <class Count>
LEANLM_INLINE void split(const float *__restrict from, int64_t channels, Count K, float *__restrict to) {
    for (int64_t c = 0; c < channels; c++)
        for (int k = 0; k < K; k++) to[k * BLOCK + c] = from[c * K + k];
}

/* to[c][k] = from[k][c]. */
template <class Count>
LEANLM_INLINE void join(const float *__restrict from, int64_t channels, Count K, float *__restrict to) {
    for (int64_t c = 0; c < channels; c++)
        for (int k = 0; k < K; k++) to[c * K + k] = from[k * BLOCK + c];
}

/* Calls work(K), a constant for the numbers of taps in use. */
template <class F>
LEANLM_INLINE void with_taps(int32_t K, F work) {
    if (K == 4)
        work(std::integral_constant<int32_t, 4>());
    else if (K == 3)
        work(std::integral_constant<int32_t, 3>());
    else
        work(K);
}

/* One block of channels of one text. The last K inputs lie in a ring of K rows: token t, counted from the first of the tail, in
 * row t mod K. */
struct Block {
    int64_t channels;
    int32_t K;
    bool silu;
    float *taps, *ring, *wide; /* [K][BLOCK] each; wide: a tail in float32, channel by channel */

    template <class T>
    LEANLM_INLINE void read_tail(const T *tail) const {
        const int64_t count = channels * (K - 1);
        for (int64_t i = 0; i < count; i += W) store_up_to(wide + i, load_up_to(tail + i, count - i), count - i);
        with_taps(K - 1, [&](auto count) { split(wide, channels, count, ring); });
    }

    template <class T>
    LEANLM_INLINE void write_tail(T *tail, int64_t L) const {
        float *const last = taps; /* no longer needed */
        for (int64_t k = 0; k < K - 1; k++) memcpy(last + k * BLOCK, ring + (L + k) % K * BLOCK, channels * sizeof(float));
        with_taps(K - 1, [&](auto count) { join(last, channels, count, wide); });
        const int64_t count = channels * (K - 1);
        for (int64_t i = 0; i < count; i += W) store_up_to(tail + i, load_up_to(wide + i, count - i), count - i);
    }

    LEANLM_INLINE void token(float *x, const float *bias, int64_t t) const {
        float *newest = ring + (t + K - 1) % K * BLOCK;
        for (int64_t c = 0; c < channels; c += W) {
            const int64_t n = channels - c;
            const Vec input = load_up_to(x + c, n);
            store(newest + c, input);
            Vec y = fma(input, load(taps + (K - 1) * BLOCK + c), bias ? load_up_to(bias + c, n) : zeros());
            for (int64_t k = 0, row = t % K; k < K - 1; k++, row = row + 1 < K ? row + 1 : 0)
                y = fma(load(ring + row * BLOCK + c), load(taps + k * BLOCK + c), y);
            store_up_to(x + c, silu ? LEANLM_NAMESPACE::silu(y) : y, n);
        }
    }
};

} // namespace

int conv(float *x, int64_t x_stride, int64_t B, int64_t L, int64_t C, int32_t K, const float *weight, const float *bias, void *tail,
         int32_t dtype, int32_t silu) {
    const int64_t blocks = (C + BLOCK - 1) / BLOCK;
    with_dtype(dtype, [&](auto *typed) {
        auto *tails = static_cast<decltype(typed)>(tail);
        parallel_for(B * blocks, [&](int64_t task) {
            const int64_t b = task / blocks, first = task % blocks * BLOCK;
            const int64_t channels = C - first < BLOCK ? C - first : BLOCK;
            float *memory = workspace(Workspace::Own, 3 * K * BLOCK);
            const Block block{channels, K, silu != 0, memory, memory + K * BLOCK, memory + 2 * K * BLOCK};
            auto *own_tail = tails + (b * C + first) * (K - 1);
            with_taps(K, [&](auto count) { split(weight + first * K, channels, count, block.taps); });
            block.read_tail(own_tail);
            for (int64_t t = 0; t < L; t++)
                block.token(x + (b * L + t) * x_stride + first, bias ? bias + first : bias, t);
            block.write_tail(own_tail, L);
        });
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
