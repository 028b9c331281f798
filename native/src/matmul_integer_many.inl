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

/* Rows [M, blocks] of 32 activations in their own order, filled up with zeros to whole blocks and COLUMN rows. */
struct Blocks {
    int8_t *data;
    float *scales;     // [M, blocks]
    int32_t *offsets;  // [M, blocks]: what zeros of the codes add, to be taken away
    float *sums;       // [M, groups]: of the activations as they are held, where rows have zeros of their own
    int64_t M, blocks, groups;
};

Scratch block_space, scale_space, offset_space;

Blocks blocks_of(const float *x, int64_t x_stride, int64_t M, int64_t n, const float *factors, int32_t zero, int64_t groups) {
    Blocks a{};
    a.M = (M + COLUMN - 1) / COLUMN * COLUMN;
    a.blocks = (n + 31) / 32;
    a.groups = groups;
    a.data = block_space.of<int8_t>(a.M * a.blocks * 32);
    a.scales = scale_space.of<float>(a.M * a.blocks);
    a.offsets = offset_space.of<int32_t>(a.M * a.blocks);
    a.sums = lane_sums.of<float>(a.M * groups);
    int64_t group_blocks = std::max<int64_t>(1, a.blocks / groups);
    parallel_for(a.M, [&](int64_t m) {
        float columns[32], *sums = a.sums + m * groups;
        std::fill(sums, sums + groups, 0.f);
        for (int64_t b = 0; b < a.blocks; b++) {
            int64_t first = 32 * b, count = m < M ? std::min<int64_t>(32, n - first) : 0;
            const float *source = x + m * x_stride + first;
            if (factors || count < 32) {
                for (int64_t i = 0; i < count; i++) columns[i] = factors ? source[i] * factors[first + i] : source[i];
                std::fill(columns + count, columns + 32, 0.f);
                source = columns;
            }
            int8_t *digits = a.data + (m * a.blocks + b) * 32;
            float scale = quantise_block<1>(source, digits, 32);
            int32_t sum = 0;
            for (int i = 0; i < 32; i++) sum += digits[i];
            a.scales[m * a.blocks + b] = scale;
            a.offsets[m * a.blocks + b] = -zero * sum;
            sums[std::min(groups - 1, b / group_blocks)] += scale * static_cast<float>(sum);
        }
    });
    return a;
}

/* Codes of 8 bits are signed where products of unsigned and signed bytes have to fit in 16 bits. */
template <int BITS>
constexpr bool SIGNED = BITS == 8 && !HAS_VNNI;
/* Products of four columns, two to 16 bits, that may be added before they are widened. */
template <int BITS>
constexpr int NARROW_STEPS = HAS_VNNI || BITS == 8 ? 1 : BITS == 6 ? 2 : 8;

/* The sums over the eight steps of a block, of two vectors of rows and COLUMN rows of activations. */
template <int BITS>
LEANLM_INLINE void multiply_block(const uint8_t *codes, const int8_t *a, int64_t a_stride, Sums (&sums)[COLUMN][2]) {
    for (int from = 0; from < 8; from += NARROW_STEPS<BITS>) {
        Narrow narrow[COLUMN][2];
        for (int step = from; step < from + NARROW_STEPS<BITS>; step++) {
            Bytes w[2] = {load_bytes(codes + 64 * step), load_bytes(codes + 64 * step + 32)};
            for (int m = 0; m < COLUMN; m++) {
                Bytes four = repeat_four(a + m * a_stride + 4 * step);
                for (int v = 0; v < 2; v++) {
                    if (NARROW_STEPS<BITS> == 1) sums[m][v] = add_products<SIGNED<BITS>>(sums[m][v], w[v], four);
                    else narrow[m][v] = step == from ? products(w[v], four) : add_narrow(narrow[m][v], products(w[v], four));
                }
            }
        }
        if (NARROW_STEPS<BITS> > 1)
            for (int m = 0; m < COLUMN; m++)
                for (int v = 0; v < 2; v++) sums[m][v] = add_sums(sums[m][v], widen_narrow(narrow[m][v]));
    }
}

/* SIDE rows of a weight, ready to be multiplied: codes [blocks, 8 steps, SIDE, 4], scales and (where rows have zeros of their own)
 * scales times zeros [groups, SIDE]. */
struct Side {
    uint8_t *codes;
    float *scales, *zeros;
};

template <int BITS>
LEANLM_INLINE void multiply_side(const Side &w, const Blocks &a, int64_t m, const Output &out, int64_t row, int64_t count, int64_t M) {
    Eight totals[COLUMN][2], group[COLUMN][2];
    for (auto &column : totals)
        for (auto &total : column) total = zero_eight();
    int64_t group_blocks = a.groups > 1 ? a.blocks / a.groups : a.blocks;
    const int8_t *digits = a.data + m * a.blocks * 32;
    for (int64_t g = 0, b = 0; g < a.groups; g++) {
        for (auto &column : group)
            for (auto &sum : column) sum = zero_eight();
        for (int64_t end = b + group_blocks; b < end; b++) {
            Sums sums[COLUMN][2];
            for (int i = 0; i < COLUMN; i++) sums[i][0] = sums[i][1] = all_sums(a.offsets[(m + i) * a.blocks + b]);
            multiply_block<BITS>(w.codes + b * 32 * SIDE, digits + b * 32, a.blocks * 32, sums);
            for (int i = 0; i < COLUMN; i++) {
                Eight scale = all_eight(a.scales[(m + i) * a.blocks + b]);
                for (int v = 0; v < 2; v++) group[i][v] = fma_eight(floats(sums[i][v]), scale, group[i][v]);
            }
        }
        for (int v = 0; v < 2; v++) {
            Eight scale = load_eight(w.scales + g * SIDE + 8 * v);
            for (int i = 0; i < COLUMN; i++) {
                totals[i][v] = fma_eight(group[i][v], scale, totals[i][v]);
                if (!w.zeros) continue;
                Eight sum = all_eight(-a.sums[(m + i) * a.groups + g]);
                totals[i][v] = fma_eight(load_eight(w.zeros + g * SIDE + 8 * v), sum, totals[i][v]);
            }
        }
    }
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
            block[r] = block_of_codes<BITS>(codes + r * row_bytes);
            continue;
        }
        alignas(32) uint8_t held[32] = {};
        if (r < rows) unpack_codes<BITS>(codes + r * row_bytes, 0, columns, held);
        block[r] = load_bytes(held);
    }
    if (SIGNED<BITS>)
        for (auto &row : block) row = flip_signs(row);
    transpose_fours(block);
    for (int step = 0; step < 8; step++) store_bytes(out + 4 * SIDE * step, block[step]);
}

template <int BITS>
void fill_side(const leanlm_weight &w, int64_t row, int64_t count, int64_t blocks, float zero, const Side &side) {
    const uint8_t *data = static_cast<const uint8_t *>(w.data) + row * w.row_bytes;
    for (int64_t r = 0; r < SIDE; r += 8)
        for (int64_t b = 0; b < blocks; b++)
            unpack_block<BITS>(data + r * w.row_bytes + b * 4 * BITS, w.row_bytes, count - r, w.columns - 32 * b,
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
    int32_t zero = first.kind == LEANLM_TERNARY ? 1 : 1 << (BITS - 1);
    const Blocks a = blocks_of(x, x_stride, M, first.columns, products.first->factors, SIGNED<BITS> ? 0 : zero, first.groups);
    products.over_rows(TASK_ROWS, [&](const Product &product, int64_t begin, int64_t end) {
        thread_local Scratch codes, scales, zeros;
        Side side{codes.of<uint8_t>(a.blocks * 32 * SIDE), scales.of<float>(a.groups * SIDE), nullptr};
        if (product.w.zeros) side.zeros = zeros.of<float>(a.groups * SIDE);
        for (int64_t row = begin; row < end; row += SIDE) {
            int64_t count = std::min<int64_t>(SIDE, end - row);
            fill_side<BITS>(product.w, row, count, a.blocks, static_cast<float>(zero), side);
            for (int64_t m = 0; m < M; m += COLUMN) multiply_side<BITS>(side, a, m, product.out.from(skipped), row, count, M);
        }
    });
}

template <int BITS>
void many_integers(const Products &products, const float *x, int64_t x_stride, int64_t M) {
    for (int64_t m = 0; m < M; m += IN_CACHE)
        integers_in_cache<BITS>(products, m, x + m * x_stride, x_stride, std::min(IN_CACHE, M - m));
}
