/* Vectors of float32 for the instruction set this file is compiled for, and their loads and stores.
 *
 * Every kernel source is compiled once per instruction set with LEANLM_NAMESPACE naming a namespace of its own. Arithmetic and
 * comparisons are the compiler's vector extensions; named functions cover what these lack.
 */
#pragma once

#include <cstdint>
#include <cstring>

#include "leanlm.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef LEANLM_NAMESPACE
#define LEANLM_NAMESPACE portable
#endif

#define LEANLM_INLINE inline __attribute__((always_inline))

namespace leanlm::LEANLM_NAMESPACE {
inline namespace vectors {

#if defined(__AVX512F__)
constexpr int W = 16; /* values of a vector */
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef int8_t Bytes __attribute__((vector_size(W)));

/* Values as they lie in memory. */
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
struct Int8 {
    int8_t value;
};

LEANLM_INLINE Vec splat(float x) { return x - Vec{}; }

LEANLM_INLINE Vec zeros() { return Vec{}; }

LEANLM_INLINE Bits bits_of(Vec x) { return reinterpret_cast<Bits>(x); }

LEANLM_INLINE Vec from_bits(Bits x) { return reinterpret_cast<Vec>(x); }

#if defined(__AVX512F__)

/* a b + c */
LEANLM_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

/* The larger; x where x is not a number. */
LEANLM_INLINE Vec at_least(Vec x, Vec bound) { return _mm512_max_ps(bound, x); }

LEANLM_INLINE Vec at_most(Vec x, Vec bound) { return _mm512_min_ps(bound, x); }

LEANLM_INLINE Vec square_root(Vec x) { return _mm512_sqrt_ps(x); }

LEANLM_INLINE Vec widen(const Float16 *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}

LEANLM_INLINE void narrow(Vec x, Float16 *to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* The values of a and b by turns: the first halves, then the second halves. */
LEANLM_INLINE void interleave(Vec a, Vec b, Vec &low, Vec &high) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    low = _mm512_permutex2var_ps(a, first, b);
    high = _mm512_permutex2var_ps(a, second, b);
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

LEANLM_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

LEANLM_INLINE Vec at_least(Vec x, Vec bound) { return _mm256_max_ps(bound, x); }

LEANLM_INLINE Vec at_most(Vec x, Vec bound) { return _mm256_min_ps(bound, x); }

LEANLM_INLINE Vec square_root(Vec x) { return _mm256_sqrt_ps(x); }

LEANLM_INLINE Vec widen(const Float16 *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

LEANLM_INLINE void narrow(Vec x, Float16 *to) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

LEANLM_INLINE void interleave(Vec a, Vec b, Vec &low, Vec &high) {
    const __m256 even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
    low = _mm256_permute2f128_ps(even, odd, 0x20);
    high = _mm256_permute2f128_ps(even, odd, 0x31);
}

#else

LEANLM_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

LEANLM_INLINE Vec at_least(Vec x, Vec bound) { return x < bound ? bound : x; }

LEANLM_INLINE Vec at_most(Vec x, Vec bound) { return x > bound ? bound : x; }

LEANLM_INLINE Vec square_root(Vec x) {
    for (int i = 0; i < W; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

/* A half's exponent counts from 15, a float's from 127: shifted into place, a product with 2^112 moves one to the other, and
 * makes normal numbers of the halves that are not. */
LEANLM_INLINE Vec widen(const Float16 *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    const Bits h = __builtin_convertvector(halves, Bits);
    const Bits sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13;
    const Vec scaled = from_bits(magnitude) * 0x1p112f;
    const Bits finite = bits_of(scaled), special = magnitude | 0x7f800000u;
    return from_bits(sign | ((h & 0x7c00u) == 0x7c00u ? special : finite));
}

/* Round to nearest even: normal results by adding half a unit to the bits, the small ones by adding a number whose last place
 * is theirs. */
LEANLM_INLINE void narrow(Vec x, Float16 *to) {
    const Bits bits = bits_of(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Bits small = bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    const Bits rest = magnitude > 0x7f800000u ? 0x7e00u - Bits{} : 0x7c00u - Bits{};
    const Bits result = magnitude < 0x38800000u ? small : magnitude < 0x477ff000u ? normal : rest;
    const Halves halves = __builtin_convertvector(sign | result, Halves);
    memcpy(to, &halves, sizeof halves);
}

LEANLM_INLINE void interleave(Vec a, Vec b, Vec &low, Vec &high) {
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

#endif

LEANLM_INLINE Vec load(const float *from) {
    Vec x;
    memcpy(&x, from, sizeof x);
    return x;
}

LEANLM_INLINE Bits as_upper_halves(Halves x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Bits>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x)), 16));
#elif defined(__AVX2__)
    return reinterpret_cast<Bits>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)), 16));
#else
    return __builtin_convertvector(x, Bits) << 16;
#endif
}

LEANLM_INLINE Vec load(const BFloat16 *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return from_bits(as_upper_halves(halves));
}

LEANLM_INLINE Vec load(const Float16 *from) { return widen(from); }

LEANLM_INLINE Vec load(const Int8 *from) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
#else
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Vec);
#endif
}

LEANLM_INLINE void store(float *to, Vec x) { memcpy(to, &x, sizeof x); }

/* The upper half of every value. */
LEANLM_INLINE Halves upper_halves(Bits x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Halves>(_mm512_cvtepi32_epi16(_mm512_srli_epi32(reinterpret_cast<__m512i>(x), 16)));
#elif defined(__AVX2__)
    const __m256i upper = _mm256_srli_epi32(reinterpret_cast<__m256i>(x), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0xd8);
    return reinterpret_cast<Halves>(_mm256_castsi256_si128(packed));
#else
    return __builtin_convertvector(x >> 16, Halves);
#endif
}

/* Round to nearest even. What is not a number stays so, unless its mantissa is full, which no arithmetic brings about. */
LEANLM_INLINE void store(BFloat16 *to, Vec x) {
    const Bits bits = bits_of(x);
    const Halves halves = upper_halves(bits + 0x7fffu + ((bits >> 16) & 1u));
    memcpy(to, &halves, sizeof halves);
}

LEANLM_INLINE void store(Float16 *to, Vec x) { narrow(x, to); }

/* Of values that are integers already. */
LEANLM_INLINE void store(Int8 *to, Vec x) {
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(x, Ints), Bytes);
    memcpy(to, &bytes, sizeof bytes);
}

/* The first n < W values, zeros after them. */
template <class T>
LEANLM_INLINE Vec load_some(const T *from, int64_t n) {
    T some[W] = {};
    memcpy(some, from, n * sizeof(T));
    return load(some);
}

template <class T>
LEANLM_INLINE void store_some(T *to, Vec x, int64_t n) {
    T some[W];
    store(some, x);
    memcpy(to, some, n * sizeof(T));
}

/* Up to W values, n counting those that are left. */
template <class T>
LEANLM_INLINE Vec load_up_to(const T *from, int64_t n) {
    return n >= W ? load(from) : load_some(from, n);
}

template <class T>
LEANLM_INLINE void store_up_to(T *to, Vec x, int64_t n) {
    if (n >= W)
        store(to, x);
    else
        store_some(to, x, n);
}

/* Asks for the cache line that lies `bytes` on, for the second cache: streams that rows share run too fast for the hardware's
 * guess, and the first cache is full of what is at work. */
LEANLM_INLINE void fetch(const void *from, int64_t bytes) { __builtin_prefetch(static_cast<const char *>(from) + bytes, 0, 2); }

LEANLM_INLINE float sum(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(x);
#elif defined(__AVX2__)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

LEANLM_INLINE float largest(Vec x) {
    float most = x[0];
    for (int i = 1; i < W; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* to[i] = the sum of x[i]. */
LEANLM_INLINE void sums(const Vec (&x)[8], float *to) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 y[8];
    for (int i = 0; i < 8; i++)
        y[i] = _mm256_add_ps(_mm512_castps512_ps256(x[i]),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x[i]), 1)));
#else
    const Vec(&y)[8] = x;
#endif
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(y[0], y[1]), _mm256_hadd_ps(y[2], y[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(y[4], y[5]), _mm256_hadd_ps(y[6], y[7]));
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
#else
    for (int i = 0; i < 8; i++) to[i] = sum(x[i]);
#endif
}

/* Calls work with a null pointer of the C++ type that holds `dtype`. */
template <class F>
LEANLM_INLINE void with_dtype(int32_t dtype, F &&work) {
    if (dtype == LEANLM_F32)
        work(static_cast<float *>(nullptr));
    else if (dtype == LEANLM_BF16)
        work(static_cast<BFloat16 *>(nullptr));
    else
        work(static_cast<Float16 *>(nullptr));
}

} // namespace vectors
} // namespace leanlm::LEANLM_NAMESPACE
