/* Exponential, logarithmic and error functions of vectors, to about two units in the last place.
 *
 * The polynomials are minimax fits of their own functions over the reduced ranges stated.
 */
#pragma once

#include "vector.h"

namespace leanlm::LEANLM_NAMESPACE {
inline namespace vectors {

constexpr float LOG2_E = 1.44269504f;
constexpr float ROUNDER = 0x1.8p23f; /* x + ROUNDER - ROUNDER: x rounded to an integer, which the low bits of the sum hold */

/* x 2^n where the low bits of `shifted` (an n + ROUNDER) hold n and the result is normal. */
LEANLM_INLINE Vec times_power(Vec x, Vec shifted) { return from_bits(bits_of(x) + (bits_of(shifted) << 23)); }

/* 2^x of N vectors in place, for x <= 127; below 2^-126 it stays there. Operation by operation: a vector alone leaves the units
 * waiting for each result. */
template <int N>
LEANLM_INLINE void exp2s_of_negative(Vec (&x)[N]) {
    Vec shifted[N], q[N];
    for (int i = 0; i < N; i++) x[i] = at_least(x[i], splat(-126.0f));
    for (int i = 0; i < N; i++) shifted[i] = x[i] + ROUNDER;
    for (int i = 0; i < N; i++) x[i] -= shifted[i] - ROUNDER; /* -1/2 .. 1/2 */
    for (int i = 0; i < N; i++) q[i] = fma(x[i], splat(0.00133347884f), splat(0.00966616068f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], x[i], splat(0.0555049665f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], x[i], splat(0.240223527f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], x[i], splat(0.693147123f));
    for (int i = 0; i < N; i++) x[i] = times_power(fma(q[i], x[i], splat(1.0f)), shifted[i]);
}

/* e^x of N vectors in place. 0 below -87.33, infinite above 88.72. */
template <int N>
LEANLM_INLINE void exps(Vec (&x)[N]) {
    Vec shifted[N], r[N], q[N];
    for (int i = 0; i < N; i++) r[i] = at_most(at_least(x[i], splat(-87.33f)), splat(88.7228f));
    for (int i = 0; i < N; i++) shifted[i] = fma(r[i], splat(LOG2_E), splat(ROUNDER));
    for (int i = 0; i < N; i++) q[i] = shifted[i] - ROUNDER;
    for (int i = 0; i < N; i++) r[i] = fma(q[i], splat(-0x1.62e4p-1f), r[i]); /* x - n log 2; this product is exact */
    for (int i = 0; i < N; i++) r[i] = fma(q[i], splat(-1.42860682e-6f), r[i]);
    for (int i = 0; i < N; i++) q[i] = fma(r[i], splat(0.00139023748f), splat(0.00836311746f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], r[i], splat(0.0416668393f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], r[i], splat(0.166665778f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], r[i], splat(0.5f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], r[i] * r[i], r[i]);
    for (int i = 0; i < N; i++) q[i] = times_power(q[i] + 1.0f, shifted[i]);
    for (int i = 0; i < N; i++) q[i] = x[i] < -87.33f ? zeros() : q[i];
    for (int i = 0; i < N; i++) x[i] = x[i] > 88.7228f ? splat(__builtin_inff()) : q[i];
}

LEANLM_INLINE Vec exp(Vec x) {
    Vec one[1] = {x};
    exps(one);
    return one[0];
}

/* x / (1 + e^-x) of N vectors in place. */
template <int N>
LEANLM_INLINE void silus(Vec (&x)[N]) {
    Vec e[N];
    for (int i = 0; i < N; i++) e[i] = -x[i];
    exps(e);
    for (int i = 0; i < N; i++) x[i] /= 1.0f + e[i];
}

LEANLM_INLINE Vec silu(Vec x) {
    Vec one[1] = {x};
    silus(one);
    return one[0];
}

/* log(1 + e^x) = max(x, 0) + log(1 + u) of N vectors in place, u = e^-|x|; log(1 + u) = 2 atanh(s), s = u / (2 + u) <= 1/3. */
template <int N>
LEANLM_INLINE void softpluses(Vec (&x)[N]) {
    Vec u[N], t[N], q[N];
    for (int i = 0; i < N; i++) u[i] = from_bits(bits_of(x[i]) | 0x80000000u);
    exps(u);
    for (int i = 0; i < N; i++) u[i] /= u[i] + 2.0f;
    for (int i = 0; i < N; i++) t[i] = u[i] * u[i];
    for (int i = 0; i < N; i++) q[i] = fma(t[i], splat(0.116164811f), splat(0.108523294f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], t[i], splat(0.142962456f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], t[i], splat(0.199998513f));
    for (int i = 0; i < N; i++) q[i] = fma(q[i], t[i], splat(0.333333343f));
    for (int i = 0; i < N; i++) x[i] = at_least(x[i], zeros()) + 2.0f * fma(u[i] * t[i], q[i], u[i]);
}

LEANLM_INLINE Vec softplus(Vec x) {
    Vec one[1] = {x};
    softpluses(one);
    return one[0];
}

/* x (1 + erf(x / sqrt 2)) / 2, from e^(t^2) erfc(t) as a polynomial in u = 1 / (1 + t / 2), t = |x| / sqrt 2. What rounding
 * takes from t^2 = x^2 / 2 is put back: the exponential would magnify it. */
LEANLM_INLINE Vec gelu(Vec x) {
    const Vec size = at_most(from_bits(bits_of(x) & 0x7fffffffu), splat(20.0f));
    const Vec t = size * 0.707106781f, square = 0.5f * size * size, lost = fma(0.5f * size, size, -square);
    const Vec u = 1.0f / fma(t, splat(0.5f), splat(1.0f));
    Vec q = fma(u, splat(-0.0590801165f), splat(0.284623712f));
    q = fma(q, u, splat(-0.487288237f));
    q = fma(q, u, splat(0.278153092f));
    q = fma(q, u, splat(-0.0266742781f));
    q = fma(q, u, splat(0.202703074f));
    q = fma(q, u, splat(0.243100688f));
    q = fma(q, u, splat(0.282375604f));
    q = fma(q, u, splat(0.282086402f));
    const Vec erfc = q * u * exp(-square) * (1.0f - lost);
    return 0.5f * x * (x < 0.0f ? erfc : 2.0f - erfc);
}

} // namespace vectors
} // namespace leanlm::LEANLM_NAMESPACE
