/* Activations as integers, in the order in which a unit of codes is multiplied with them.
 *
 * A block of 32 columns shares a scale. With D = 1 digit, x = scale a, |a| <= 127 (LEANLM_INT8); with D = 3,
 * x = scale (a0 + a1 / 254 + a2 / 254^2), every |a| <= 127: within 2^-24 of the block's largest value (LEANLM_EXACT).
 * A block that holds a value that is not finite is not a number as a whole. */

constexpr float DIGIT = 254;

/* What is taken from every code before it is multiplied. Three digits are as fine as float32, so that what codes have in common
 * has to go first; with one it is put right at the end. */
template <int BITS, int D>
float code_base(float zero) {
    return D == 3 ? zero : BITS == 8 ? 128 : 0;
}

/* One row: `units` units of D times 32 VECTORS digits, eight scales, one to a sum of four digits, and (D = 3) eight offsets: less
 * base times what the activations of that sum are together. */
struct Integers {
    int8_t *data;
    int64_t units, unit_bytes, row_bytes;
    float *sums;  // [M, groups]: sum of the activations of every group as they are held, filled up with zeros to eights
    int64_t sums_stride;
};

template <int BITS, int D>
constexpr int64_t INTEGER_UNIT = D * UNIT_COLUMNS<BITS> + (D == 1 ? 32 : 64);

LEANLM_INLINE float nearest(float x) {  // |x| < 2^22
    return (x + 0x1.8p23f) - 0x1.8p23f;
}

/* x[32] as digits, and the scale of the first digit. */
template <int D>
LEANLM_INLINE float quantise_block(const float *x, int8_t (*digits)[UNIT_COLUMNS<2>], int at) {
    uint32_t bits[32], largest = 0;
    std::memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 32; i++) largest = std::max(largest, bits[i] & 0x7fffffff);
    float size;
    std::memcpy(&size, &largest, 4);
    if (largest >= 0x7f800000) {
        for (int d = 0; d < D; d++) std::memset(digits[d] + at, 1, 32);
        return __builtin_nanf("");
    }
    float inverse = size > 1e-30f ? 127 * (D == 1 ? 1 : DIGIT * DIGIT) / size : 0;
    for (int i = 0; i < 32; i++) {
        float whole = x[i] * inverse, first = nearest(D == 1 ? whole : whole * (1 / (DIGIT * DIGIT)));
        digits[0][at + i] = static_cast<int8_t>(static_cast<int32_t>(first));
        if (D == 3) {
            float rest = whole - first * (DIGIT * DIGIT), second = nearest(rest * (1 / DIGIT));
            digits[1][at + i] = static_cast<int8_t>(static_cast<int32_t>(second));
            digits[2][at + i] = static_cast<int8_t>(static_cast<int32_t>(nearest(rest - second * DIGIT)));
        }
    }
    return size / 127;
}

/* The sums of four digits, as the numbers that the digits are together. */
template <int BITS, int D>
LEANLM_INLINE Eight digit_sums(const Codes<BITS> &codes, const int8_t *unit) {
    constexpr int SIZE = UNIT_COLUMNS<BITS>;
    Eight value = floats(dot<BITS>(codes, unit + (D - 1) * SIZE));
    for (int d = D - 2; d >= 0; d--) value = fma_eight(value, all_eight(1 / DIGIT), floats(dot<BITS>(codes, unit + d * SIZE)));
    return value;
}

/* One unit of columns from x (all there), with `base` taken from every code; sums [VECTORS], of its blocks. */
template <int BITS, int D>
void quantise_unit(const float *x, int8_t *unit, float *sums, float base) {
    constexpr int K = VECTORS<BITS>, LANES = 8 / K;
    alignas(32) int8_t digits[D][UNIT_COLUMNS<2>], ones[32];
    float *scales = reinterpret_cast<float *>(unit + D * UNIT_COLUMNS<BITS>), lanes[8];
    for (int block = 0; block < K; block++) {
        float scale = quantise_block<D>(x + 32 * block, digits, 32 * block);
        for (int lane = 0; lane < LANES; lane++) scales[block * LANES + lane] = scale;
    }
    for (int d = 0; d < D; d++)
        for (int p = 0; p < K; p++)
            for (int i = 0; i < 32; i++) unit[(d * K + p) * 32 + i] = digits[d][K * i + p];
    std::memset(ones, 1, sizeof ones);
    Codes<BITS> every;
    for (int k = 0; k < K; k++) std::memcpy(&every.vectors[k], ones, 32);
    store_eight(lanes, fma_eight(digit_sums<BITS, D>(every, unit), load_eight(scales), zero_eight()));
    for (int block = 0; block < K; block++) {
        sums[block] = 0;
        for (int lane = 0; lane < LANES; lane++) sums[block] += lanes[block * LANES + lane];
    }
    if (D == 3)
        for (int lane = 0; lane < 8; lane++) scales[8 + lane] = BITS == 8 ? 0 : -base * lanes[lane];  // 8 bits are loaded so
}

/* Rows x[M, n], every column times its factor (NULL: 1), for codes in `groups` groups of whole blocks. */
template <int BITS, int D>
Integers quantise(const float *x, int64_t x_stride, int64_t M, int64_t n, const float *factors, float base, int64_t groups) {
    constexpr int64_t COLUMNS = UNIT_COLUMNS<BITS>;
    Integers a;
    a.units = (n + COLUMNS - 1) / COLUMNS;
    a.unit_bytes = INTEGER_UNIT<BITS, D>;
    a.row_bytes = a.units * a.unit_bytes;
    a.sums_stride = (groups + 7) / 8 * 8;
    a.data = activations.of<int8_t>(M * a.row_bytes);
    a.sums = group_sums.of<float>(M * a.sums_stride);
    int64_t group_blocks = groups > 1 ? n / groups / 32 : a.units * VECTORS<BITS>;
    parallel_for(M, [&](int64_t m) {
        float columns[COLUMNS], blocks[VECTORS<BITS>], *sums = a.sums + m * a.sums_stride;
        std::fill(sums, sums + a.sums_stride, 0.f);
        for (int64_t u = 0, block = 0; u < a.units; u++) {
            int64_t first = u * COLUMNS, count = std::min(COLUMNS, n - first);
            const float *source = x + m * x_stride + first;
            if (factors || count < COLUMNS) {
                for (int64_t i = 0; i < count; i++) columns[i] = factors ? source[i] * factors[first + i] : source[i];
                std::fill(columns + count, columns + COLUMNS, 0.f);
                source = columns;
            }
            quantise_unit<BITS, D>(source, a.data + m * a.row_bytes + u * a.unit_bytes, blocks, base);
            for (int k = 0; k < VECTORS<BITS>; k++, block++) sums[std::min(groups - 1, block / group_blocks)] += blocks[k];
        }
    });
    return a;
}
