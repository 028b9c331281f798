/* Attention over a telescoping cache, token by token: two entries merged, the newer ones moved by one, the slots looked at.
 *
 * C slots  H heads  G key/value heads  e = H / G  P and Q widths of a key and of a value. The entries of one head lie G P (G Q)
 * values apart, the newest first, the empty slots behind them. */
#include <cmath>
#include <vector>

#include "attention_token.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr float NEVER = LOWEST; /* the logarithm of an empty slot's weight */

float add_logs(float a, float b) {
    const float high = a > b ? a : b, low = a > b ? b : a;
    return high == NEVER ? NEVER : high + std::log1p(std::exp(low - high));
}

float dot(const float *a, const float *b, int64_t n) {
    Vec products = zeros();
    for (int64_t i = 0; i < n; i += W) products = fma(load_up_to(a + i, n - i), load_up_to(b + i, n - i), products);
    return sum(products);
}

/* Two as one, in place of the older. */
void merge(float *older, const float *newer, int64_t n, float share, float factor) {
    for (int64_t i = 0; i < n; i += W) {
        const Vec a = load_up_to(older + i, n - i), b = load_up_to(newer + i, n - i);
        store_up_to(older + i, factor > 0 ? (a + b) * factor : fma(splat(share), a - b, b), n - i);
    }
}

/* The logarithm of the older one's share of both weights, and their sum in its place. */
float join(float *older, float newer) {
    const float share = 1.0f / (1.0f + std::exp(newer - *older));
    *older = add_logs(*older, newer);
    return share;
}

/* One key/value head of a text. */
class Head {
public:
    static int64_t size(const leanlm_telescoping &s) { return 2 * s.slots; }

    void begin(const leanlm_telescoping &all, int64_t head, float *k_from, float *v_from, float *weights_k, float *weights_v,
               float *memory) {
        s = &all, g = head, k = k_from + g * s->P, v = v_from + g * s->Q, weight_k = weights_k + g;
        weight_v = weights_v ? weights_v + g : nullptr, size_k = memory, size_v = memory + s->slots;
        for (full = 0; full < s->slots && weight_k[full * s->G] != NEVER; full++) measure(full);
    }

    /* Token t of its document, in row m of the call. */
    void append(int64_t t, int64_t m) {
        const int64_t into = t ? slot(t) : s->slots;
        if (into < s->slots && into <= full) fold(into);
        for (int64_t j = least(least(into, full + 1), s->slots) - 1; j > 0; j--) move(j);
        const float *key = s->k.data + m * s->k.stride + g * s->P, *value = s->v.data + m * s->v.stride + g * s->Q;
        memcpy(k, key, s->P * sizeof(float));
        memcpy(v, value, s->Q * sizeof(float));
        weight_k[0] = leaf(m);
        if (weight_v) weight_v[0] = dot(value, value, s->Q) / std::sqrt(float(s->Q));
        measure(0);
        while (full < s->slots && weight_k[full * s->G] != NEVER) full++;
    }

    int64_t blocks() const { return (full + KEYS - 1) / KEYS; } /* of its scores */

    /* scores [e, blocks, KEYS] of the queries [e, padded P]. */
    void score(const float *queries, float *scores) const {
        const int64_t e = s->H / s->G, width = blocks() * KEYS;
        float tile[64 * KEYS];
        for (int64_t first = 0; first < e; first += 64) {
            const int64_t some = least(64, e - first);
            for (int64_t j = 0; j < full; j += NEAR) {
                const float *keys[NEAR];
                for (int64_t i = 0; i < NEAR; i++) keys[i] = k + least(j + i, full - 1) * s->G * s->P;
                score_heads<4>(keys, queries + first * padded(s->P), padded(s->P), s->P, some, tile);
                for (int64_t r = 0; r < some; r++)
                    memcpy(scores + (first + r) * width + j, tile + r * KEYS, NEAR * sizeof(float));
            }
        }
        for (int64_t r = 0; r < e; r++) {
            float *own = scores + r * width;
            for (int64_t j = 0; j < full; j++) own[j] = capped(own[j] * size_k[j]);
            for (int64_t j = full; j < width; j++) own[j] = NEVER;
        }
    }

    /* The values of this head weighted by the softmax of the scores [blocks, KEYS], which are lost: y [Q]. */
    void gather(float *scores, float *sums, float *y) const {
        const int64_t stride = s->G * s->Q;
        const bool sink = !s->masked && full < s->slots;
        float peak = sink ? 0.0f : NEVER;
        for (int64_t j = 0; j < full; j++) peak = scores[j] > peak ? scores[j] : peak;
        float total = sink ? (s->slots - full) * std::exp(-peak) : 0.0f;
        total += exps_below(scores, blocks() * KEYS, peak);
        for (int64_t q = 0; q < padded(s->Q); q += W) store(sums + q, zeros());
        for (int64_t j = 0; j < full; j++) scores[j] *= size_v[j];
        for (int64_t start = 0; start < full; start += KEYS)
            value_heads<1>(v + start * stride, stride, least(KEYS, full - start), s->Q, 1, scores + start, sums, padded(s->Q));
        for (int64_t q = 0; q < s->Q; q += W) {
            Vec x = load(sums + q) * (1.0f / total);
            if (s->norm_v) x *= load_up_to(s->norm_v + q, s->Q - q);
            store_up_to(y + q, x, s->Q - q);
        }
    }

private:
    const leanlm_telescoping *s;
    int64_t g, full; /* slots that are not empty */
    float *k, *v, *weight_k, *weight_v;
    float *size_k, *size_v; /* what keys and values are multiplied by to be looked at */

    int64_t slot(int64_t t) const {
        int64_t level = 0;
        for (; !(t & 1); t >>= 1) level++;
        return level < s->levels ? s->merges[level] : s->slots;
    }

    void fold(int64_t into) {
        const int64_t older = into * s->G, newer = older - s->G;
        if (weight_k[newer] == NEVER) return;
        const float share = join(weight_k + older, weight_k[newer]);
        merge(k + older * s->P, k + newer * s->P, s->P, share, s->factor);
        merge(v + older * s->Q, v + newer * s->Q, s->Q, weight_v ? join(weight_v + older, weight_v[newer]) : share, s->factor);
        measure(into);
    }

    /* Slot j - 1 into slot j. */
    void move(int64_t j) {
        const int64_t to = j * s->G, from = to - s->G;
        memcpy(k + to * s->P, k + from * s->P, s->P * sizeof(float));
        memcpy(v + to * s->Q, v + from * s->Q, s->Q * sizeof(float));
        weight_k[to] = weight_k[from];
        if (weight_v) weight_v[to] = weight_v[from];
        size_k[j] = size_k[j - 1], size_v[j] = size_v[j - 1];
    }

    void measure(int64_t j) {
        size_k[j] = s->norm_k ? inverse(k + j * s->G * s->P, s->P) : 1.0f;
        size_v[j] = s->norm_v ? inverse(v + j * s->G * s->Q, s->Q) : 1.0f;
    }

    float inverse(const float *x, int64_t n) const { return 1.0f / std::sqrt(dot(x, x, n) / n + s->eps); }

    float capped(float score) const { return s->cap > 0 ? s->cap * std::tanh(score / s->cap) : score; }

    float leaf(int64_t m) const {
        const float *key = s->k.data + m * s->k.stride + g * s->P;
        if (s->rule == LEANLM_LEARNED) return s->weights.data[m * s->weights.stride + g];
        if (s->rule == LEANLM_L2) return dot(key, key, s->P) / std::sqrt(float(s->P));
        float total = s->rule == LEANLM_SELF_SCORE ? NEVER : 0.0f;
        if (s->rule == LEANLM_SELF_SCORE)
            for (int64_t h = g * s->H / s->G; h < (g + 1) * s->H / s->G; h++)
                total = add_logs(total, dot(s->q.data + m * s->q.stride + h * s->P, key, s->P) * s->scale);
        return total;
    }
};

/* What some heads of a text work in. */
class Text {
public:
    Text(const leanlm_telescoping &s, int64_t heads) : s(s), e(s.H / s.G) {
        const int64_t queries = e * padded(s.P), all = e * (s.slots + KEYS);
        memory = workspace(Workspace::Own, heads * Head::size(s) + queries + all + padded(s.Q));
        query = memory + heads * Head::size(s), scores = query + queries, sums = scores + all;
    }

    float *of_head(int64_t i) const { return memory + i * Head::size(s); }

    /* The queries of key head g in row m, which see the values of `values(h)`. */
    template <class Values>
    void look(const Head &keys, int64_t g, int64_t m, Values values) const {
        const int64_t width = padded(s.P);
        for (int64_t i = 0; i < e; i++)
            for (int64_t p = 0; p < width; p += W) {
                const float *q = s.q.data + m * s.q.stride + (g * e + i) * s.P + p;
                Vec x = p < s.P ? load_up_to(q, s.P - p) * s.scale : zeros();
                if (s.norm_k && p < s.P) x *= load_up_to(s.norm_k + p, s.P - p);
                store(query + i * width + p, x);
            }
        keys.score(query, scores);
        const int64_t stride = keys.blocks() * KEYS;
        for (int64_t i = 0; i < e; i++)
            values(g * e + i).gather(scores + i * stride, sums, s.y.data + m * s.y.stride + (g * e + i) * s.Q);
    }

private:
    const leanlm_telescoping &s;
    const int64_t e;
    float *memory, *query, *scores, *sums;
};

} // namespace

int telescope(const leanlm_telescoping *call, int64_t B, int64_t L, const int64_t *position, const int64_t *start, float *k,
              float *v, float *weight_k, float *weight_v) {
    const auto &s = *call;
    const int64_t tasks = s.mixed ? 1 : s.G, own = s.G / tasks; /* of a text; heads whose values are mixed go together */
    parallel_for(B * tasks, [&](int64_t task) {
        const int64_t b = task / tasks, first = task % tasks * own, rows = b * s.slots * s.G;
        const Text text(s, own);
        std::vector<Head> heads(own);
        for (int64_t i = 0; i < own; i++)
            heads[i].begin(s, first + i, k + rows * s.P, v + rows * s.Q, weight_k + rows, weight_v ? weight_v + rows : nullptr,
                           text.of_head(i));
        for (int64_t l = 0; l < L; l++) {
            const int64_t m = b * L + l;
            for (auto &head : heads) head.append(position[b] - start[b] + l, m);
            for (int64_t i = 0; i < own; i++)
                text.look(heads[i], first + i, m, [&](int64_t h) -> const Head & { return heads[s.mixed ? h % s.G : i]; });
        }
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
