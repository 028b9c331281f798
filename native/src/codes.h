/* Codes of `bits` bits taken out of their stored layout and multiplied with int8 activations, one unit at a time.
 *
 *   BITS                            TRITS    2    3    4    6    8
 *   columns of a unit                 256  128   64   64   32   32
 *   bytes of a unit                    64   32   24   32   24   32
 *   activations in                   int8 int8 int16 int8 int16 int8
 *   of which share a scale            256   32   32   32   32   32
 *
 * Ternary codes are 2 bits wide; because all of a row have one scale, more of them are summed up at once.
 *
 * Codes of 2, 4 and 8 bits fall into bytes: vector p holds field p of every stored byte. Codes of 3 and 6 bits are left where they
 * stand in windows of two bytes, which is a shift to the left by 0 to 7; the activation beside them is shifted by what is
 * missing to FOLD, so that every product is 2^FOLD times the true one. Codes of 8 bits are given less 128, as int8.
 * Every other field of ternary codes is left two bits higher, where it is four times as much, and FOLD makes up for that.
 * Either way lane l of the eight sums belongs to the block of columns l BLOCKS / 8 of the unit. */
#pragma once

#include <type_traits>

#include "simd.h"

namespace leanlm {
namespace LEANLM_NAMESPACE {

constexpr int TRITS = 1;

template <int BITS>
constexpr int WIDTH = BITS == TRITS ? 2 : BITS;  // bits of a stored code
template <int BITS>
constexpr int UNIT_COLUMNS = BITS == TRITS ? 256 : BITS == 2 ? 128 : BITS == 3 || BITS == 4 ? 64 : 32;
template <int BITS>
constexpr int UNIT_BYTES = UNIT_COLUMNS<BITS> * WIDTH<BITS> / 8;
template <int BITS>
constexpr int BLOCK_COLUMNS = BITS == TRITS ? 256 : 32;  // columns whose activations share a scale
template <int BITS>
constexpr int BLOCKS = UNIT_COLUMNS<BITS> / BLOCK_COLUMNS<BITS>;
template <int BITS>
constexpr bool WINDOWS = BITS == 3 || BITS == 6;  // codes of these bits cross the borders of bytes
template <int BITS>
constexpr int VECTORS = UNIT_COLUMNS<BITS> / 32 * (WINDOWS<BITS> ? 2 : 1);
template <int BITS>
constexpr int FOLD = BITS == 3 ? 7 : BITS == 6 ? 6 : BITS == TRITS ? 2 : 0;

/* Where the code of a column stands: bits before it in its half of the unit, for codes in windows. A half is what one lane of
 * 16 bytes is filled from, bytes 0 to 15 and 8 to 23, so that the second begins with its fifth byte. */
template <int BITS>
struct Place {
    static constexpr int COLUMNS = UNIT_COLUMNS<BITS> / 2;
    int half, vector, word, bit;

    constexpr explicit Place(int column)
        : half(column / COLUMNS), vector(column % COLUMNS / 8), word(column % 8), bit(column % COLUMNS * BITS) {}

    constexpr int position() const { return vector * 16 + half * 8 + word; }
    constexpr int byte() const { return bit / 8 + 4 * half; }
    constexpr int shift() const { return bit % 8; }
};

/* One digit of a unit's activations, in the order of its columns, put where the codes will meet it. */
template <int BITS>
LEANLM_INLINE void arrange(const int8_t *digits, void *vectors) {
    if constexpr (WINDOWS<BITS>) {
        int16_t *words = static_cast<int16_t *>(vectors);
        for (int c = 0; c < UNIT_COLUMNS<BITS>; c += 8)
            for (int j = 0; j < 8; j++)
                words[Place<BITS>(c).position() + j] = static_cast<int16_t>(digits[c + j] * (1 << (FOLD<BITS> - j * BITS % 8)));
    } else {
        using Word = std::conditional_t<WIDTH<BITS> == 2, uint32_t, std::conditional_t<BITS == 4, uint16_t, uint8_t>>;
        uint8_t *bytes = static_cast<uint8_t *>(vectors);
        for (int done = 0; done < UNIT_COLUMNS<BITS>; done += sizeof(Word[32])) {
            Word words[32];
            std::memcpy(words, digits + done, sizeof words);  // the columns of a stored byte together
            for (size_t p = 0; p < sizeof(Word); p++)
                for (int i = 0; i < 32; i++) bytes[done + p * 32 + i] = static_cast<uint8_t>(words[i] >> (8 * p));
        }
    }
}

template <int BITS>
struct Codes {
    Bytes vectors[VECTORS<BITS>];
};

/* A unit whose codes are all worth 1: what is multiplied with it is summed up. */
template <int BITS>
struct Ones {
    uint8_t bytes[UNIT_BYTES<BITS>] = {};

    constexpr Ones() {
        for (int c = 0; c < UNIT_COLUMNS<BITS>; c++) bytes[c * WIDTH<BITS> / 8] |= BITS == 8 ? 129 : 1 << (c * WIDTH<BITS> % 8);
    }
};

#if defined(__AVX2__)

template <int BITS>
struct Windows {
    alignas(32) int8_t bytes[VECTORS<BITS>][32] = {};
    alignas(32) int16_t masks[VECTORS<BITS>][16] = {};

    constexpr Windows() {
        for (int c = 0; c < UNIT_COLUMNS<BITS>; c++) {
            const Place<BITS> place(c);
            const int at = place.half * 8 + place.word, next = place.byte() + 1;
            bytes[place.vector][2 * at] = static_cast<int8_t>(place.byte());
            bytes[place.vector][2 * at + 1] = static_cast<int8_t>(next < 16 ? next : -1);
            masks[place.vector][at] = static_cast<int16_t>(((1 << BITS) - 1) << place.shift());
        }
    }
};

template <int BITS>
constexpr Windows<BITS> WINDOW;

template <int BITS>
LEANLM_INLINE Codes<BITS> load_codes(const uint8_t *p) {
    if constexpr (BITS == 8) {
        return {{_mm256_xor_si256(_mm256_loadu_si256((const __m256i *)p), _mm256_set1_epi8((char)0x80))}};
    } else if constexpr (BITS == 4) {
        __m256i v = _mm256_loadu_si256((const __m256i *)p), mask = _mm256_set1_epi8(15);
        return {{_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16(v, 4), mask)}};
    } else if constexpr (BITS == TRITS) {
        const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
        Codes<BITS> codes;
        for (int k = 0; k < VECTORS<BITS>; k += 4) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(p + 8 * k)), w = _mm256_srli_epi16(v, 4);
            codes.vectors[k] = _mm256_and_si256(v, low), codes.vectors[k + 1] = _mm256_and_si256(v, high);
            codes.vectors[k + 2] = _mm256_and_si256(w, low), codes.vectors[k + 3] = _mm256_and_si256(w, high);
        }
        return codes;
    } else if constexpr (BITS == 2) {
        __m256i v = _mm256_loadu_si256((const __m256i *)p), mask = _mm256_set1_epi8(3);
        return {{_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16(v, 2), mask),
                 _mm256_and_si256(_mm256_srli_epi16(v, 4), mask), _mm256_and_si256(_mm256_srli_epi16(v, 6), mask)}};
    } else {
        __m256i v = _mm256_loadu2_m128i((const __m128i *)(p + 8), (const __m128i *)p);
        Codes<BITS> codes;
        for (int k = 0; k < VECTORS<BITS>; k++) {
            __m256i bytes = _mm256_load_si256((const __m256i *)WINDOW<BITS>.bytes[k]);
            __m256i mask = _mm256_load_si256((const __m256i *)WINDOW<BITS>.masks[k]);
            codes.vectors[k] = _mm256_and_si256(_mm256_shuffle_epi8(v, bytes), mask);
        }
        return codes;
    }
}

/* Sums of code times activation, four bytes or two words to each. Two products of a code and an int8 fit in 16 bits below 8 bits,
 * as do the eight of four vectors of 2 bits; with 8 bits the sign is moved to the activation, and 128 * 127 * 2 fits. Of a ternary
 * unit the sum in 16 bits is four times sixteen products with codes up to 2, and 4 * 16 * 2 * 127 fits. */
template <int BITS>
LEANLM_INLINE Sums dot(const Codes<BITS> &codes, const void *activations) {
    const __m256i *a = static_cast<const __m256i *>(activations);
    if constexpr (BITS == 8) {
        __m256i size = _mm256_abs_epi8(codes.vectors[0]), turned = _mm256_sign_epi8(_mm256_load_si256(a), codes.vectors[0]);
#if defined(__AVX512VNNI__)
        return _mm256_dpbusd_epi32(_mm256_setzero_si256(), size, turned);
#else
        return _mm256_madd_epi16(_mm256_maddubs_epi16(size, turned), _mm256_set1_epi16(1));
#endif
    } else if constexpr (BITS == TRITS) {
        __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};  // of codes as they are, and four times as much
#if defined(__AVX512VNNI__)
        for (int k = 0; k < VECTORS<BITS>; k++) sums[k % 2] = _mm256_dpbusd_epi32(sums[k % 2], codes.vectors[k], _mm256_load_si256(a + k));
        return _mm256_add_epi32(_mm256_slli_epi32(sums[0], FOLD<BITS>), sums[1]);
#else
        for (int k = 0; k < VECTORS<BITS>; k++) {
            sums[k % 2] = _mm256_add_epi16(sums[k % 2], _mm256_maddubs_epi16(codes.vectors[k], _mm256_load_si256(a + k)));
        }
        return _mm256_madd_epi16(_mm256_add_epi16(_mm256_slli_epi16(sums[0], FOLD<BITS>), sums[1]), _mm256_set1_epi16(1));
#endif
    } else if constexpr (WINDOWS<BITS>) {
        __m256i sums = _mm256_madd_epi16(codes.vectors[0], _mm256_load_si256(a));
        for (int k = 1; k < VECTORS<BITS>; k++) {
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(codes.vectors[k], _mm256_load_si256(a + k)));
        }
        return sums;
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

/* Words of four codes each, one code to a byte: halves are moved apart, then what is in them. */
template <int BITS>
LEANLM_INLINE Bytes spread_fours(__m256i words) {
    constexpr int HALF = (1 << 2 * BITS) - 1, ONE = ((1 << BITS) - 1) * 0x00010001;
    const __m256i half = _mm256_set1_epi32(HALF), one = _mm256_set1_epi32(ONE);
    words = _mm256_or_si256(_mm256_and_si256(words, half),
                            _mm256_and_si256(_mm256_slli_epi32(words, 16 - 2 * BITS), _mm256_slli_epi32(half, 16)));
    return _mm256_or_si256(_mm256_and_si256(words, one),
                           _mm256_and_si256(_mm256_slli_epi32(words, 8 - BITS), _mm256_slli_epi32(one, 8)));
}

/* 32 codes in the order of their columns, one to a byte. */
template <int BITS>
LEANLM_INLINE Bytes block_of_codes(const uint8_t *p) {
    if constexpr (BITS == 8) {
        return load_bytes(p);
    } else if constexpr (BITS == 2) {
        return spread_fours<2>(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
    } else if constexpr (BITS == 4) {
        return spread_fours<4>(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)));
    } else if constexpr (BITS == 3) {  // twelve bits to four codes: every other word begins within a byte
        int32_t last;
        std::memcpy(&last, p + 8, 4);
        __m256i v = _mm256_broadcastsi128_si256(_mm_insert_epi32(_mm_loadl_epi64((const __m128i *)p), last, 2));
        v = _mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 1, -1, -1, 1, 2, -1, -1, 3, 4, -1, -1, 4, 5, -1, -1,  //
                                                    6, 7, -1, -1, 7, 8, -1, -1, 9, 10, -1, -1, 10, 11, -1, -1));
        return spread_fours<3>(_mm256_srlv_epi32(v, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4)));
    } else {
        __m256i v = _mm256_loadu2_m128i((const __m128i *)(p + 8), (const __m128i *)p);
        return spread_fours<6>(_mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1,  //
                                                                       4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1)));
    }
}

#else

template <int BITS>
LEANLM_INLINE Codes<BITS> load_codes(const uint8_t *p) {
    Codes<BITS> codes;
    if constexpr (WINDOWS<BITS>) {
        for (int c = 0; c < UNIT_COLUMNS<BITS>; c++) {
            const Place<BITS> place(c);
            const uint8_t *byte = p + place.byte() + 8 * place.half;
            int pair = *byte | (place.shift() + BITS > 8 ? byte[1] << 8 : 0);
            uint16_t word = static_cast<uint16_t>(pair & ((1 << BITS) - 1) << place.shift());
            std::memcpy(reinterpret_cast<uint8_t *>(codes.vectors) + 2 * place.position(), &word, 2);
        }
    } else {
        constexpr int FIELDS = 8 / WIDTH<BITS>;
        for (int k = 0; k < VECTORS<BITS>; k++) {
            Bytes v;
            std::memcpy(&v, p + k / FIELDS * 32, 32);
            if (BITS == 8) v = v ^ static_cast<uint8_t>(0x80);
            codes.vectors[k] = (v >> (k % FIELDS * WIDTH<BITS>)) & static_cast<uint8_t>((1 << WIDTH<BITS>) - 1);
        }
    }
    return codes;
}

template <int BITS>
LEANLM_INLINE Sums dot(const Codes<BITS> &codes, const void *activations) {
    Sums sums{};
    for (int k = 0; k < VECTORS<BITS>; k++) {
        if constexpr (WINDOWS<BITS>) {
            int16_t words[16];
            std::memcpy(words, &codes.vectors[k], 32);
            const int16_t *a = static_cast<const int16_t *>(activations) + 16 * k;
            for (int i = 0; i < 16; i++) sums[i / 2] += words[i] * a[i];
        } else {
            const int8_t *a = static_cast<const int8_t *>(activations) + 32 * k;
            for (int i = 0; i < 32; i++) {
                int code = BITS == 8 ? static_cast<int8_t>(codes.vectors[k][i]) : codes.vectors[k][i];
                sums[i / 4] += code * a[i] * (BITS == TRITS ? 1 << FOLD<BITS> : 1);
            }
        }
    }
    return sums;
}

template <int BITS>
LEANLM_INLINE Bytes block_of_codes(const uint8_t *p) {
    Bytes codes;
    for (int i = 0; i < 32; i++) {
        int bit = i * BITS, pair = p[bit / 8] | (bit % 8 + BITS > 8 ? p[bit / 8 + 1] << 8 : 0);
        codes[i] = static_cast<uint8_t>(pair >> (bit % 8) & ((1 << BITS) - 1));
    }
    return codes;
}

#endif

}  // namespace LEANLM_NAMESPACE
}  // namespace leanlm
