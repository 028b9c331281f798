/* Attention of many tokens: the queries that share a key/value head lie side by side in the lanes of vectors, so that softmax,
 * computed as blocks of keys go by, takes no step across lanes.   B texts  L tokens  R heads that share a key  P head width */
#pragma once

#include "attention.h"
#include "transpose.h"

namespace leanlm::LEANLM_NAMESPACE {

constexpr int64_t ROWS = 256;           /* queries of a span, tokens times the heads that share a key */
constexpr int64_t LANES = TILE_COLUMNS; /* queries of a tile */
constexpr int64_t BLOCK = 96;           /* keys widened at once */
constexpr float FLOOR = -0x1p100f;      /* below the score of any key that is seen */

/* The new keys and values [B L, Hkv, P] where they cannot go into the caches yet, as earlier tokens still see what they
 * overwrite; null where they are there. */
template <class T>
struct Fresh {
    Cache<T> keys, values;
};

/* `tokens` of text b from token t on, at position `now`, for the heads that share key/value head g: queries in the order of
 * heads, then tokens, and a thread's memory for them. */
struct Span {
    int64_t b, g, t, tokens, now, rows, tiles, P, width;
    float *keys, *values, *scores; /* of a block: [BLOCK, width] each; [BLOCK + 1, LANES]: pairs are weighed */
    float *queries, *sums;         /* [tiles, P, LANES]: times scale log2(e); of weighted values */
    float *peaks, *totals;         /* [tiles, LANES]: the largest score, the sum of weights 2^(score - peak) */

    template <class T>
    Span(const Attention<T> &s, int64_t b, int64_t g, int64_t t, int64_t tokens)
        : b(b), g(g), t(t), tokens(tokens), now(s.position[b] + t), rows(tokens * s.sharing()),
          tiles((rows + LANES - 1) / LANES), P(s.P), width((P + W - 1) / W * W) {
        keys = workspace(Workspace::Own, 2 * BLOCK * width + (BLOCK + 1) * LANES + 2 * tiles * (P + 1) * LANES);
        values = keys + BLOCK * width;
        scores = values + BLOCK * width;
        queries = scores + (BLOCK + 1) * LANES;
        sums = queries + tiles * P * LANES;
        peaks = sums + tiles * P * LANES;
        totals = peaks + tiles * LANES;
        memset(sums, 0, tiles * P * LANES * sizeof(float));
        for (int64_t i = 0; i < tiles * LANES; i++) peaks[i] = FLOOR, totals[i] = 0;
    }

    /* The row of x (of a stride of its own) that belongs to a query. */
    template <class T, class Float>
    Float *at(const Attention<T> &s, Float *x, int64_t stride, int64_t row) const {
        return x + (b * s.L + t + row % tokens) * stride + (g * s.sharing() + row / tokens) * P;
    }
};

template <class T>
void read_queries(const Attention<T> &s, const Span &span) {
    for (int64_t row = 0; row < span.rows; row += LANES) {
        const int64_t count = least(span.rows - row, LANES);
        const float *from[LANES];
        for (int64_t i = 0; i < count; i++) from[i] = span.at(s, s.q, s.q_stride, row + i);
        float *to = span.queries + row * s.P;
        transpose_rows([&](int64_t i) { return from[i]; }, count, s.P, to, LANES, LANES);
        for (int64_t i = 0; i < s.P * LANES; i += W) store(to + i, load(to + i) * (s.scale * LOG2_E));
    }
}

/* P keys or values, widened. */
template <class T>
LEANLM_INLINE void read_row(const Cache<T> &rows, int64_t place, int64_t P, float *to) {
    const float scale = Cache<T>::scaled ? rows.scales[place] : 1.0f;
    for (int64_t p = 0; p < P; p += W) {
        const Vec x = load_up_to(rows.at + place * P + p, P - p);
        store(to + p, Cache<T>::scaled ? x * scale : x);
    }
}

/* Keys at .. at + count - 1 and their values. */
template <class T>
void read_block(const Attention<T> &s, const Fresh<T> &fresh, const Span &span, int64_t at, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t old = s.position[span.b] - (at + i);
        const bool recent = fresh.keys.at && old <= 0;
        const int64_t place = (recent ? span.b * s.L - old : s.row(span.b, at + i)) * s.Hkv + span.g;
        read_row(recent ? fresh.keys : s.keys, place, s.P, span.keys + i * span.width);
        read_row(recent ? fresh.values : s.values, place, s.P, span.values + i * span.width);
    }
}

/* Takes keys begin .. end - 1 of the block at `at` from the queries that do not see them. */
template <class T>
void hide(const Attention<T> &s, const Span &span, int64_t row, int64_t at, int64_t begin, int64_t end) {
    int32_t oldest[LANES], newest[LANES];
    for (int64_t i = 0; i < LANES; i++) {
        const int64_t token = span.now + least(row + i, span.rows - 1) % span.tokens;
        oldest[i] = static_cast<int32_t>(most(s.first(span.b, token) - at, 0));
        newest[i] = static_cast<int32_t>(least(token - at, BLOCK));
    }
    for (int64_t lane = 0; lane < LANES; lane += W) {
        Ints first, last;
        memcpy(&first, oldest + lane, sizeof first);
        memcpy(&last, newest + lane, sizeof last);
        for (int32_t key = static_cast<int32_t>(begin); key < end; key++) {
            float *score = span.scores + key * LANES + lane;
            store(score, (first > key) | (last < key) ? splat(LOWEST) : load(score));
        }
    }
}

/* Scores of `count` keys into weights relative to the queries' peaks, which may rise; returns what earlier sums are to be
 * multiplied with. */
LEANLM_INLINE void weigh(float *scores, int64_t count, float *peaks, float *totals, Vec (&corrections)[2]) {
    Vec high[2] = {load(peaks), load(peaks + W)}, total[2] = {};
    for (int64_t i = 0; i < count; i++)
        for (int v = 0; v < 2; v++) high[v] = at_least(high[v], load(scores + i * LANES + v * W));
    for (int v = 0; v < 2; v++) corrections[v] = load(peaks + v * W) - high[v];
    exp2s_of_negative(corrections);
    if (count % 2) store(scores + count * LANES, splat(LOWEST)), store(scores + count * LANES + W, splat(LOWEST));
    for (int64_t i = 0; i < count; i += 2) {
        Vec x[4], weights[4];
        for (int v = 0; v < 4; v++) weights[v] = x[v] = load(scores + i * LANES + v * W) - high[v % 2];
        exp2s_of_negative(weights);
        for (int v = 0; v < 4; v++) weights[v] = x[v] < -126.0f ? zeros() : weights[v];
        for (int v = 0; v < 4; v++) store(scores + i * LANES + v * W, weights[v]);
        for (int v = 0; v < 2; v++) total[v] += weights[v] + weights[v + 2];
    }
    for (int v = 0; v < 2; v++) {
        store(peaks + v * W, high[v]);
        store(totals + v * W, fma(load(totals + v * W), corrections[v], total[v]));
    }
}

/* The keys at .. at + count - 1 for the queries from `row` on. */
template <class T>
void attend_tile(const Attention<T> &s, const Span &span, int64_t row, int64_t at, int64_t count) {
    const int64_t token = row % span.tokens, last = token + least(LANES, span.rows - row) - 1;
    const bool wraps = last >= span.tokens;
    const int64_t earliest = span.now + (wraps ? 0 : token), latest = span.now + (wraps ? span.tokens - 1 : last);
    const int64_t begin = most(s.first(span.b, earliest) - at, 0), end = least(latest + 1 - at, count);
    if (begin >= end) return;
    float *scores = span.scores + begin * LANES;
    for_tile_rows(end - begin, [&](int64_t key, auto rows) {
        Tile<rows> tile;
        tile.clear();
        tile.add_product(s.P, span.keys + (begin + key) * span.width, span.width, 1, span.queries + row * s.P, LANES);
        tile.write(scores + key * LANES, LANES);
    });
    if (s.first(span.b, latest) > at || earliest < at + count - 1) hide(s, span, row, at, begin, end);
    Vec corrections[2];
    weigh(scores, end - begin, span.peaks + row, span.totals + row, corrections);
    for_tile_rows(s.P, [&](int64_t p, auto rows) {
        float *sums = span.sums + row * s.P + p * LANES;
        Tile<rows> tile;
        tile.read(sums, LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < 2; v++) tile.at[r][v] *= corrections[v];
        tile.add_product(end - begin, span.values + begin * span.width + p, 1, span.width, scores, LANES);
        tile.write(sums, LANES);
    });
}

template <class T>
void write_results(const Attention<T> &s, const Span &span) {
    for (int64_t row = 0; row < span.rows; row += LANES) {
        float *sums = span.sums + row * s.P;
        for (int64_t i = 0; i < s.P * LANES; i += W) store(sums + i, load(sums + i) / load(span.totals + row + i % LANES));
        transpose_back(sums, LANES, LANES, s.P, span.queries, s.P);
        for (int64_t i = 0; i < least(LANES, span.rows - row); i++)
            memcpy(span.at(s, s.y, s.y_stride, row + i), span.queries + i * s.P, s.P * sizeof(float));
    }
}

template <class T>
void attend_span(const Attention<T> &s, const Fresh<T> &fresh, const Span &span) {
    read_queries(s, span);
    const int64_t end = span.now + span.tokens;
    for (int64_t at = s.first(span.b, span.now); at < end; at += BLOCK) {
        const int64_t count = least(BLOCK, end - at);
        read_block(s, fresh, span, at, count);
        for (int64_t row = 0; row < span.rows; row += LANES) attend_tile(s, span, row, at, count);
    }
    write_results(s, span);
}

/* All tokens into memory of their own. */
template <class T>
Fresh<T> set_aside(const Attention<T> &s) {
    const int64_t heads = s.B * s.L * s.Hkv, values = heads * s.P;
    float *scales = workspace(Workspace::Carried, 2 * heads + 2 * values);
    T *at = reinterpret_cast<T *>(scales + 2 * heads);
    const Fresh<T> fresh{{at, scales}, {at + values, scales + heads}};
    parallel_for(s.B * s.L, [&](int64_t m) {
        const int64_t place = m * s.Hkv;
        write_row(s.k + m * s.k_stride, fresh.keys.at + place * s.P, fresh.keys.scales_from(place), s.Hkv, s.P);
        write_row(s.v + m * s.v_stride, fresh.values.at + place * s.P, fresh.values.scales_from(place), s.Hkv, s.P);
    });
    return fresh;
}

/* The tokens from t on of every text into the caches. */
template <class T>
void remember_from(const Attention<T> &s, int64_t t) {
    const int64_t count = s.L - t;
    parallel_for(s.B * count, [&](int64_t task) { remember(s, task / count, t + task % count, t + task % count + 1); });
}

template <class T>
void attend_sequence(const Attention<T> &s) {
    bool overwrites = false;
    for (int64_t b = 0; b < s.B; b++) overwrites |= s.position[b] + s.L > s.slots;
    Fresh<T> fresh{};
    if (overwrites)
        fresh = set_aside(s);
    else
        remember_from(s, 0);
    const int64_t tokens = most(ROWS / s.sharing(), 1), spans = (s.L + tokens - 1) / tokens;
    parallel_for(s.B * s.Hkv * spans, [&](int64_t task) {
        const int64_t t = task % spans * tokens, g = task / spans % s.Hkv, b = task / spans / s.Hkv;
        attend_span(s, fresh, Span(s, b, g, t, least(tokens, s.L - t)));
    });
    if (overwrites) remember_from(s, most(0, s.L - s.slots));
}

} // namespace leanlm::LEANLM_NAMESPACE
