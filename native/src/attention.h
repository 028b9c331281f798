/* What attention of one and of many tokens has in common.
 *
 * B texts  L tokens  H heads  Hkv key/value heads  R = H / Hkv  P head width
 */
#pragma once

#include <type_traits>

#include "elementary.h"
#include "workspace.h"
#include "threads.h"
#include "tile.h"

namespace leanlm::LEANLM_NAMESPACE {

constexpr int64_t KEYS = 64; /* of a block */
constexpr float LOWEST = -__builtin_inff();

LEANLM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

LEANLM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Rows [Hkv, P] of keys or values; of 8-bit ones the scales [Hkv] of each, else not looked at. */
template <class T>
struct Cache {
    T *at;
    float *scales;

    static constexpr bool scaled = std::is_same_v<T, Int8>;

    float *scales_from(int64_t place) const { return scaled ? scales + place : nullptr; }
};

template <class T>
struct Attention {
    const float *q, *k, *v;
    float *y;
    int64_t q_stride, k_stride, v_stride, y_stride;
    int64_t B, L, H, Hkv, P, slots, span; /* span: how many keys a token sees at most */
    float scale;
    const int64_t *position, *start;
    Cache<T> keys, values;

    int64_t sharing() const { return H / Hkv; }

    /* The first key that the token at `position` of text b sees. */
    int64_t first(int64_t b, int64_t at) const { return most(most(start[b], at - span + 1), 0); }

    /* The row of a cache that the token at position `at` of text b has. */
    int64_t row(int64_t b, int64_t at) const { return b * slots + at % slots; }
};

/* In place: exp(scores - peak), n counting up to four whole vectors; returns their sum. */
LEANLM_INLINE float exps_below(float *scores, int64_t n, float peak) {
    static_assert(KEYS % (4 * W) == 0);
    Vec total = zeros();
    for (int64_t i = 0; i < n; i += 4 * W) {
        Vec weights[4];
        for (int v = 0; v < 4; v++) weights[v] = load(scores + i + v * W) - peak;
        exps(weights);
        for (int v = 0; v < 4; v++) store(scores + i + v * W, weights[v]);
        total += (weights[0] + weights[1]) + (weights[2] + weights[3]);
    }
    return sum(total);
}

/* Keys or values [.., Hkv, P] of one token into a cache; 8-bit ones with a scale per head, by which the codes -127 .. 127 are
 * multiplied. */
template <class T>
void write_row(const float *from, T *to, float *, int64_t Hkv, int64_t P) {
    const int64_t n = Hkv * P;
    for (int64_t i = 0; i < n; i += W) store_up_to(to + i, load_up_to(from + i, n - i), n - i);
}

template <>
inline void write_row(const float *from, Int8 *to, float *scales, int64_t Hkv, int64_t P) {
    for (int64_t h = 0; h < Hkv; h++, from += P, to += P) {
        Vec high = zeros();
        for (int64_t p = 0; p < P; p += W) high = at_least(from_bits(bits_of(load_up_to(from + p, P - p)) & 0x7fffffffu), high);
        const float scale = scales[h] = largest(high) / 127.0f;
        const Vec divisor = splat(scale > 0 ? scale : 1.0f);
        for (int64_t p = 0; p < P; p += W) {
            const Vec code = load_up_to(from + p, P - p) / divisor;
            const Vec sign = from_bits(bits_of(code) & 0x80000000u), size = from_bits(bits_of(code) & 0x7fffffffu);
            store_up_to(to + p, from_bits(bits_of(size + ROUNDER - ROUNDER) | bits_of(sign)), P - p);
        }
    }
}

/* Tokens begin .. end - 1 of text b into the caches. */
template <class T>
void remember(const Attention<T> &s, int64_t b, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
        const int64_t m = b * s.L + t, row = s.row(b, s.position[b] + t);
        write_row(s.k + m * s.k_stride, s.keys.at + row * s.Hkv * s.P, s.keys.scales_from(row * s.Hkv), s.Hkv, s.P);
        write_row(s.v + m * s.v_stride, s.values.at + row * s.Hkv * s.P, s.values.scales_from(row * s.Hkv), s.Hkv, s.P);
    }
}

} // namespace leanlm::LEANLM_NAMESPACE
