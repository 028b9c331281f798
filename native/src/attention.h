/* What attention of one and of many tokens has in common.
 *
 * B texts  L tokens  H heads  Hkv key/value heads  R = H / Hkv  P head width
 */
#pragma once

#include "elementary.h"
#include "workspace.h"
#include "threads.h"
#include "tile.h"

namespace leanlm::LEANLM_NAMESPACE {

constexpr int64_t KEYS = 64; /* of a block */
constexpr float LOWEST = -__builtin_inff();

LEANLM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

LEANLM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct Attention {
    const float *q, *k, *v;
    float *y;
    int64_t q_stride, k_stride, v_stride, y_stride;
    int64_t B, L, H, Hkv, P, slots, span; /* span: how many keys a token sees at most */
    float scale;
    const int64_t *position, *start;
    T *keys, *values;

    int64_t sharing() const { return H / Hkv; }

    /* The first key that the token at `position` of text b sees. */
    int64_t first(int64_t b, int64_t at) const { return most(most(start[b], at - span + 1), 0); }

    /* Offset in a cache of the token at `position` of text b. */
    int64_t place(int64_t b, int64_t at) const { return (b * slots + at % slots) * Hkv * P; }
};

template <class T>
void narrow_row(const float *from, T *to, int64_t n) {
    for (int64_t i = 0; i < n; i += W) store_up_to(to + i, load_up_to(from + i, n - i), n - i);
}

/* Tokens begin .. L - 1 of every text into the caches. */
template <class T>
void remember(const Attention<T> &s, int64_t begin, int64_t end) {
    const int64_t tokens = end - begin;
    parallel_for(s.B * tokens, [&](int64_t task) {
        const int64_t b = task / tokens, t = begin + task % tokens, m = b * s.L + t;
        const int64_t place = s.place(b, s.position[b] + t);
        narrow_row(s.k + m * s.k_stride, s.keys + place, s.Hkv * s.P);
        narrow_row(s.v + m * s.v_stride, s.values + place, s.Hkv * s.P);
    });
}

} // namespace leanlm::LEANLM_NAMESPACE
