/* Weights stored as floats, times few rows of activations: the weights are read once, R rows at a time. */

constexpr int64_t STEP = 2 * W;  // columns multiplied at a time

/* STEP values in two vectors: the halves, or of bfloat16 the even and the odd ones. */
template <int DTYPE>
LEANLM_INLINE void load_step(const void *row, int64_t column, Floats &a, Floats &b) {
    if constexpr (DTYPE == LEANLM_F32) {
        a = load(static_cast<const float *>(row) + column);
        b = load(static_cast<const float *>(row) + column + W);
    } else if constexpr (DTYPE == LEANLM_F16) {
        a = load_f16(static_cast<const uint16_t *>(row) + column);
        b = load_f16(static_cast<const uint16_t *>(row) + column + W);
    } else {
        load_bf16(static_cast<const uint16_t *>(row) + column, a, b);
    }
}

template <int DTYPE, int R, int MT>
struct FloatTile {
    static constexpr int CHAINS = R * MT > 4 ? 1 : 2;
    Floats sums[R][MT][CHAINS];

    LEANLM_INLINE void step(int r, const void *row, int64_t column, const float *x, int64_t x_stride, int64_t at) {
        Floats a, b;
        load_step<DTYPE>(row, column, a, b);
        for (int m = 0; m < MT; m++) {
            sums[r][m][0] = fma(a, load(x + m * x_stride + at), sums[r][m][0]);
            sums[r][m][CHAINS - 1] = fma(b, load(x + m * x_stride + at + W), sums[r][m][CHAINS - 1]);
        }
    }
};

/* x [MT, columns] in the order of load_step, filled up with zeros to whole steps. */
template <int DTYPE, int R, int MT>
void multiply_floats(const Product &product, int64_t row, const float *x, int64_t x_stride, int64_t m, const Stream &stream) {
    constexpr int SIZE = DTYPE == LEANLM_F32 ? 4 : 2;
    const leanlm_weight &w = product.w;
    const uint8_t *data = product.row(row);
    FloatTile<DTYPE, R, MT> tile;
    for (auto &of_row : tile.sums)
        for (auto &of_pair : of_row)
            for (auto &chain : of_pair) chain = zeros();
    int64_t whole = w.columns / STEP * STEP, rest = w.columns - whole, step = R * STEP * SIZE;
    const uint8_t *ahead = stream.ahead(data, R * w.row_bytes, step);
    for (int64_t column = 0; column < whole; column += STEP, ahead += step) {
        prefetch_lines<R * STEP * SIZE>(ahead);
        for (int r = 0; r < R; r++) tile.step(r, data + r * w.row_bytes, column, x, x_stride, column);
    }
    if (rest) {
        for (int r = 0; r < R; r++) {
            alignas(64) uint8_t padded[STEP * 4] = {};
            std::memcpy(padded, data + r * w.row_bytes + whole * SIZE, rest * SIZE);
            tile.step(r, padded, 0, x, x_stride, whole);
        }
    }
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < MT; i++) {
            Floats *chains = tile.sums[r][i];
            product.out.put(m + i, row + r, sum(tile.CHAINS == 2 ? add(chains[0], chains[tile.CHAINS - 1]) : chains[0]));
        }
    }
}

/* x in the order of load_step, filled up with zeros to whole steps. */
template <int DTYPE>
void put_in_order(const float *__restrict x, int64_t n, float *__restrict ordered) {
    int64_t whole = DTYPE == LEANLM_BF16 ? n / STEP * STEP : n, padded = (n + STEP - 1) / STEP * STEP;
    if (DTYPE != LEANLM_BF16) std::memcpy(ordered, x, n * sizeof(float));
    std::fill(ordered + whole, ordered + padded, 0.f);
    if (DTYPE != LEANLM_BF16) return;
    for (int64_t at = 0; at < whole; at += STEP)
        for (int i = 0; i < W; i++) ordered[at + i] = x[at + 2 * i], ordered[at + W + i] = x[at + 2 * i + 1];
    for (int64_t i = 0; whole + i < n; i++) ordered[whole + i / 2 + i % 2 * W] = x[whole + i];
}

template <int DTYPE>
void float_matmul(const Products &products, const float *x, int64_t x_stride, int64_t M) {
    int64_t n = products.weight().columns, stride = (n + STEP - 1) / STEP * STEP;
    float *ordered = activations.of<float>(M * stride);
    for (int64_t m = 0; m < M; m++) put_in_order<DTYPE>(x + m * x_stride, n, ordered + m * stride);
    products.over_rows(products.rows_to_read(), [&](const Product &product, int64_t first, int64_t end) {
        Stream stream(product.row(first), (end - first) * product.w.row_bytes, ROWS * product.w.row_bytes);
        auto rows = [&](auto R, auto MT, int64_t m) {
            int64_t row = first;
            const float *a = ordered + m * stride;
            for (; row + R <= end; row += R) multiply_floats<DTYPE, R, MT>(product, row, a, stride, m, stream);
            for (; row < end; row++) multiply_floats<DTYPE, 1, MT>(product, row, a, stride, m, stream);
        };
        int64_t m = 0;
        for (; m + 4 <= M; m += 4) rows(Constant<2>(), Constant<4>(), m);
        for (; m + 2 <= M; m += 2) rows(Constant<2>(), Constant<2>(), m);
        for (; m < M; m++) rows(Constant<ROWS>(), Constant<1>(), m);
    });
}

void few_rows_of_floats(const Products &products, const float *x, int64_t x_stride, int64_t M) {
    int32_t dtype = products.weight().dtype;
    if (dtype == LEANLM_F32) float_matmul<LEANLM_F32>(products, x, x_stride, M);
    else if (dtype == LEANLM_BF16) float_matmul<LEANLM_BF16>(products, x, x_stride, M);
    else float_matmul<LEANLM_F16>(products, x, x_stride, M);
}
