/* Activations as integers, in the order in which a unit of codes is multiplied with them.
 *
 * A block of columns (`BLOCK_COLUMNS`) shares a scale. With D = 1 digit, x = scale a, |a| <= 127 (LEANLM_INT8); with D = 3,
 * x = scale (a0 + a1 / 254 + a2 / 254^2), every |a| <= 127: within 2^-24 of the block's largest value (LEANLM_EXACT).
 * A block that holds a value that is not finite is not a number as a whole. */

constexpr float DIGIT = 254;

/* What is taken from every code before it is multiplied. Three digits are as fine as float32, so that what codes have in common
 * has to go first; with one it goes at the start of every span. */
template <int BITS, int D>
float code_base(float zero) {
    return D == 3 ? zero : BITS == 8 ? 128 : 0;
}

/* Rows of `units` units, each of D digits, eight scales, one to a sum, and (D = 3) eight offsets: less base times what the
 * activations of that sum are together. Columns that follow each other and share scales are a span. */
struct Integers {
    int8_t *data;
    int64_t units, row_bytes;
    float *lanes;  // [M, spans, 8]: what a span's activations are together, by sums, times `factor`
    int64_t spans, span_units;

    const int8_t *row(int64_t m) const { return data + m * row_bytes; }
    const float *lanes_of(int64_t m) const { return lanes + m * spans * 8; }
};

template <int BITS>
constexpr int DIGIT_BYTES = 32 * VECTORS<BITS>;
template <int BITS, int D>
constexpr int INTEGER_UNIT = D * DIGIT_BYTES<BITS> + (D == 1 ? 32 : 64);

LEANLM_INLINE float nearest(float x) {  // |x| < 2^22
    return (x + 0x1.8p23f) - 0x1.8p23f;
}

#if defined(__AVX2__)

/* The largest size of x[N], or what is not a number: of floats without their sign, the bits are in the same order. */
template <int N>
LEANLM_INLINE float largest(const float *x) {
    const __m256i sizes = _mm256_set1_epi32(0x7fffffff);
    auto size = [&](int i) { return _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + 8 * i)), sizes); };
    __m256i eight = _mm256_max_epi32(_mm256_max_epi32(size(0), size(1)), _mm256_max_epi32(size(2), size(3)));
    for (int i = 4; i < N / 8; i++) eight = _mm256_max_epi32(eight, size(i));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

/* x[32] times the factor, which brings them within 127, rounded to the nearest. */
LEANLM_INLINE void round_to_bytes(const float *x, float factor, int8_t *bytes) {
    auto whole = [&](int i) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(factor))); };
    __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(whole(0), whole(1)), _mm256_packs_epi32(whole(2), whole(3)));
    packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)bytes, packed);
}

#else

template <int N>
LEANLM_INLINE float largest(const float *x) {
    uint32_t bits[N], most = 0;
    std::memcpy(bits, x, sizeof bits);
    for (int i = 0; i < N; i++) most = std::max(most, bits[i] & 0x7fffffff);
    float size;
    std::memcpy(&size, &most, 4);
    return size;
}

LEANLM_INLINE void round_to_bytes(const float *x, float factor, int8_t *bytes) {
    for (int i = 0; i < 32; i++) bytes[i] = static_cast<int8_t>(static_cast<int32_t>(nearest(x[i] * factor)));
}

#endif

/* x[N] as digits [D], each `stride` bytes on, and the scale of the first. */
template <int D, int N>
LEANLM_INLINE float quantise_block(const float *__restrict x, int8_t *__restrict digits, int64_t stride) {
    float size = largest<N>(x);
    if (!(size < __builtin_inff())) {
        for (int d = 0; d < D; d++) std::memset(digits + d * stride, 1, N);
        return __builtin_nanf("");
    }
    if (D == 1) {
        for (int i = 0; i < N; i += 32) round_to_bytes(x + i, size > 1e-30f ? 127 / size : 0, digits + i);
        return size / 127;
    }
    float inverse = size > 1e-30f ? 127 * DIGIT * DIGIT / size : 0;
    for (int i = 0; i < N; i++) {
        float whole = x[i] * inverse, first = nearest(whole * (1 / (DIGIT * DIGIT)));
        float rest = whole - first * (DIGIT * DIGIT), second = nearest(rest * (1 / DIGIT));
        digits[i] = static_cast<int8_t>(static_cast<int32_t>(first));
        digits[stride + i] = static_cast<int8_t>(static_cast<int32_t>(second));
        digits[2 * stride + i] = static_cast<int8_t>(static_cast<int32_t>(nearest(rest - second * DIGIT)));
    }
    return size / 127;
}

/* The sums of the digits' products, as the numbers that the digits are together. */
template <int BITS, int D>
LEANLM_INLINE Eight digit_sums(const Codes<BITS> &codes, const int8_t *unit) {
    Eight value = floats(dot<BITS>(codes, unit + (D - 1) * DIGIT_BYTES<BITS>));
    for (int d = D - 2; d >= 0; d--)
        value = fma_eight(value, all_eight(1 / DIGIT), floats(dot<BITS>(codes, unit + d * DIGIT_BYTES<BITS>)));
    return value;
}

/* One unit of columns from x (all there), with `base` taken from every code, and what they are together, by sums. */
template <int BITS, int D>
Eight quantise_unit(const float *x, int8_t *unit, float base) {
    static constexpr Ones<BITS> ONES;
    constexpr int LANES = 8 / BLOCKS<BITS>;
    int8_t digits[D][UNIT_COLUMNS<BITS>];
    float *scales = reinterpret_cast<float *>(unit + D * DIGIT_BYTES<BITS>);
    for (int block = 0; block < BLOCKS<BITS>; block++) {
        constexpr int N = BLOCK_COLUMNS<BITS>;
        float scale = quantise_block<D, N>(x + N * block, digits[0] + N * block, UNIT_COLUMNS<BITS>) / (1 << FOLD<BITS>);
        for (int lane = 0; lane < LANES; lane++) scales[block * LANES + lane] = scale;
    }
    for (int d = 0; d < D; d++) arrange<BITS>(digits[d], unit + d * DIGIT_BYTES<BITS>);
    Eight lanes = mul_eight(digit_sums<BITS, D>(load_codes<BITS>(ONES.bytes), unit), load_eight(scales));
    if (D == 3) store_eight(scales + 8, mul_eight(lanes, all_eight(BITS == 8 ? 0 : -base)));  // codes of 8 bits are loaded so
    return lanes;
}

/* Rows x[M, n], every column times its factor (NULL: 1), in spans of `span_units` units; their sums times `lane_factor`. */
template <int BITS, int D>
Integers quantise(const float *x, int64_t x_stride, int64_t M, int64_t n, const float *factors, float base, int64_t span_units,
                  float lane_factor) {
    constexpr int64_t COLUMNS = UNIT_COLUMNS<BITS>;
    Integers a;
    a.units = (n + COLUMNS - 1) / COLUMNS;
    a.row_bytes = a.units * INTEGER_UNIT<BITS, D>;
    a.span_units = span_units;
    a.spans = std::max<int64_t>(1, a.units / span_units);
    a.data = activations.of<int8_t>(M * a.row_bytes);
    a.lanes = lane_sums.of<float>(M * a.spans * 8);
    parallel_for(M, [&](int64_t m) {
        float columns[COLUMNS], *lanes = a.lanes + m * a.spans * 8;
        std::fill(lanes, lanes + a.spans * 8, 0.f);
        for (int64_t u = 0; u < a.units; u++) {
            int64_t first = u * COLUMNS, count = std::min(COLUMNS, n - first);
            const float *source = x + m * x_stride + first;
            if (factors || count < COLUMNS) {
                for (int64_t i = 0; i < count; i++) columns[i] = factors ? source[i] * factors[first + i] : source[i];
                std::fill(columns + count, columns + COLUMNS, 0.f);
                source = columns;
            }
            float *span = lanes + std::min(a.spans - 1, u / span_units) * 8;
            Eight sums = quantise_unit<BITS, D>(source, a.data + m * a.row_bytes + u * INTEGER_UNIT<BITS, D>, base);
            store_eight(span, fma_eight(sums, all_eight(lane_factor), load_eight(span)));
        }
    });
    return a;
}
