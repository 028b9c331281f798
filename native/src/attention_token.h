/* Attention of one token: the caches streamed once, in blocks of keys and all heads side by side as they lie; the blocks' results
 * combined in their order.   H heads  R heads that share a key  P head width */
#pragma once

#include "attention.h"
#include "transpose.h"

namespace leanlm::LEANLM_NAMESPACE {

constexpr int64_t NEAR = 8;      /* keys that all heads look at before the next ones */
constexpr int64_t FEW_KEYS = 128; /* of these, blocks are halves */
constexpr int64_t ALONE = 8192;   /* values that one thread combines faster than several */

/* In place: scores [n] to exp(scores - their largest), zeros up to four whole vectors; gives the largest and the sum. */
LEANLM_INLINE void soften(float *scores, int64_t n, float &peak, float &total) {
    Vec high = splat(LOWEST);
    for (int64_t i = n; i % (4 * W); i++) scores[i] = LOWEST;
    for (int64_t i = 0; i < n; i += W) high = at_least(high, load(scores + i));
    peak = largest(high);
    total = exps_below(scores, n, peak);
}

/* What one block of keys adds up to for every head: exp-weighted values [H, padded P], largest score and sum of weights [H]. */
struct Partial {
    float *values, *peaks, *totals;

    static int64_t size(int64_t H, int64_t P) { return H * (padded(P) + 2); }
    Partial(float *memory, int64_t H, int64_t P) : values(memory), peaks(memory + H * padded(P)), totals(peaks + H) {}
};

/* scores[r, j] = q[r] . keys[j] for 8 / R keys and R queries. */
template <int R, class T>
LEANLM_INLINE void score_tile(const T *const *keys, const float *q, int64_t q_stride, int64_t P, float *scores) {
    constexpr int J = 8 / R;
    Vec products[8] = {};
    const auto add = [&](int64_t p, auto read) {
        Vec key[J];
        for (int j = 0; j < J; j++) key[j] = read(keys[j] + p);
        for (int r = 0; r < R; r++) {
            const Vec query = load(q + r * q_stride + p);
            for (int j = 0; j < J; j++) products[r * J + j] = fma(key[j], query, products[r * J + j]);
        }
    };
    int64_t p = 0;
    for (; p + W <= P; p += W) add(p, [](const T *from) { return load(from); });
    if (p < P) add(p, [&](const T *from) { return load_some(from, P - p); });
    float out[8];
    sums(products, out);
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) scores[r * KEYS + j] = out[r * J + j];
}

/* The scores of NEAR keys for the `sharing` queries of one key/value head. */
template <int R, class T>
LEANLM_INLINE void score_heads(const T *const *keys, const float *q, int64_t q_stride, int64_t P, int64_t sharing, float *scores) {
    for (; sharing >= R; sharing -= R, q += R * q_stride, scores += R * KEYS)
        for (int64_t j = 0; j < NEAR; j += 8 / R) score_tile<R>(keys + j, q, q_stride, P, scores + j);
    if constexpr (R > 1)
        if (sharing) score_heads<R / 2>(keys, q, q_stride, P, sharing, scores);
}

/* out[r] += sum over keys of weights[r, j] values[j], for R queries and V vectors of channels. */
template <int R, int V, class T>
LEANLM_INLINE void value_tile(const T *values, int64_t stride, int64_t keys, const float *weights, float *out, int64_t out_stride) {
    Vec sums[R][V];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < V; i++) sums[r][i] = load(out + r * out_stride + i * W);
    for (int64_t j = 0; j < keys; j++) {
        Vec value[V];
        for (int i = 0; i < V; i++) value[i] = load(values + j * stride + i * W);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < V; i++) sums[r][i] = fma(splat(weights[r * KEYS + j]), value[i], sums[r][i]);
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < V; i++) store(out + r * out_stride + i * W, sums[r][i]);
}

/* `value_tile` over all channels: tiles of V vectors, then narrower ones, then the channels that fill no vector. */
template <int R, int V, class T>
LEANLM_INLINE void value_columns(const T *values, int64_t stride, int64_t keys, int64_t P, const float *weights, float *out,
                                 int64_t out_stride) {
    for (; P >= V * W; P -= V * W, values += V * W, out += V * W) value_tile<R, V>(values, stride, keys, weights, out, out_stride);
    if (P <= 0) return;
    if constexpr (V > 1) return value_columns<R, V / 2>(values, stride, keys, P, weights, out, out_stride);
    for (int64_t j = 0; j < keys; j++) {
        const Vec value = load_some(values + j * stride, P);
        for (int r = 0; r < R; r++)
            store(out + r * out_stride, fma(splat(weights[r * KEYS + j]), value, load(out + r * out_stride)));
    }
}

template <int R, class T>
LEANLM_INLINE void value_heads(const T *values, int64_t stride, int64_t keys, int64_t P, int64_t sharing, const float *weights,
                               float *out, int64_t out_stride) {
    for (; sharing >= R; sharing -= R, weights += R * KEYS, out += R * out_stride)
        value_columns<R, 8 / R>(values, stride, keys, P, weights, out, out_stride);
    if constexpr (R > 1)
        if (sharing) value_heads<R / 2>(values, stride, keys, P, sharing, weights, out, out_stride);
}

/* Head g's share of the memory that holds NEAR rows of all heads. */
template <class T>
LEANLM_INLINE void fetch_tile(const T *from, int64_t g, int64_t P) {
    for (int64_t byte = 0; byte < NEAR * P * int64_t(sizeof(T)); byte += 64) fetch(from + g * NEAR * P, byte);
}

/* scores[h, j] times the scale of head h's key (or value) j. */
template <class T>
LEANLM_INLINE void apply_scales(const Attention<T> &s, const float *scales, int64_t count, float *scores, float *transposed) {
    if constexpr (!Cache<T>::scaled) return;
    transpose_rows([&](int64_t j) { return scales + j * s.Hkv; }, count, s.Hkv, transposed, KEYS, KEYS);
    for (int64_t h = 0; h < s.H; h++)
        for (int64_t j = 0; j < count; j += W)
            store(scores + h * KEYS + j, load(scores + h * KEYS + j) * load(transposed + h / s.sharing() * KEYS + j));
}

/* All heads of the query row q over `count` keys, which lie at `row` and after it in the caches. */
template <class T>
void attend_block(const Attention<T> &s, const float *q, int64_t row, int64_t count, const Partial &out) {
    const int64_t width = padded(s.P), size = s.Hkv * s.P, sharing = s.sharing();
    const T *keys = s.keys.at + row * size, *values = s.values.at + row * size;
    float *queries = workspace(Workspace::Own, s.H * (width + KEYS) + s.Hkv * KEYS);
    float *scores = queries + s.H * width, *transposed = scores + s.H * KEYS;
    for (int64_t h = 0; h < s.H; h++)
        for (int64_t p = 0; p < s.P; p += W) store(queries + h * width + p, load_up_to(q + h * s.P + p, s.P - p) * s.scale);
    memset(out.values, 0, s.H * width * sizeof(float));
    for (int64_t j = 0; j < count; j += NEAR)
        for (int64_t g = 0; g < s.Hkv; g++) {
            const T *near[NEAR]; /* the last one again where there are fewer */
            for (int64_t i = 0; i < NEAR; i++) near[i] = keys + least(j + i, count - 1) * size + g * s.P;
            fetch_tile(j + NEAR < count ? keys + (j + NEAR) * size : values, g, s.P);
            score_heads<8>(near, queries + g * sharing * width, width, s.P, sharing, scores + g * sharing * KEYS + j);
        }
    apply_scales(s, s.keys.scales_from(row * s.Hkv), count, scores, transposed);
    for (int64_t h = 0; h < s.H; h++) soften(scores + h * KEYS, count, out.peaks[h], out.totals[h]);
    apply_scales(s, s.values.scales_from(row * s.Hkv), count, scores, transposed);
    for (int64_t j = 0; j < count; j += NEAR)
        for (int64_t g = 0; g < s.Hkv; g++) {
            fetch_tile(j + NEAR < count ? values + (j + NEAR) * size : keys + count * size, g, s.P);
            value_heads<8>(values + j * size + g * s.P, size, least(NEAR, count - j), s.P, sharing,
                           scores + g * sharing * KEYS + j, out.values + g * sharing * width, width);
        }
}

/* y of one head from the partial results of its blocks, whose peaks become weights. */
inline void combine(float *partials, int64_t blocks, int64_t H, int64_t P, int64_t h, float *y) {
    const int64_t width = padded(P), size = Partial::size(H, P);
    const auto block = [&](int64_t i) { return Partial(partials + i * size, H, P); };
    float peak = LOWEST, total = 0;
    for (int64_t i = 0; i < blocks; i++) peak = block(i).peaks[h] > peak ? block(i).peaks[h] : peak;
    for (int64_t i = 0; i < blocks; i++) {
        float &weight = block(i).peaks[h];
        weight = exp(splat(weight - peak))[0];
        total += weight * block(i).totals[h];
    }
    for (int64_t p = 0; p < P; p += W) {
        Vec sum = zeros();
        for (int64_t i = 0; i < blocks; i++) sum = fma(load(block(i).values + h * width + p), splat(block(i).peaks[h]), sum);
        store_up_to(y + p, sum / total, P - p);
    }
}

/* The keys a token sees, as they lie in the slots: one run, or two around the end of a ring; and their blocks, which are smaller
 * where there are few keys, for threads to share them. */
struct Runs {
    int64_t begin, first, second; /* slots begin .. begin + first - 1, then 0 .. second - 1 */
    int64_t size;                 /* of a block */

    template <class T>
    Runs(const Attention<T> &s, int64_t b, int64_t at) {
        const int64_t from = s.first(b, at), count = at - from + 1;
        begin = from % s.slots;
        first = least(count, s.slots - begin);
        second = count - first;
        size = count > FEW_KEYS ? KEYS : least(KEYS, (count / 2 + NEAR) / NEAR * NEAR);
    }

    int64_t blocks() const { return (first + size - 1) / size + (second + size - 1) / size; }

    /* The slots of block i; the newest key is the last one's last. */
    void block(int64_t i, int64_t &slot, int64_t &count) const {
        const int64_t before = (first + size - 1) / size;
        slot = i < before ? begin + i * size : (i - before) * size;
        count = least(size, (i < before ? begin + first : second) - slot);
    }
};

/* Token t of every text, written into the caches by the task that reads it there. */
template <class T>
void attend_token(const Attention<T> &s, int64_t t) {
    const int64_t size = Partial::size(s.H, s.P);
    int64_t blocks = 0; /* of the longest text */
    for (int64_t b = 0; b < s.B; b++) blocks = most(blocks, Runs(s, b, s.position[b] + t).blocks());
    float *partials = workspace(Workspace::Shared, s.B * blocks * size);
    parallel_for(s.B * blocks, [&](int64_t task) {
        const int64_t b = task / blocks, i = task % blocks;
        const Runs runs(s, b, s.position[b] + t);
        if (i >= runs.blocks()) return;
        if (i == runs.blocks() - 1) remember(s, b, t, t + 1);
        int64_t slot, count;
        runs.block(i, slot, count);
        attend_block(s, s.q + (b * s.L + t) * s.q_stride, b * s.slots + slot, count, Partial(partials + task * size, s.H, s.P));
    });
    const int64_t share = most(1, ALONE / (blocks * padded(s.P))); /* heads of a task */
    parallel_for((s.B * s.H + share - 1) / share, [&](int64_t task) {
        for (int64_t row = task * share; row < least((task + 1) * share, s.B * s.H); row++) {
            const int64_t b = row / s.H, h = row % s.H;
            combine(partials + b * blocks * size, Runs(s, b, s.position[b] + t).blocks(), s.H, s.P, h,
                    s.y + (b * s.L + t) * s.y_stride + h * s.P);
        }
    });
}

} // namespace leanlm::LEANLM_NAMESPACE
