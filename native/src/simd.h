/* Vectors: W floats for products of floats, and 32 bytes with their eight sums of four for products of integers. */
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define LEANLM_INLINE inline __attribute__((always_inline))

namespace leanlm {
namespace LEANLM_NAMESPACE {

LEANLM_INLINE float widen_bf16(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

LEANLM_INLINE float widen_f16(uint16_t bits) {
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    // The exponent's bias is mended by a product, which also brings subnormal numbers into place.
    uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, rest = static_cast<uint32_t>(bits & 0x7fff) << 13;
    if ((bits & 0x7c00) == 0x7c00) rest |= 0x7f800000;  // infinite or not a number
    float value, bias = 0x1p112f;
    std::memcpy(&value, &rest, 4);
    if ((bits & 0x7c00) != 0x7c00) value *= bias;
    std::memcpy(&rest, &value, 4);
    rest |= sign;
    std::memcpy(&value, &rest, 4);
    return value;
#endif
}

#if defined(__AVX512F__)

constexpr int W = 16;
using Floats = __m512;
LEANLM_INLINE Floats zeros() { return _mm512_setzero_ps(); }
LEANLM_INLINE Floats load(const float *p) { return _mm512_loadu_ps(p); }
LEANLM_INLINE void store(float *p, Floats v) { _mm512_storeu_ps(p, v); }
LEANLM_INLINE Floats all(float v) { return _mm512_set1_ps(v); }
LEANLM_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
LEANLM_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
LEANLM_INLINE float sum(Floats v) { return _mm512_reduce_add_ps(v); }
LEANLM_INLINE Floats load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
/* Values 0, 2, 4 .. and 1, 3, 5 .. of 2 W bfloat16. */
LEANLM_INLINE void load_bf16(const uint16_t *p, Floats &even, Floats &odd) {
    __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
}

#elif defined(__AVX2__)

constexpr int W = 8;
using Floats = __m256;
LEANLM_INLINE Floats zeros() { return _mm256_setzero_ps(); }
LEANLM_INLINE Floats load(const float *p) { return _mm256_loadu_ps(p); }
LEANLM_INLINE void store(float *p, Floats v) { _mm256_storeu_ps(p, v); }
LEANLM_INLINE Floats all(float v) { return _mm256_set1_ps(v); }
LEANLM_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
LEANLM_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
LEANLM_INLINE Floats load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
LEANLM_INLINE void load_bf16(const uint16_t *p, Floats &even, Floats &odd) {
    __m256i both = _mm256_loadu_si256((const __m256i *)p);
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(0xffff0000)));
}

#else

constexpr int W = 8;
typedef float Floats __attribute__((vector_size(32)));
LEANLM_INLINE Floats zeros() { return Floats{}; }
LEANLM_INLINE Floats load(const float *p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
LEANLM_INLINE void store(float *p, Floats v) { std::memcpy(p, &v, sizeof v); }
LEANLM_INLINE Floats all(float v) { return Floats{v, v, v, v, v, v, v, v}; }
LEANLM_INLINE Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
LEANLM_INLINE Floats add(Floats a, Floats b) { return a + b; }
LEANLM_INLINE Floats load_f16(const uint16_t *p) {
    Floats v;
    for (int i = 0; i < 8; i++) v[i] = widen_f16(p[i]);
    return v;
}
LEANLM_INLINE void load_bf16(const uint16_t *p, Floats &even, Floats &odd) {
    for (int i = 0; i < 8; i++) even[i] = widen_bf16(p[2 * i]), odd[i] = widen_bf16(p[2 * i + 1]);
}

#endif

#if defined(__AVX2__)

using Bytes = __m256i;
using Sums = __m256i;   // int32 of bytes 4 i .. 4 i + 3
using Eight = __m256;
LEANLM_INLINE Eight zero_eight() { return _mm256_setzero_ps(); }
LEANLM_INLINE Eight load_eight(const float *p) { return _mm256_loadu_ps(p); }
LEANLM_INLINE void store_eight(float *p, Eight v) { _mm256_storeu_ps(p, v); }
LEANLM_INLINE Eight all_eight(float v) { return _mm256_set1_ps(v); }
LEANLM_INLINE Eight fma_eight(Eight a, Eight b, Eight c) { return _mm256_fmadd_ps(a, b, c); }
LEANLM_INLINE Eight add_eight(Eight a, Eight b) { return _mm256_add_ps(a, b); }
LEANLM_INLINE Eight mul_eight(Eight a, Eight b) { return _mm256_mul_ps(a, b); }
LEANLM_INLINE Eight floats(Sums v) { return _mm256_cvtepi32_ps(v); }
/* Floats p[0 .. N - 1], each 8 / N times. */
template <int N>
LEANLM_INLINE Eight spread_eight(const float *p) {
    if (N == 1) return _mm256_broadcast_ss(p);
    if (N == 2) {
        __m256 both = _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double *>(p)));
        return _mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    }
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}
LEANLM_INLINE float sum_eight(Eight v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
/* The sums of eight vectors. */
LEANLM_INLINE Eight sums_of(const Eight (&v)[8]) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
#if !defined(__AVX512F__)
LEANLM_INLINE float sum(Floats v) { return sum_eight(v); }
#endif

#if defined(__AVX512VNNI__)
constexpr bool HAS_VNNI = true;
#else
constexpr bool HAS_VNNI = false;
#endif
using Narrow = __m256i;  // int16, two to a sum
LEANLM_INLINE Bytes load_bytes(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
LEANLM_INLINE void store_bytes(void *p, Bytes v) { _mm256_storeu_si256((__m256i *)p, v); }
LEANLM_INLINE Bytes repeat_four(const int8_t *p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
LEANLM_INLINE Sums all_sums(int32_t v) { return _mm256_set1_epi32(v); }
LEANLM_INLINE Sums add_sums(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
/* Unsigned bytes of a times signed ones of b. */
LEANLM_INLINE Narrow products(Bytes a, Bytes b) { return _mm256_maddubs_epi16(a, b); }
LEANLM_INLINE Narrow add_narrow(Narrow a, Narrow b) { return _mm256_add_epi16(a, b); }
LEANLM_INLINE Sums widen_narrow(Narrow v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
/* sums + the products of four bytes each, those of a unsigned. */
LEANLM_INLINE Sums add_products(Sums sums, Bytes a, Bytes b) {
#if defined(__AVX512VNNI__)
    return _mm256_dpbusd_epi32(sums, a, b);
#else
    return add_sums(sums, widen_narrow(products(a, b)));
#endif
}
/* sums + the products of two int16 each. */
LEANLM_INLINE Sums add_pairs(Sums sums, Bytes a, Bytes b) { return add_sums(sums, _mm256_madd_epi16(a, b)); }
/* Unsigned bytes 0, 2, 4 .. and 1, 3, 5 .. as int16. */
LEANLM_INLINE Bytes even_bytes(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi16(0xff)); }
LEANLM_INLINE Bytes odd_bytes(Bytes v) { return _mm256_srli_epi16(v, 8); }
/* Fours of bytes: four i of v[j] and four j of v[i] change places. */
LEANLM_INLINE void transpose_fours(Bytes (&v)[8]) {
    Bytes pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quads[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(quads[i], quads[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(quads[i], quads[i + 4], 0x31);
    }
}

#else

typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef int32_t Sums __attribute__((vector_size(32)));
using Eight = Floats;
LEANLM_INLINE Eight zero_eight() { return zeros(); }
LEANLM_INLINE Eight load_eight(const float *p) { return load(p); }
LEANLM_INLINE void store_eight(float *p, Eight v) { store(p, v); }
LEANLM_INLINE Eight all_eight(float v) { return all(v); }
LEANLM_INLINE Eight fma_eight(Eight a, Eight b, Eight c) { return a * b + c; }
LEANLM_INLINE Eight add_eight(Eight a, Eight b) { return a + b; }
LEANLM_INLINE Eight mul_eight(Eight a, Eight b) { return a * b; }
LEANLM_INLINE Eight floats(Sums v) { return __builtin_convertvector(v, Eight); }
template <int N>
LEANLM_INLINE Eight spread_eight(const float *p) {
    Eight v;
    for (int i = 0; i < 8; i++) v[i] = p[i * N / 8];
    return v;
}
LEANLM_INLINE float sum_eight(Eight v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
LEANLM_INLINE Eight sums_of(const Eight (&v)[8]) {
    Eight sums;
    for (int i = 0; i < 8; i++) sums[i] = sum_eight(v[i]);
    return sums;
}
LEANLM_INLINE float sum(Floats v) { return sum_eight(v); }

constexpr bool HAS_VNNI = false;
typedef int16_t Narrow __attribute__((vector_size(32)));
LEANLM_INLINE Bytes load_bytes(const void *p) {
    Bytes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
LEANLM_INLINE void store_bytes(void *p, Bytes v) { std::memcpy(p, &v, sizeof v); }
LEANLM_INLINE Bytes repeat_four(const int8_t *p) {
    Bytes v;
    for (int i = 0; i < 32; i++) v[i] = static_cast<uint8_t>(p[i % 4]);
    return v;
}
LEANLM_INLINE Sums all_sums(int32_t v) { return Sums{v, v, v, v, v, v, v, v}; }
LEANLM_INLINE Sums add_sums(Sums a, Sums b) { return a + b; }
LEANLM_INLINE Narrow products(Bytes a, Bytes b) {
    Narrow v;
    for (int i = 0; i < 16; i++)
        v[i] = static_cast<int16_t>(a[2 * i] * static_cast<int8_t>(b[2 * i]) + a[2 * i + 1] * static_cast<int8_t>(b[2 * i + 1]));
    return v;
}
LEANLM_INLINE Narrow add_narrow(Narrow a, Narrow b) { return a + b; }
LEANLM_INLINE Sums widen_narrow(Narrow v) {
    Sums sums;
    for (int i = 0; i < 8; i++) sums[i] = v[2 * i] + v[2 * i + 1];
    return sums;
}
LEANLM_INLINE Sums add_products(Sums sums, Bytes a, Bytes b) {
    for (int i = 0; i < 32; i++) sums[i / 4] += a[i] * static_cast<int8_t>(b[i]);
    return sums;
}
LEANLM_INLINE Sums add_pairs(Sums sums, Bytes a, Bytes b) {
    int16_t x[16], y[16];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; i++) sums[i / 2] += x[i] * y[i];
    return sums;
}
LEANLM_INLINE Bytes even_bytes(Bytes v) {
    for (int i = 0; i < 32; i += 2) v[i + 1] = 0;
    return v;
}
LEANLM_INLINE Bytes odd_bytes(Bytes v) {
    for (int i = 0; i < 32; i += 2) v[i] = v[i + 1], v[i + 1] = 0;
    return v;
}
LEANLM_INLINE void transpose_fours(Bytes (&v)[8]) {
    uint32_t fours[8][8];
    std::memcpy(fours, v, sizeof fours);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < i; j++) std::swap(fours[i][j], fours[j][i]);
    std::memcpy(v, fours, sizeof fours);
}

#endif

/* A sum that the compiler must have here: left alone, it multiplies everything before it adds anything, in more registers than
 * there are. */
template <class Vector>
LEANLM_INLINE void keep(Vector &v) {
#if defined(__AVX2__)
    __asm__ volatile("" : "+x"(v));
#else
    (void)v;
#endif
}

/* A pointer that the compiler has to take for another one, whose values are read anew: it would keep more of them than there are
 * registers for. */
template <class Value>
LEANLM_INLINE void hide(const Value *&p) {
    __asm__ volatile("" : "+r"(p));
}

/* For what is read once: it leaves the second cache to what will be needed again, Python's objects among it. */
LEANLM_INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 0); }

}  // namespace LEANLM_NAMESPACE
}  // namespace leanlm
