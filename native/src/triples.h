/* Rows of three values each, as the tails of convolutions with four taps lie in memory: vectors of first, second and third ones.
 *
 * W and 3 have no common divisor, so the W values of one place stand in different lanes of the three vectors that hold them all:
 * two blends gather them, one permutation puts them in order. */
#pragma once

#include <utility>

#include "vector.h"

namespace leanlm::LEANLM_NAMESPACE {
inline namespace vectors {

using Lanes = std::make_integer_sequence<int, W>;

/* The values of place `Part` among the 3 W values of x. */
template <int Part, int... I>
LEANLM_INLINE Vec gather_third(const Vec (&x)[3], std::integer_sequence<int, I...>) {
    const Vec two = __builtin_shufflevector(x[0], x[1], (I % 3 == Part ? I : W + I)...);
    const Vec all = __builtin_shufflevector(two, x[2], ((2 * W + I) % 3 == Part ? W + I : I)...);
    return __builtin_shufflevector(all, all, ((3 * I + Part) % W)...);
}

/* The values of place `Part`, each in the lane where it stands in memory. */
template <int Part, int... I>
LEANLM_INLINE Vec scatter_third(Vec x, std::integer_sequence<int, I...>) {
    constexpr int THIRD = W == 16 ? 11 : 3; /* 3 THIRD = 1 (mod W) */
    return __builtin_shufflevector(x, x, (THIRD * (I + 3 * W - Part) % W)...);
}

/* Vector J of memory, from the three places in the lanes where they stand. */
template <int J, int... I>
LEANLM_INLINE Vec blend_thirds(const Vec (&x)[3], std::integer_sequence<int, I...>) {
    const Vec two = __builtin_shufflevector(x[0], x[1], ((J * W + I) % 3 == 0 ? I : W + I)...);
    return __builtin_shufflevector(two, x[2], ((J * W + I) % 3 == 2 ? W + I : I)...);
}

template <class T>
LEANLM_INLINE void load_triples(const T *from, int64_t n, Vec (&to)[3]) {
    Vec x[3];
    for (int j = 0; j < 3; j++) x[j] = 3 * n > j * W ? load_up_to(from + j * W, 3 * n - j * W) : zeros();
    to[0] = gather_third<0>(x, Lanes());
    to[1] = gather_third<1>(x, Lanes());
    to[2] = gather_third<2>(x, Lanes());
}

template <class T>
LEANLM_INLINE void store_triples(T *to, int64_t n, const Vec (&x)[3]) {
    const Vec placed[3] = {scatter_third<0>(x[0], Lanes()), scatter_third<1>(x[1], Lanes()), scatter_third<2>(x[2], Lanes())};
    const Vec rows[3] = {blend_thirds<0>(placed, Lanes()), blend_thirds<1>(placed, Lanes()), blend_thirds<2>(placed, Lanes())};
    for (int j = 0; j < 3; j++)
        if (3 * n > j * W) store_up_to(to + j * W, rows[j], 3 * n - j * W);
}

} // namespace vectors
} // namespace leanlm::LEANLM_NAMESPACE
