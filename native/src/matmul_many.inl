/* Any weights times many rows of activations, in float32: a block of weights is unpacked in the cache and multiplied with panels
 * of V W rows of activations, TILE rows of weights at a time in registers. */

constexpr int64_t DEPTH = 256;             // columns unpacked at a time: a panel of them and a tile fit in the first cache
constexpr int64_t DEPTH_STRIDE = DEPTH + 16;  // so that rows do not fall on the same lines of the cache
constexpr int BLOCK = 48;                  // rows unpacked at a time
constexpr int64_t MOST_ROWS = 512;         // of activations, in one pass over the weights

template <int V>
constexpr int TILE = (W == 16 ? 24 : 12) / V;

template <int V>
void multiply_tile(const float *weights, const float *panel, int64_t depth, float *sums) {
    constexpr int P = V * W, R = TILE<V>;
    Floats held[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) held[r][v] = load(sums + r * P + v * W);
    for (int64_t k = 0; k < depth; k++) {
        Floats x[V];
        for (int v = 0; v < V; v++) x[v] = load(panel + k * P + v * W);
        for (int r = 0; r < R; r++) {
            Floats weight = all(weights[r * DEPTH_STRIDE + k]);
            for (int v = 0; v < V; v++) held[r][v] = fma(weight, x[v], held[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(sums + r * P + v * W, held[r][v]);
}

/* x [M, n] as panels [ceil(M / P), n, P], filled up with zeros. */
template <int P>
const float *panels_of(const float *x, int64_t x_stride, int64_t M, int64_t n) {
    float *panels = activations.of<float>((M + P - 1) / P * P * n);
    parallel_for((M + P - 1) / P, [&](int64_t p) {
        float *panel = panels + p * n * P;
        int64_t count = std::min<int64_t>(P, M - p * P);
        if (count < P) std::memset(panel, 0, n * P * sizeof(float));
        for (int64_t k0 = 0; k0 < n; k0 += 16) {
            int64_t k1 = std::min(n, k0 + 16);
            for (int64_t m = 0; m < count; m++)
                for (int64_t k = k0; k < k1; k++) panel[k * P + m] = x[(p * P + m) * x_stride + k];
        }
    });
    return panels;
}

/* Sums [8, P] of rows of the weight from `row` on, `rows` of which there are, for up to P rows of activations. */
template <int P>
void put_eight_rows(const float *sums, int64_t M, const Output &out, int64_t row, int64_t rows) {
    for (int64_t m = 0; m < std::min<int64_t>(P, M); m++) {
        const float *s = sums + m;
        Eight values = {s[0], s[P], s[2 * P], s[3 * P], s[4 * P], s[5 * P], s[6 * P], s[7 * P]};
        out.put(m, row, values, static_cast<int>(std::min<int64_t>(8, rows)));
    }
}

template <int V>
void many_rows(const Product &product, const float *x, int64_t x_stride, int64_t M, const Output &out) {
    constexpr int P = V * W;
    const leanlm_weight &w = product.w;
    int64_t n = w.columns, count = (M + P - 1) / P;
    const float *panels = panels_of<P>(x, x_stride, M, n);
    parallel_for((w.rows + BLOCK - 1) / BLOCK, [&](int64_t task) {
        thread_local Scratch weight_space, sum_space;
        float *weights = weight_space.of<float>(BLOCK * DEPTH_STRIDE), *sums = sum_space.of<float>(count * BLOCK * P);
        std::memset(sums, 0, count * BLOCK * P * sizeof(float));
        int64_t first = task * BLOCK, rows = std::min<int64_t>(BLOCK, w.rows - first), tiles = (rows + TILE<V> - 1) / TILE<V>;
        RowValues values(w, product.factors);
        for (int64_t k0 = 0; k0 < n; k0 += DEPTH) {
            int64_t depth = std::min(DEPTH, n - k0);
            for (int64_t r = 0; r < rows; r++) {
                values.start(first + r);
                values.get(k0, depth, weights + r * DEPTH_STRIDE);
            }
            for (int64_t r = rows; r < tiles * TILE<V>; r++) std::memset(weights + r * DEPTH_STRIDE, 0, depth * sizeof(float));
            for (int64_t p = 0; p < count; p++)
                for (int64_t r = 0; r < tiles * TILE<V>; r += TILE<V>)
                    multiply_tile<V>(weights + r * DEPTH_STRIDE, panels + (p * n + k0) * P, depth, sums + (p * BLOCK + r) * P);
        }
        for (int64_t p = 0; p < count; p++)
            for (int64_t r = 0; r < rows; r += 8) put_eight_rows<P>(sums + (p * BLOCK + r) * P, M - p * P, out.from(p * P), first + r, rows - r);
    });
}

void many_rows(const Products &products, const float *x, int64_t x_stride, int64_t M) {
    for (int64_t i = 0; i < products.count; i++) {
        const Product &product = products.first[i];
        for (int64_t m = 0; m < M; m += MOST_ROWS) {
            int64_t some = std::min(MOST_ROWS, M - m);
            auto multiply = some <= W ? many_rows<1> : many_rows<2>;
            multiply(product, x + m * x_stride, x_stride, some, product.out.from(m));
        }
    }
}
