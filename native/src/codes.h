/* Codes of `bits` bits, 32 bytes at a time: taken out of their stored layout, and multiplied with int8 activations.
 *
 * A unit is VECTORS<bits> vectors of 32 codes. With 2 and 4 bits a unit is 32 stored bytes, and vector p holds field p of every
 * byte (columns 4 i + p or 2 i + p); otherwise a unit is 32 consecutive columns. Codes of 8 bits are given less 128, as int8. */
#pragma once

#include "simd.h"

namespace leanlm {
namespace LEANLM_NAMESPACE {

template <int BITS>
constexpr int VECTORS = BITS == 2 ? 4 : BITS == 4 ? 2 : 1;
template <int BITS>
constexpr int UNIT_COLUMNS = 32 * VECTORS<BITS>;
template <int BITS>
constexpr int UNIT_BYTES = UNIT_COLUMNS<BITS> * BITS / 8;

template <int BITS>
struct Codes {
    Bytes vectors[VECTORS<BITS>];
};

#if defined(__AVX2__)

/* Words of two fields, by byte shuffle and product brought to the top of each word, put into two bytes. */
template <int BITS>
LEANLM_INLINE Bytes split_words(__m256i words) {
    if (BITS == 6) {
        return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(words, 2), _mm256_set1_epi16(0x3f00)),
                               _mm256_and_si256(_mm256_srli_epi16(words, 4), _mm256_set1_epi16(0x003f)));
    }
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(words, 5), _mm256_set1_epi16(0x0700)),
                           _mm256_srli_epi16(_mm256_slli_epi16(words, 3), 13));
}

template <int BITS>
LEANLM_INLINE Codes<BITS> load_codes(const uint8_t *p) {
    if constexpr (BITS == 8) {
        return {{_mm256_xor_si256(_mm256_loadu_si256((const __m256i *)p), _mm256_set1_epi8((char)0x80))}};
    } else if constexpr (BITS == 4) {
        __m256i v = _mm256_loadu_si256((const __m256i *)p), mask = _mm256_set1_epi8(15);
        return {{_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16(v, 4), mask)}};
    } else if constexpr (BITS == 2) {
        __m256i v = _mm256_loadu_si256((const __m256i *)p), mask = _mm256_set1_epi8(3);
        return {{_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16(v, 2), mask),
                 _mm256_and_si256(_mm256_srli_epi16(v, 4), mask), _mm256_and_si256(_mm256_srli_epi16(v, 6), mask)}};
    } else if constexpr (BITS == 6) {  // 24 bytes, of which the halves overlap
        __m256i v = _mm256_loadu2_m128i((const __m128i *)(p + 8), (const __m128i *)p);
        v = _mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11,  //
                                                    4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12, 13, 14, 14, 15));
        return {{split_words<6>(_mm256_mullo_epi16(v, _mm256_set1_epi32(0x00010010)))}};
    } else {  // 12 bytes
        int32_t last;
        std::memcpy(&last, p + 8, 4);
        __m256i v = _mm256_broadcastsi128_si256(_mm_insert_epi32(_mm_loadl_epi64((const __m128i *)p), last, 2));
        v = _mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 3, 4, 4, 5, 5, 6,  //
                                                    6, 7, 6, 7, 7, 8, 8, 9, 9, 10, 9, 10, 10, 11, 11, 12));
        return {{split_words<3>(_mm256_mullo_epi16(v, _mm256_set1_epi64x(0x0100004000100400)))}};
    }
}

/* Sums over the vectors of code times activation. Two products of a code and an int8 fit in 16 bits below 8 bits, as do the
 * eight of four vectors of 2 bits; with 8 bits the sign is moved to the activation, and 128 * 127 * 2 fits. */
template <int BITS>
LEANLM_INLINE Sums dot(const Codes<BITS> &codes, const int8_t *activations) {
    const __m256i *a = (const __m256i *)activations;
    if constexpr (BITS == 8) {
        __m256i size = _mm256_abs_epi8(codes.vectors[0]), turned = _mm256_sign_epi8(_mm256_load_si256(a), codes.vectors[0]);
#if defined(__AVX512VNNI__)
        return _mm256_dpbusd_epi32(_mm256_setzero_si256(), size, turned);
#else
        return _mm256_madd_epi16(_mm256_maddubs_epi16(size, turned), _mm256_set1_epi16(1));
#endif
    } else {
#if defined(__AVX512VNNI__)
        __m256i sums = _mm256_setzero_si256();
        for (int k = 0; k < VECTORS<BITS>; k++) sums = _mm256_dpbusd_epi32(sums, codes.vectors[k], _mm256_load_si256(a + k));
        return sums;
#else
        __m256i sums = _mm256_maddubs_epi16(codes.vectors[0], _mm256_load_si256(a));
        for (int k = 1; k < VECTORS<BITS>; k++) {
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes.vectors[k], _mm256_load_si256(a + k)));
        }
        return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
#endif
    }
}

#else

template <int BITS>
LEANLM_INLINE Codes<BITS> load_codes(const uint8_t *p) {
    Codes<BITS> codes;
    if constexpr (BITS == 8 || BITS == 4 || BITS == 2) {
        Bytes v;
        std::memcpy(&v, p, 32);
        if (BITS == 8) v = v ^ static_cast<uint8_t>(0x80);
        for (int k = 0; k < VECTORS<BITS>; k++) codes.vectors[k] = (v >> (k * BITS % 8)) & static_cast<uint8_t>((1 << BITS) - 1);
    } else {
        for (int i = 0; i < 4; i++) {
            uint64_t eight = 0;
            std::memcpy(&eight, p + i * BITS, BITS);
            for (int j = 0; j < 8; j++) codes.vectors[0][8 * i + j] = eight >> (j * BITS) & ((1 << BITS) - 1);
        }
    }
    return codes;
}

template <int BITS>
LEANLM_INLINE Sums dot(const Codes<BITS> &codes, const int8_t *activations) {
    Sums sums{};
    for (int k = 0; k < VECTORS<BITS>; k++) {
        for (int i = 0; i < 32; i++) {
            int code = BITS == 8 ? static_cast<int8_t>(codes.vectors[k][i]) : codes.vectors[k][i];
            sums[i / 4] += code * activations[32 * k + i];
        }
    }
    return sums;
}

#endif

}  // namespace LEANLM_NAMESPACE
}  // namespace leanlm
