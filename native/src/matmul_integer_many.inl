/* Codes times many rows of int8 activations: blocks of weights are unpacked in the cache, one byte to a code, with the rows of the
 * weight side by side, and multiplied with COLUMN rows of activations at a time.
 *
 * A vector holds four columns of eight rows. y = sum over groups of scale sum over blocks of a's scale (codes . a - zero sum a),
 * the inner sums in integers. */

constexpr int SIDE = 16;    // rows of weights side by side: two vectors
constexpr int COLUMN = 4;   // rows of activations at a time
constexpr int64_t TASK_ROWS = 64;
constexpr int64_t IN_CACHE = 128;    // rows of activations that stay in a core's second cache while weights pass by
constexpr int64_t FEW_INTEGERS = 7;  // rows of activations up to which codes are multiplied as they are stored

/* Codes of 8 bits are multiplied in 16, as no sum of two products of unsigned and signed bytes would fit: activations, of which
 * there are more than registers, are held so. */
template <int BITS>
constexpr bool WIDE = BITS == 8 && !HAS_VNNI;
template <int BITS>
constexpr int64_t STEP_BYTES = (WIDE<BITS> ? 8 : 4) * COLUMN;
template <int BITS>
constexpr int STEPS = BLOCK_COLUMNS<BITS> / 4;
template <int BITS>
constexpr int64_t BLOCK_BYTES = STEPS<BITS> * STEP_BYTES<BITS>;
/* Products of four columns, two to 16 bits, that may be added before they are widened: 128 with ternary codes, up to 2. */
template <int BITS>
constexpr int NARROW_STEPS = HAS_VNNI || BITS == 8 ? 1 : BITS == 6 ? 2 : STEPS<BITS>;

/* Blocks of activations of COLUMN rows, filled up with zeros: [M / COLUMN, blocks, STEPS, COLUMN, 4], or, wide,
 * [.., STEPS, 2, COLUMN, 2] with even columns before odd ones. */
struct Blocks {
    int8_t *data;
    float *scales;     // [M / COLUMN, blocks, COLUMN]
    int32_t *offsets;  // likewise: what zeros of the codes add, to be taken away
    float *sums;       // [M, groups]: of the activations as they are held, where rows have zeros of their own
    int64_t M, blocks, groups;
};

Scratch block_space, scale_space, offset_space;

/* The digits of one row into a block. */
template <int BITS>
LEANLM_INLINE void put_digits(const int8_t *digits, int8_t *block, int64_t column) {
    for (int step = 0; step < STEPS<BITS>; step++, digits += 4, block += STEP_BYTES<BITS>) {
        if (!WIDE<BITS>) {
            std::memcpy(block + column * 4, digits, 4);
            continue;
        }
        for (int odd = 0; odd < 2; odd++) {
            int16_t pair[2] = {digits[odd], digits[odd + 2]};
            std::memcpy(block + (odd * COLUMN + column) * 4, pair, 4);
        }
    }
}

template <int BITS>
Blocks blocks_of(const float *x, int64_t x_stride, int64_t M, int64_t n, const float *factors, int32_t zero, int64_t groups) {
    constexpr int N = BLOCK_COLUMNS<BITS>;
    Blocks a{};
    a.M = (M + COLUMN - 1) / COLUMN * COLUMN;
    a.blocks = (n + N - 1) / N;
    a.groups = groups;
    a.data = block_space.of<int8_t>(a.M / COLUMN * a.blocks * BLOCK_BYTES<BITS>);
    a.scales = scale_space.of<float>(a.M * a.blocks);
    a.offsets = offset_space.of<int32_t>(a.M * a.blocks);
    a.sums = lane_sums.of<float>(a.M * groups);
    int64_t group_blocks = std::max<int64_t>(1, a.blocks / groups);
    parallel_for(a.M, [&](int64_t m) {
        float columns[N], *sums = a.sums + m * groups;
        int8_t digits[N];
        std::fill(sums, sums + groups, 0.f);
        for (int64_t b = 0; b < a.blocks; b++) {
            int64_t first = N * b, count = m < M ? std::min<int64_t>(N, n - first) : 0;
            const float *source = x + m * x_stride + first;
            if (factors || count < N) {
                for (int64_t i = 0; i < count; i++) columns[i] = factors ? source[i] * factors[first + i] : source[i];
                std::fill(columns + count, columns + N, 0.f);
                source = columns;
            }
            int64_t block = m / COLUMN * a.blocks + b, column = m % COLUMN;
            float scale = quantise_block<1, N>(source, digits, N);
            int32_t sum = 0;
            for (int i = 0; i < N; i++) sum += digits[i];
            put_digits<BITS>(digits, a.data + block * BLOCK_BYTES<BITS>, column);
            a.scales[block * COLUMN + column] = scale;
            a.offsets[block * COLUMN + column] = -zero * sum;
            sums[std::min(groups - 1, b / group_blocks)] += scale * static_cast<float>(sum);
        }
    });
    return a;
}

LEANLM_INLINE void add_wide(const int8_t *a, const Bytes (&w)[2], Sums (&sums)[COLUMN][2]) {
    for (int m = 0; m < COLUMN; m++) {
        Bytes pair = repeat_four(a + 4 * m);
        for (int v = 0; v < 2; v++) keep(sums[m][v] = add_pairs(sums[m][v], w[v], pair));
    }
}

/* Sums [COLUMN][2] of the products of groups of `count` blocks of two vectors of rows and COLUMN rows of activations, each block
 * times its activations' scales and its group's scales [groups, SIDE]. A function of its own so that its sums of integers stay
 * in registers. */
template <int BITS>
__attribute__((noinline)) void multiply_blocks(const uint8_t *codes, const int8_t *a, const float *scales, const int32_t *offsets,
                                               const float *group_scales, int64_t groups, int64_t count, Eight *sums) {
    Eight held[COLUMN][2];
    for (auto &column : held)
        for (auto &sum : column) sum = zero_eight();
    for (int64_t b = 0, left = count; b < groups * count; b++, scales += COLUMN, offsets += COLUMN) {
        Sums whole[COLUMN][2];
        for (int m = 0; m < COLUMN; m++) whole[m][0] = whole[m][1] = all_sums(offsets[m]);
        for (int from = 0; from < STEPS<BITS>; from += NARROW_STEPS<BITS>) {
            Narrow narrow[COLUMN][2] = {};
            for (int step = 0; step < NARROW_STEPS<BITS>; step++, codes += 4 * SIDE, a += STEP_BYTES<BITS>) {
                Bytes w[2] = {load_bytes(codes), load_bytes(codes + 32)};
                if constexpr (WIDE<BITS>) {
                    add_wide(a, {even_bytes(w[0]), even_bytes(w[1])}, whole);
                    add_wide(a + 4 * COLUMN, {odd_bytes(w[0]), odd_bytes(w[1])}, whole);
                    continue;
                }
                for (int m = 0; m < COLUMN; m++) {
                    Bytes four = repeat_four(a + 4 * m);
                    for (int v = 0; v < 2; v++) {
                        if (NARROW_STEPS<BITS> == 1) whole[m][v] = add_products(whole[m][v], w[v], four);
                        else keep(narrow[m][v] = add_narrow(narrow[m][v], products(w[v], four)));
                    }
                }
            }
            if (NARROW_STEPS<BITS> == 1) continue;
            for (int m = 0; m < COLUMN; m++)
                for (int v = 0; v < 2; v++) whole[m][v] = add_sums(whole[m][v], widen_narrow(narrow[m][v]));
        }
        for (int v = 0; v < 2; v++) {
            Eight group_scale = load_eight(group_scales + 8 * v);
            for (int m = 0; m < COLUMN; m++) {
                Eight scale = mul_eight(group_scale, all_eight(scales[m]));
                held[m][v] = fma_eight(floats(whole[m][v]), scale, held[m][v]);
            }
        }
        if (--left == 0) group_scales += SIDE, left = count;
    }
    std::memcpy(sums, held, sizeof held);
}

/* SIDE rows of a weight, ready to be multiplied: codes [blocks, STEPS, SIDE, 4], scales and (where rows have zeros of their own)
 * scales times zeros [groups, SIDE]. */
struct Side {
    uint8_t *codes;
    float *scales, *zeros;
};

template <int BITS>
LEANLM_INLINE void multiply_side(const Side &w, const Blocks &a, int64_t m, const Output &out, int64_t row, int64_t count, int64_t M) {
    Eight totals[COLUMN][2];
    int64_t tile = m / COLUMN * a.blocks;
    multiply_blocks<BITS>(w.codes, a.data + tile * BLOCK_BYTES<BITS>, a.scales + tile * COLUMN, a.offsets + tile * COLUMN,
                          w.scales, a.groups, a.blocks / a.groups, totals[0]);
    for (int64_t g = 0; g < a.groups && w.zeros; g++)
        for (int i = 0; i < COLUMN; i++)
            for (int v = 0; v < 2; v++)
                totals[i][v] = fma_eight(load_eight(w.zeros + g * SIDE + 8 * v), all_eight(-a.sums[(m + i) * a.groups + g]),
                                         totals[i][v]);
    for (int i = 0; i < COLUMN && m + i < M; i++)
        for (int v = 0; v < 2 && 8 * v < count; v++)
            out.put(m + i, row + 8 * v, totals[i][v], static_cast<int>(std::min<int64_t>(8, count - 8 * v)));
}

/* Eight rows of a block of 32 columns from `columns` codes of each, zeros after them: [8 steps, SIDE, 4]. */
template <int BITS>
void unpack_block(const uint8_t *codes, int64_t row_bytes, int64_t rows, int64_t columns, uint8_t *out) {
    Bytes block[8];
    for (int64_t r = 0; r < 8; r++) {
        if (r < rows && columns >= 32) {
            block[r] = block_of_codes<WIDTH<BITS>>(codes + r * row_bytes);
            continue;
        }
        alignas(32) uint8_t held[32] = {};
        if (r < rows) unpack_codes<WIDTH<BITS>>(codes + r * row_bytes, 0, columns, held);
        block[r] = load_bytes(held);
    }
    transpose_fours(block);
    for (int step = 0; step < 8; step++) store_bytes(out + 4 * SIDE * step, block[step]);
}

/* `units` of 32 columns. */
template <int BITS>
void fill_side(const leanlm_weight &w, int64_t row, int64_t count, int64_t units, float zero, const Side &side) {
    const uint8_t *data = static_cast<const uint8_t *>(w.data) + row * w.row_bytes;
    for (int64_t r = 0; r < SIDE; r += 8)
        for (int64_t b = 0; b < units; b++)
            unpack_block<BITS>(data + r * w.row_bytes + b * 4 * WIDTH<BITS>, w.row_bytes, count - r, w.columns - 32 * b,
                               side.codes + b * 32 * SIDE + 4 * r);
    std::fill(side.scales, side.scales + w.groups * SIDE, 0.f);
    for (int64_t r = 0; r < count; r++) {
        if (w.kind == LEANLM_TERNARY) row_scales(w, row + r, side.scales + r);
        else
            for (int64_t g = 0; g < w.groups; g++) side.scales[g * SIDE + r] = widen(w.scales, w.dtype, (row + r) * w.groups + g);
    }
    if (!w.zeros) return;
    std::fill(side.zeros, side.zeros + w.groups * SIDE, 0.f);
    for (int64_t r = 0; r < count; r++)
        for (int64_t g = 0; g < w.groups; g++)
            side.zeros[g * SIDE + r] = side.scales[g * SIDE + r] * (w.zeros[(row + r) * w.groups + g] - zero);
}

template <int BITS>
void integers_in_cache(const Products &products, int64_t skipped, const float *x, int64_t x_stride, int64_t M) {
    const leanlm_weight &first = products.weight();
    int32_t zero = BITS == TRITS ? 1 : 1 << (BITS - 1);
    const Blocks a = blocks_of<BITS>(x, x_stride, M, first.columns, products.first->factors, zero, first.groups);
    products.over_rows(TASK_ROWS, [&](const Product &product, int64_t begin, int64_t end) {
        thread_local Scratch codes, scales, zeros;
        Side side{codes.of<uint8_t>(a.blocks * BLOCK_COLUMNS<BITS> * SIDE), scales.of<float>(a.groups * SIDE), nullptr};
        if (product.w.zeros) side.zeros = zeros.of<float>(a.groups * SIDE);
        for (int64_t row = begin; row < end; row += SIDE) {
            int64_t count = std::min<int64_t>(SIDE, end - row);
            fill_side<BITS>(product.w, row, count, a.blocks * BLOCK_COLUMNS<BITS> / 32, static_cast<float>(zero), side);
            for (int64_t m = 0; m < M; m += COLUMN) multiply_side<BITS>(side, a, m, product.out.from(skipped), row, count, M);
        }
    });
}

template <int BITS>
void many_integers(const Products &products, const float *x, int64_t x_stride, int64_t M) {
    for (int64_t m = 0; m < M; m += IN_CACHE)
        integers_in_cache<BITS>(products, m, x + m * x_stride, x_stride, std::min(IN_CACHE, M - m));
}
