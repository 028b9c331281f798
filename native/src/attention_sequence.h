/* Attention of many tokens: per key/value head, blocks of keys are widened and transposed once for a span of tokens, and softmax
 * is computed as they go by.   B texts  L tokens  R heads that share a key  P head width */
#pragma once

#include "attention.h"
#include "transpose.h"

namespace leanlm::LEANLM_NAMESPACE {

constexpr int64_t ROWS = 256; /* queries of a span, tokens times the heads that share a key */

/* The new keys and values [B L, Hkv, P] where they cannot go into the caches yet, as earlier tokens still see what they
 * overwrite; null where they are there. */
template <class T>
struct Fresh {
    Cache<T> keys, values;
};

/* A thread's view of one key/value head, `tokens` of one text and one block of keys. */
struct Span {
    float *keys, *values, *sums; /* [P, KEYS], [KEYS, padded P]; exp-weighted values [R tokens, padded P] */
    float *scores;               /* [TILE_ROWS, KEYS] */
    float *peaks, *totals;       /* [R tokens] */

    static int64_t size(int64_t rows, int64_t P) { return (P + TILE_ROWS) * KEYS + (KEYS + rows) * padded(P) + 2 * rows; }
    Span(float *memory, int64_t rows, int64_t P) {
        keys = memory;
        scores = keys + P * KEYS;
        values = scores + TILE_ROWS * KEYS;
        sums = values + KEYS * padded(P);
        peaks = sums + rows * padded(P);
        totals = peaks + rows;
        memset(sums, 0, rows * padded(P) * sizeof(float));
        for (int64_t i = 0; i < rows; i++) peaks[i] = LOWEST, totals[i] = 0;
    }
};

/* Keys at .. at + count - 1 of text b, head g. */
template <class T>
void read_keys(const Attention<T> &s, const Fresh<T> &fresh, int64_t b, int64_t g, int64_t at, int64_t count, const Span &span) {
    const int64_t width = padded(s.P);
    const auto head = [&](const Cache<T> &cache, const Cache<T> &recent, int64_t i) {
        const int64_t old = s.position[b] - (at + i);
        const bool new_one = recent.at && old <= 0;
        const Cache<T> &from = new_one ? recent : cache;
        const int64_t place = (new_one ? b * s.L - old : s.row(b, at + i)) * s.Hkv + g;
        return Cache<T>{from.at + place * s.P, from.scales_from(place)};
    };
    transpose_rows([&](int64_t i) { return head(s.keys, fresh.keys, i).at; }, count, s.P, span.keys, KEYS, KEYS);
    if constexpr (Cache<T>::scaled) {
        float scales[KEYS] = {};
        for (int64_t i = 0; i < count; i++) scales[i] = *head(s.keys, fresh.keys, i).scales;
        for (int64_t i = 0; i < s.P * KEYS; i += W) store(span.keys + i, load(span.keys + i) * load(scales + i % KEYS));
    }
    for (int64_t i = 0; i < count; i++) {
        const Cache<T> from = head(s.values, fresh.values, i);
        const float scale = Cache<T>::scaled ? *from.scales : 1.0f;
        for (int64_t p = 0; p < width; p += W)
            store(span.values + i * width + p, p < s.P ? load_up_to(from.at + p, s.P - p) * scale : zeros());
    }
}

/* One row of scores [count], of which begin .. end - 1 are seen, into weights relative to the row's peak, which may rise;
 * returns what earlier sums must be multiplied with. */
LEANLM_INLINE float weigh(float *scores, int64_t count, int64_t begin, int64_t end, float &peak, float &total) {
    if (begin >= end) {
        for (int64_t i = 0; i < count; i++) scores[i] = 0;
        return 1;
    }
    for (int64_t i = 0; i < begin; i++) scores[i] = LOWEST;
    for (int64_t i = end; i < count || i % (4 * W); i++) scores[i] = LOWEST;
    Vec high = splat(peak);
    for (int64_t i = 0; i < count; i += W) high = at_least(high, load(scores + i));
    const float raised = largest(high), correction = exp(splat(peak - raised))[0];
    peak = raised;
    total = total * correction + exps_below(scores, count, raised);
    return correction;
}

/* One block of keys for the queries of one head: `tokens` from token t on. */
template <class T>
void attend_keys(const Attention<T> &s, int64_t b, int64_t h, int64_t t, int64_t tokens, int64_t at, int64_t count,
                 const Span &span, int64_t first_row) {
    const int64_t width = padded(s.P), now = s.position[b] + t;
    for_tile_rows(tokens, [&](int64_t i, auto rows) {
        if (at > now + i + rows - 1 || at + count <= s.first(b, now + i)) return;
        const float *q = s.q + (b * s.L + t + i) * s.q_stride + h * s.P;
        for (int64_t j = 0; j < count; j += TILE_COLUMNS) {
            Tile<rows> tile;
            tile.clear();
            tile.add_product(s.P, q, s.q_stride, span.keys + j, KEYS);
            for (int r = 0; r < rows; r++) tile.scale(r, s.scale);
            tile.write(span.scores + j, KEYS);
        }
        float corrections[rows];
        for (int r = 0; r < rows; r++) {
            const int64_t token = now + i + r, row = first_row + i + r;
            corrections[r] = weigh(span.scores + r * KEYS, count, most(s.first(b, token) - at, 0), least(count, token - at + 1),
                                   span.peaks[row], span.totals[row]);
        }
        for (int64_t p = 0; p < width; p += TILE_COLUMNS) {
            Tile<rows> tile;
            tile.read(span.sums + (first_row + i) * width + p, width);
            for (int r = 0; r < rows; r++) tile.scale(r, corrections[r]);
            tile.add_product(count, span.scores, KEYS, span.values + p, width);
            tile.write(span.sums + (first_row + i) * width + p, width);
        }
    });
}

/* `tokens` of text b from token t on, all heads that share key/value head g. */
template <class T>
void attend_span(const Attention<T> &s, const Fresh<T> &fresh, int64_t b, int64_t g, int64_t t, int64_t tokens) {
    const int64_t width = padded(s.P), rows = tokens * s.sharing(), now = s.position[b] + t;
    const Span span(workspace(Workspace::Own, Span::size(rows, s.P)), rows, s.P);
    for (int64_t at = s.first(b, now); at < now + tokens; at += KEYS) {
        const int64_t count = least(KEYS, now + tokens - at);
        read_keys(s, fresh, b, g, at, count, span);
        for (int64_t r = 0; r < s.sharing(); r++)
            attend_keys(s, b, g * s.sharing() + r, t, tokens, at, count, span, r * tokens);
    }
    for (int64_t row = 0; row < rows; row++) {
        float *y = s.y + (b * s.L + t + row % tokens) * s.y_stride + (g * s.sharing() + row / tokens) * s.P;
        for (int64_t p = 0; p < s.P; p += W)
            store_up_to(y + p, load(span.sums + row * width + p) / span.totals[row], s.P - p);
    }
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
    const int64_t tokens = most(ROWS / s.sharing(), TILE_ROWS), spans = (s.L + tokens - 1) / tokens;
    parallel_for(s.B * s.Hkv * spans, [&](int64_t task) {
        const int64_t t = task % spans * tokens, g = task / spans % s.Hkv, b = task / spans / s.Hkv;
        attend_span(s, fresh, b, g, t, least(tokens, s.L - t));
    });
    if (overwrites) remember_from(s, most(0, s.L - s.slots));
}

} // namespace leanlm::LEANLM_NAMESPACE
