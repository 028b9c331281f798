/* Products with weights in every format, rows of tables, and the plain reading of memory that they are compared with. */

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#include "codes.h"
#include "kernels.h"
#include "scratch.h"
#include "simd.h"
#include "threads.h"

namespace leanlm {
namespace LEANLM_NAMESPACE {
namespace {

constexpr int ROWS = 4;               // of float weights, multiplied with one row of activations at once
constexpr int SHARED = 2;             // of weights, multiplied with four rows of activations at once
constexpr int64_t AHEAD = 4096;       // bytes ahead of the reading that memory is asked for: a page
constexpr int64_t LEAST = 32 << 10;   // bytes of weights in a task
constexpr int64_t MOST = 256 << 10;
constexpr int TURNS = 4;              // tasks for every thread, within these bounds
constexpr int64_t FEW = 4;            // rows of activations up to which weights are multiplied as they are stored
constexpr int64_t READ_SHARE = 1 << 20;

template <int N>
using Constant = std::integral_constant<int, N>;

Scratch activations, lane_sums;

/* Where results go: y [M, rows], beside a bias and what y held. */
struct Output {
    float *y;
    int64_t stride;
    const float *bias;
    bool accumulate;

    LEANLM_INLINE void put(int64_t m, int64_t row, float value) const {
        float *place = y + m * stride + row;
        if (bias) value += bias[row];
        *place = accumulate ? *place + value : value;
    }

    /* `count` rows from `row` on, at most eight. */
    LEANLM_INLINE void put(int64_t m, int64_t row, Eight values, int count) const {
        float *place = y + m * stride + row;
        if (count == 8) {
            if (bias) values = add_eight(values, load_eight(bias + row));
            store_eight(place, accumulate ? add_eight(load_eight(place), values) : values);
            return;
        }
        float some[8];
        store_eight(some, values);
        for (int r = 0; r < count; r++) put(m, row + r, some[r]);
    }

    Output from(int64_t m) const { return {y + m * stride, stride, bias, accumulate}; }
};

/* One product: the weight as the codes it is made of, and the factors of its columns (NULL: 1). */
struct Product {
    leanlm_weight w;
    const float *factors;
    Output out;

    const uint8_t *row(int64_t r) const { return static_cast<const uint8_t *>(w.data) + r * w.row_bytes; }
};

/* Products of the same activations. */
struct Products {
    const Product *first;
    int64_t count;

    const leanlm_weight &weight() const { return first->w; }

    /* How many rows to a task, in whole sixteens, where the time goes into reading them. */
    int64_t rows_to_read() const {
        int64_t total = 0;
        for (int64_t i = 0; i < count; i++) total += first[i].w.rows * first[i].w.row_bytes;
        int64_t bytes = std::min(MOST, std::max(LEAST, total / (TURNS * threads())));
        return std::max<int64_t>(16, bytes / std::max<int64_t>(1, weight().row_bytes) / 16 * 16);
    }

    /* function(product, first, end) for all rows, in tasks of `rows`. */
    template <class Function>
    void over_rows(int64_t rows, Function &&function) const {
        int64_t tasks = 0;
        auto tasks_of = [&](const Product &product) { return (product.w.rows + rows - 1) / rows; };
        for (int64_t i = 0; i < count; i++) tasks += tasks_of(first[i]);
        parallel_for(tasks, [&](int64_t task) {
            const Product *product = first;
            for (; task >= tasks_of(*product); product++) task -= tasks_of(*product);
            function(*product, task * rows, std::min(product->w.rows, (task + 1) * rows));
        });
    }
};

/* Asks for the memory of rows in the order in which it lies, whatever the order in which a kernel reads them: the hardware's own
 * guess follows one stream. Rows read together are asked for while those before them are read, or earlier, and never beyond the
 * rows of a task, which are another thread's. */
class Stream {
public:
    Stream(const uint8_t *first, int64_t bytes, int64_t together)
        : distance(std::max(AHEAD, together)), end(first + bytes) {
        for (int64_t line = 0; line < std::min(distance, bytes); line += 64) prefetch(first + line);
    }

    /* Where to go on while `bytes` from `rows` on are read, step by step; rows themselves, in no steps, where all is asked for. */
    LEANLM_INLINE const uint8_t *ahead(const uint8_t *rows, int64_t bytes, int64_t &step) const {
        if (rows + distance + bytes <= end) return rows + distance;
        step = 0;
        return rows;
    }

private:
    int64_t distance;
    const uint8_t *end;
};

template <int BYTES>
LEANLM_INLINE void prefetch_lines(const uint8_t *p) {
    for (int line = 0; line < BYTES; line += 64) prefetch(p + line);
}

#include "dequantise.inl"
#include "matmul_float.inl"
#include "matmul_many.inl"
#include "quantise.inl"

#include "matmul_integer.inl"
#include "matmul_integer_many.inl"

/* Whether the groups of a row can be followed while its codes are read in order, 32 columns at a time. */
bool in_order(const leanlm_weight &w) {
    return w.kind == LEANLM_TERNARY || w.groups == 1 || (!w.g_idx && w.columns % (int64_t{32} * w.groups) == 0);
}

bool has_column_factors(const leanlm_weight &w) { return w.kind == LEANLM_TERNARY && !w.along_rows; }

/* The scales of a ternary matrix's columns, which are those of the activations just as well; NULL where it has none. */
const float *column_factors(const leanlm_weight &w) {
    static Scratch space;
    if (!has_column_factors(w)) return nullptr;
    float *factors = space.of<float>(w.columns);
    for (int32_t s = 0; s < w.regions; s++) {
        int64_t end = s + 1 < w.regions ? w.starts[s + 1] : w.columns;
        std::fill(factors + w.starts[s], factors + end, widen(w.scales, w.dtype, s));
    }
    return factors;
}

bool valid(const leanlm_weight &w) {
    if (w.rows < 0 || w.columns < 1) return false;
    if (w.kind == LEANLM_FLOAT) return w.dtype >= LEANLM_F32 && w.dtype <= LEANLM_F16;
    if (w.kind == LEANLM_TERNARY) return w.regions >= 1;
    return w.kind == LEANLM_GROUPED && w.groups >= 1 && (w.bits == 2 || w.bits == 3 || w.bits == 4 || w.bits == 6 || w.bits == 8);
}

/* A ternary matrix as the two-bit codes it is made of. */
leanlm_weight as_codes(const leanlm_weight &w) {
    leanlm_weight codes = w;
    if (w.kind == LEANLM_TERNARY) {
        codes.bits = 2;
        codes.groups = 1;
        codes.zeros = nullptr;
        codes.g_idx = nullptr;
    }
    return codes;
}

/* Whether two products take the same activations in the same form. */
bool alike(const Product &a, const Product &b) {
    const leanlm_weight &v = a.w, &w = b.w;
    if (v.columns != w.columns || v.kind != w.kind || a.factors || b.factors) return false;
    if (v.kind == LEANLM_FLOAT) return v.dtype == w.dtype;
    return v.bits == w.bits && v.groups == w.groups && !v.zeros == !w.zeros && in_order(v) == in_order(w);
}

template <int BITS>
void integers_of(const Products &products, const float *x, int64_t x_stride, int64_t M, int32_t precision) {
    auto multiply = M > FEW_INTEGERS ? many_integers<BITS> : precision == LEANLM_INT8 ? few_integers<BITS, 1> : few_integers<BITS, 3>;
    multiply(products, x, x_stride, M);
}

void multiply(const Products &products, const float *x, int64_t x_stride, int64_t M, int32_t precision) {
    const leanlm_weight &w = products.weight();
    bool integers = w.kind != LEANLM_FLOAT && in_order(w) && (M <= FEW || precision == LEANLM_INT8);
    if (!integers && (M > FEW || w.kind != LEANLM_FLOAT)) return many_rows(products, x, x_stride, M);
    if (!integers) return few_rows_of_floats(products, x, x_stride, M);
    switch (w.bits) {
        case 2:
            if (w.kind == LEANLM_TERNARY) return integers_of<TRITS>(products, x, x_stride, M, precision);
            return integers_of<2>(products, x, x_stride, M, precision);
        case 3: return integers_of<3>(products, x, x_stride, M, precision);
        case 4: return integers_of<4>(products, x, x_stride, M, precision);
        case 6: return integers_of<6>(products, x, x_stride, M, precision);
        default: return integers_of<8>(products, x, x_stride, M, precision);
    }
}

}  // namespace

int matmul(const leanlm_product *given, int64_t count, const float *x, int64_t x_stride, int64_t M, int32_t precision) {
    static Scratch space;
    Product *products = space.of<Product>(count);
    for (int64_t i = 0; i < count; i++) {
        if (!valid(given[i].weight)) return 1;
        Output out{given[i].y, given[i].y_stride, given[i].bias, given[i].accumulate != 0};
        new (products + i) Product{as_codes(given[i].weight), nullptr, out};
    }
    if (M <= 0) return 0;
    for (int64_t first = 0, next; first < count; first = next) {
        products[first].factors = column_factors(products[first].w);
        for (next = first + 1; next < count && !has_column_factors(products[next].w) && alike(products[first], products[next]);) next++;
        multiply({products + first, next - first}, x, x_stride, M, precision);
    }
    return 0;
}

int embed(const leanlm_weight *table, const int64_t *tokens, float *x, int64_t x_stride, int64_t M) {
    if (!valid(*table)) return 1;
    for (int64_t m = 0; m < M; m++)
        if (tokens[m] < 0 || tokens[m] >= table->rows) return 1;
    leanlm_weight w = as_codes(*table);
    const float *factors = column_factors(w);
    parallel_for(M, [&](int64_t m) {
        RowValues values(w, factors);
        values.start(tokens[m]);
        values.get(0, w.columns, x + m * x_stride);
    });
    return 0;
}

double read(const void *data, int64_t bytes) {
    typedef uint64_t Words __attribute__((vector_size(32), aligned(1)));
    std::atomic<uint64_t> total{0};
    parallel_for((bytes + READ_SHARE - 1) / READ_SHARE, [&](int64_t i) {
        const uint8_t *p = static_cast<const uint8_t *>(data) + i * READ_SHARE, *end = p + std::min(READ_SHARE, bytes - i * READ_SHARE);
        Words sums[4] = {};
        for (; p + 128 <= end; p += 128)
            for (int j = 0; j < 4; j++) sums[j] += reinterpret_cast<const Words *>(p)[j];
        uint64_t sum = 0;
        for (int j = 0; j < 4; j++) sum += sums[j][0] + sums[j][1] + sums[j][2] + sums[j][3];
        for (; p < end; p++) sum += *p;
        total.fetch_add(sum, std::memory_order_relaxed);
    });
    return static_cast<double>(total.load());
}

}  // namespace LEANLM_NAMESPACE
}  // namespace leanlm
