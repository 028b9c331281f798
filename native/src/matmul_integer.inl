/* Codes times few rows of integer activations: the weights are read once, in their stored layout.
 *
 * y = sum over spans of scale (sum (code - base) x + (base - zero) sum x), base being what is taken from every code. A kernel
 * multiplies R rows of weights with MT rows of activations; results are written eight rows at a time. */

constexpr int EIGHT_ROWS = 8;
template <int BITS>
constexpr int TAIL = std::max(32, UNIT_BYTES<BITS>);  // bytes from one row's last unit to the next's, as they are read

/* R rows of weights, ready to be multiplied. */
struct CodeRows {
    const uint8_t *codes;
    int64_t row_bytes;
    const uint8_t *tails;  // the last unit of each row, TAIL apart, filled up with zeros; NULL where all are whole
    const float *scales;   // of the spans, or of the blocks of 32 columns where scales change inside units
    const float *zeros;    // base - zero, likewise; NULL where it is the same for all and in the activations' lanes
    int64_t stride;        // from one row's scales and zeros to the next's
};

/* R times MT sums, one unit of columns after the other. */
template <int BITS, int D, int R, int MT>
struct IntegerTile {
    Eight sums[R][MT];

    LEANLM_INLINE void add_unit(const uint8_t *codes, int64_t row_bytes, const int8_t *unit, int64_t unit_stride) {
        for (int r = 0; r < R; r++) {
            if (R > 4) hide(unit);
            Codes<BITS> loaded = load_codes<BITS>(codes + r * row_bytes);
            for (int m = 0; m < MT; m++) {
                const float *scales = reinterpret_cast<const float *>(unit + m * unit_stride + D * DIGIT_BYTES<BITS>);
                Eight value = digit_sums<BITS, D>(loaded, unit + m * unit_stride), scale = load_eight(scales);
                if (D == 1) sums[r][m] = fma_eight(value, scale, sums[r][m]);
                else sums[r][m] = add_eight(sums[r][m], fma_eight(value, scale, load_eight(scales + 8)));
            }
        }
    }
};

/* A span's value in all sums; where scales change inside units, the blocks' values in the sums of each. */
template <int BITS, bool WHOLE>
LEANLM_INLINE Eight of_span(const float *values, int64_t span) {
    return WHOLE ? all_eight(values[span]) : spread_eight<BLOCKS<BITS>>(values + span * BLOCKS<BITS>);
}

/* totals [MT][R], eight rows apart. */
template <int BITS, int D, int R, int MT, bool WHOLE>
LEANLM_INLINE void multiply_integers(const CodeRows &rows, const Integers &a, int64_t m, const Stream &stream, Eight *totals) {
    IntegerTile<BITS, D, R, MT> tile;
    Eight held[R][MT];
    for (auto &row : held)
        for (auto &total : row) total = zero_eight();
    int64_t step = R * UNIT_BYTES<BITS>;
    const uint8_t *codes = rows.codes, *ahead = stream.ahead(codes, R * rows.row_bytes, step);
    const int8_t *unit = a.row(m);
    const float *lanes = a.lanes_of(m);
    int64_t left = a.units - (rows.tails != nullptr);
    for (int64_t s = 0; s < a.spans; s++, lanes += 8) {
        for (int r = 0; r < R; r++) {
            for (int i = 0; i < MT; i++) {
                tile.sums[r][i] = load_eight(lanes + i * a.spans * 8);
                if (rows.zeros) tile.sums[r][i] = mul_eight(tile.sums[r][i], of_span<BITS, WHOLE>(rows.zeros + r * rows.stride, s));
            }
        }
        int64_t count = WHOLE ? std::min(a.span_units, left) : left > 0;
        left -= count;
        for (int64_t i = 0; i < count; i++, codes += UNIT_BYTES<BITS>, unit += INTEGER_UNIT<BITS, D>) {
            prefetch_lines<R * UNIT_BYTES<BITS>>(ahead);
            ahead += step;
            tile.add_unit(codes, rows.row_bytes, unit, a.row_bytes);
        }
        if (rows.tails && s == a.spans - 1) tile.add_unit(rows.tails, TAIL<BITS>, unit, a.row_bytes);
        for (int r = 0; r < R; r++) {
            Eight scale = of_span<BITS, WHOLE>(rows.scales + r * rows.stride, s);
            for (int i = 0; i < MT; i++) held[r][i] = fma_eight(tile.sums[r][i], scale, held[r][i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < MT; i++) totals[i * EIGHT_ROWS + r] = held[r][i];
}

template <int BITS, int D>
struct IntegerProduct {
    const leanlm_weight &w;
    const Integers &a;
    float base;
    const Output &out;
    bool whole;  // scales change between units only
    int64_t blocks = a.units * BLOCKS<BITS>, stride = whole ? w.groups : std::max<int64_t>(w.groups, blocks);

    /* Values of the groups of eight rows [8, groups], for blocks where those are asked for: [8, stride]. */
    void spread(float *values, int count) const {
        if (stride == w.groups) return;
        int64_t repeats = w.columns / w.groups / 32;
        for (int r = count - 1; r >= 0; r--) {
            float *row = values + r * stride;
            std::memmove(row, values + r * w.groups, w.groups * sizeof(float));
            for (int64_t g = w.groups - 1; g >= 0; g--) std::fill_n(row + g * repeats, repeats, float{row[g]});
            std::fill(row + w.groups * repeats, row + stride, 0.f);
        }
    }

    void prepare(int64_t row, int count, float *scales, float *zeros, uint8_t *tails) const {
        if (w.kind == LEANLM_TERNARY) {
            row_scales(w, row, scales);
            bool alike = !w.along_rows || region(w, row) == region(w, row + count - 1);
            for (int r = 1; r < count; r++) alike ? void(scales[r] = *scales) : row_scales(w, row + r, scales + r);
        } else {
            widen_all(w.scales, w.dtype, row * w.groups, count * w.groups, scales);
            spread(scales, count);
        }
        if (w.zeros) {
            for (int64_t i = 0; i < count * w.groups; i++) zeros[i] = base - w.zeros[row * w.groups + i];
            spread(zeros, count);
        }
        if (tails) {
            int64_t done = (a.units - 1) * UNIT_BYTES<BITS>, stored = (w.columns * WIDTH<BITS> + 7) / 8;
            std::memset(tails, 0, EIGHT_ROWS * TAIL<BITS>);
            for (int r = 0; r < count; r++)
                std::memcpy(tails + TAIL<BITS> * r, static_cast<const uint8_t *>(w.data) + (row + r) * w.row_bytes + done, stored - done);
        }
    }

    template <int R, int MT>
    void multiply(const CodeRows &rows, int64_t m, const Stream &stream, Eight *totals) const {
        if (whole) multiply_integers<BITS, D, R, MT, true>(rows, a, m, stream, totals);
        else multiply_integers<BITS, D, R, MT, false>(rows, a, m, stream, totals);
    }

    CodeRows from(const CodeRows &rows, int r) const {
        CodeRows some = rows;
        some.codes += r * rows.row_bytes;
        if (rows.tails) some.tails += TAIL<BITS> * r;
        some.scales += r * rows.stride;
        if (rows.zeros) some.zeros += r * rows.stride;
        return some;
    }

    /* Eight rows of the weight, or fewer at the end, times MT rows of the activations, R by R. */
    template <int R, int MT>
    void eight_rows(const CodeRows &rows, int64_t row, int count, int64_t m, const Stream &stream) const {
        Eight totals[MT][EIGHT_ROWS];
        if (count == EIGHT_ROWS) {
            for (int r = 0; r < EIGHT_ROWS; r += R) multiply<R, MT>(from(rows, r), m, stream, &totals[0][r]);
        } else {
            for (auto &of_row : totals)
                for (auto &total : of_row) total = zero_eight();
            for (int r = 0; r < count; r++)
                for (int i = 0; i < MT; i++) multiply<1, 1>(from(rows, r), m + i, stream, &totals[i][r]);
        }
        for (int i = 0; i < MT; i++) out.put(m + i, row, sums_of(totals[i]), count);
    }

    /* Rows [first, end) of the weight times all rows of the activations. */
    void run(int64_t first, int64_t end, int64_t M) const {
        thread_local Scratch scale_space, zero_space;
        float *scales = scale_space.of<float>(EIGHT_ROWS * stride);
        float *zeros = zero_space.of<float>(EIGHT_ROWS * stride);
        alignas(32) uint8_t held_tails[EIGHT_ROWS * TAIL<BITS>], *tails = w.columns % UNIT_COLUMNS<BITS> ? held_tails : nullptr;
        Stream stream(static_cast<const uint8_t *>(w.data) + first * w.row_bytes, (end - first) * w.row_bytes, 4 * w.row_bytes);
        for (int64_t row = first; row < end; row += EIGHT_ROWS) {
            int count = static_cast<int>(std::min<int64_t>(EIGHT_ROWS, end - row));
            prepare(row, count, scales, zeros, tails);
            const uint8_t *codes = static_cast<const uint8_t *>(w.data) + row * w.row_bytes;
            CodeRows rows{codes, w.row_bytes, tails, scales, w.zeros ? zeros : nullptr, stride};
            int64_t m = 0;
            if constexpr (D == 1)
                for (; m + 4 <= M; m += 4) eight_rows<2, 4>(rows, row, count, m, stream);
            for (; m < M; m++) eight_rows<BITS == TRITS ? 8 : 4, 1>(rows, row, count, m, stream);
        }
    }
};

template <int BITS, int D>
void few_integers(const Products &products, const float *x, int64_t x_stride, int64_t M) {
    const leanlm_weight &w = products.weight();
    float zero = BITS == TRITS ? 1 : 1 << (BITS - 1), base = code_base<BITS, D>(zero);
    int64_t group = w.groups > 1 ? w.columns / w.groups : UNIT_COLUMNS<BITS>;
    bool whole = group % UNIT_COLUMNS<BITS> == 0;
    int64_t units = (w.columns + UNIT_COLUMNS<BITS> - 1) / UNIT_COLUMNS<BITS>;
    int64_t span_units = !whole ? 1 : w.groups > 1 ? group / UNIT_COLUMNS<BITS> : units;
    Integers a = quantise<BITS, D>(x, x_stride, M, w.columns, products.first->factors, base, span_units, w.zeros ? 1 : base - zero);
    products.over_rows(products.rows_to_read(), [&](const Product &product, int64_t first, int64_t end) {
        IntegerProduct<BITS, D>{product.w, a, base, product.out, whole}.run(first, end, M);
    });
}
