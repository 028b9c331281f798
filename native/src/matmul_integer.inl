/* Codes times integer activations: the weights are read once, row after row, in their stored layout.
 *
 * y = sum over groups of scale ((code - base) . x - (zero - base) sum x), base being what is taken from every code. A kernel
 * multiplies R rows of weights with MT rows of activations. */

/* R rows of weights, ready to be multiplied. */
struct CodeRows {
    const uint8_t *codes;
    int64_t row_bytes;
    const uint8_t *tails;  // the last unit of each row, 32 bytes apart, filled up with zeros; NULL where all are whole
    const float *scales;   // of the groups, or of the blocks of 32 columns where groups end inside units
    int64_t scales_stride;
    int64_t units, group_units;
};

/* R times MT sums, one unit of columns after the other. */
template <int BITS, int D, int R, int MT>
struct IntegerTile {
    Eight sums[R][MT];

    LEANLM_INLINE void clear() {
        for (auto &row : sums)
            for (auto &sum : row) sum = zero_eight();
    }

    LEANLM_INLINE void add_unit(const uint8_t *codes, int64_t row_bytes, const int8_t *unit, int64_t unit_stride) {
        for (int r = 0; r < R; r++) {
            if (MT == 1) prefetch(codes + r * row_bytes + AHEAD);
            Codes<BITS> loaded = load_codes<BITS>(codes + r * row_bytes);
            for (int m = 0; m < MT; m++) {
                const float *scales = reinterpret_cast<const float *>(unit + m * unit_stride + D * UNIT_COLUMNS<BITS>);
                Eight value = digit_sums<BITS, D>(loaded, unit + m * unit_stride), scale = load_eight(scales);
                if (D == 1) sums[r][m] = fma_eight(value, scale, sums[r][m]);
                else sums[r][m] = add_eight(sums[r][m], fma_eight(value, scale, load_eight(scales + 8)));
            }
        }
    }
};

/* sums [R, MT] without what zeros other than the base add. */
template <int BITS, int D, int R, int MT, bool WHOLE_GROUPS>
void multiply_integers(const CodeRows &rows, const int8_t *activations, int64_t row_bytes, float *sums) {
    Eight totals[R][MT];
    for (auto &row : totals)
        for (auto &total : row) total = zero_eight();
    IntegerTile<BITS, D, R, MT> tile;
    const uint8_t *codes = rows.codes;
    const int8_t *unit = activations;
    int64_t whole = rows.units - (rows.tails != nullptr);
    int64_t groups = WHOLE_GROUPS ? std::max<int64_t>(1, whole / rows.group_units) : rows.units;
    for (int64_t g = 0; g < groups; g++) {
        int64_t count = WHOLE_GROUPS ? std::min(rows.group_units, whole) : g < whole;
        tile.clear();
        for (int64_t i = 0; i < count; i++, codes += UNIT_BYTES<BITS>, unit += INTEGER_UNIT<BITS, D>)
            tile.add_unit(codes, rows.row_bytes, unit, row_bytes);
        if (rows.tails && g == groups - 1) tile.add_unit(rows.tails, 32, unit, row_bytes);
        for (int r = 0; r < R; r++) {
            const float *scales = rows.scales + r * rows.scales_stride;
            Eight scale = WHOLE_GROUPS ? all_eight(scales[g]) : spread_eight<VECTORS<BITS>>(scales + g * VECTORS<BITS>);
            for (int m = 0; m < MT; m++) totals[r][m] = fma_eight(tile.sums[r][m], scale, totals[r][m]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int m = 0; m < MT; m++) sums[r * MT + m] = sum_eight(totals[r][m]);
}

constexpr int ROWS_AT_ONCE = 16;

template <int BITS, int D>
struct IntegerProduct {
    const leanlm_weight &w;
    const Integers &a;
    float zero, base;  // of a symmetric matrix; and of its codes
    const Output &out;
    int64_t group = w.groups > 1 ? w.columns / w.groups : a.units * UNIT_COLUMNS<BITS>;
    bool whole_groups = group % UNIT_COLUMNS<BITS> == 0;
    bool has_zeros = w.zeros || zero != base;
    int64_t blocks = a.units * VECTORS<BITS>, scales_stride = std::max<int64_t>(w.groups, blocks);

    /* A row's scales (repeated for blocks where groups are not whole units), scale (zero - base) and last unit. */
    void prepare(int64_t row, float *scales, float *zeros, uint8_t *tail) const {
        row_scales(w, row, scales);
        if (has_zeros) {
            for (int64_t g = 0; g < w.groups; g++) zeros[g] = scales[g] * ((w.zeros ? w.zeros[row * w.groups + g] : zero) - base);
            std::fill(zeros + w.groups, zeros + a.sums_stride, 0.f);
        }
        if (!whole_groups) {
            int64_t repeats = group / 32;
            for (int64_t g = w.groups - 1; g >= 0 && repeats > 1; g--) std::fill_n(scales + g * repeats, repeats, float{scales[g]});
            std::fill(scales + w.groups * repeats, scales + blocks, 0.f);
        }
        if (tail) {
            int64_t done = (a.units - 1) * UNIT_BYTES<BITS>, stored = (w.columns * BITS + 7) / 8;
            std::memset(tail, 0, 32);
            std::memcpy(tail, static_cast<const uint8_t *>(w.data) + row * w.row_bytes + done, stored - done);
        }
    }

    float zero_part(const float *zeros, int64_t m) const {
        const float *sums = a.sums + m * a.sums_stride;
        Eight part = zero_eight();
        for (int64_t g = 0; g < a.sums_stride; g += 8) part = fma_eight(load_eight(zeros + g), load_eight(sums + g), part);
        return sum_eight(part);
    }

    template <int R, int MT>
    void tile(const CodeRows &rows, const float *zeros, int64_t row, int64_t m) const {
        float sums[R * MT];
        auto kernel = whole_groups ? multiply_integers<BITS, D, R, MT, true> : multiply_integers<BITS, D, R, MT, false>;
        kernel(rows, a.data + m * a.row_bytes, a.row_bytes, sums);
        for (int r = 0; r < R; r++) {
            for (int i = 0; i < MT; i++) {
                float part = has_zeros ? zero_part(zeros + r * a.sums_stride, m + i) : 0;
                out.put(m + i, row + r, sums[r * MT + i] - part);
            }
        }
    }

    /* Rows [first, end) of the weight, ROWS_AT_ONCE by ROWS_AT_ONCE, times all rows of the activations. */
    void run(int64_t first, int64_t end, int64_t M) const {
        thread_local Scratch scale_space, zero_space;
        float *scales = scale_space.of<float>(ROWS_AT_ONCE * scales_stride);
        float *zeros = zero_space.of<float>(ROWS_AT_ONCE * a.sums_stride);
        alignas(32) uint8_t tails[ROWS_AT_ONCE * 32];
        bool has_tail = w.columns % UNIT_COLUMNS<BITS> != 0;
        int64_t group_units = w.groups > 1 && whole_groups ? group / UNIT_COLUMNS<BITS> : a.units;
        for (int64_t at = first; at < end; at += ROWS_AT_ONCE) {
            int count = static_cast<int>(std::min<int64_t>(ROWS_AT_ONCE, end - at));
            for (int r = 0; r < count; r++)
                prepare(at + r, scales + r * scales_stride, zeros + r * a.sums_stride, has_tail ? tails + 32 * r : nullptr);
            auto multiply = [&](auto R, auto MT, int64_t m) {
                auto some = [&](auto size, int r) {
                    const uint8_t *codes = static_cast<const uint8_t *>(w.data) + (at + r) * w.row_bytes;
                    CodeRows rows{codes, w.row_bytes, has_tail ? tails + 32 * r : nullptr, scales + r * scales_stride, scales_stride,
                                  a.units, group_units};
                    tile<size, MT>(rows, zeros + r * a.sums_stride, at + r, m);
                };
                int r = 0;
                for (; r + R <= count; r += R) some(R, r);
                for (; r < count; r++) some(Constant<1>(), r);
                return MT;
            };
            for (int64_t m = 0; m < M;) {
                if (M - m >= 4) m += multiply(Constant<SHARED>(), Constant<4>(), m);
                else if (M - m >= 2) m += multiply(Constant<2>(), Constant<2>(), m);
                else m += multiply(Constant<1>(), Constant<1>(), m);  // one stream of memory is read fastest
            }
        }
    }
};

template <int BITS, int D>
void integer_matmul(const leanlm_weight &w, const float *x, int64_t x_stride, int64_t M, const float *factors, const Output &out) {
    float zero = w.kind == LEANLM_TERNARY ? 1 : 1 << (BITS - 1), base = code_base<BITS, D>(zero);
    Integers a = quantise<BITS, D>(x, x_stride, M, w.columns, factors, base, w.groups);
    IntegerProduct<BITS, D> product{w, a, zero, base, out};
    over_rows(w, [&](int64_t first, int64_t end) { product.run(first, end, M); });
}

template <int BITS>
void integer_matmul(const leanlm_weight &w, const float *x, int64_t x_stride, int64_t M, const float *factors, const Output &out,
                    int32_t precision) {
    auto product = precision == LEANLM_INT8 ? integer_matmul<BITS, 1> : integer_matmul<BITS, 3>;
    product(w, x, x_stride, M, factors, out);
}
