/* Products with weights in every format, rows of tables, and the plain reading of memory that they are compared with. */

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
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
constexpr int64_t SHARE = 64 << 10;   // bytes of weights in a task
constexpr int64_t FEW = 4;            // rows of activations up to which weights are multiplied as they are stored
constexpr int64_t READ_SHARE = 1 << 20;

template <int N>
using Constant = std::integral_constant<int, N>;

Scratch activations, group_sums;

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

    Output from(int64_t m) const { return {y + m * stride, stride, bias, accumulate}; }
};

/* function(first, end) for all rows of the weight, in tasks of about SHARE bytes and of whole sixteens of rows. */
template <class Function>
void over_rows(const leanlm_weight &w, Function &&function) {
    int64_t rows = std::max<int64_t>(16, SHARE / std::max<int64_t>(1, w.row_bytes) / 16 * 16);
    parallel_for((w.rows + rows - 1) / rows, [&](int64_t i) { function(i * rows, std::min(w.rows, (i + 1) * rows)); });
}

#include "dequantise.inl"
#include "matmul_float.inl"
#include "matmul_many.inl"
#include "quantise.inl"

#include "matmul_integer.inl"

/* Whether the groups of a row can be followed while its codes are read in order, 32 columns at a time. */
bool in_order(const leanlm_weight &w) {
    return w.kind == LEANLM_TERNARY || w.groups == 1 || (!w.g_idx && w.columns % (int64_t{32} * w.groups) == 0);
}

/* The scales of a ternary matrix's columns, which are those of the activations just as well; NULL where it has none. */
const float *column_factors(const leanlm_weight &w) {
    static Scratch space;
    if (w.kind != LEANLM_TERNARY || w.along_rows) return nullptr;
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

}  // namespace

int matmul(const leanlm_weight *weight, const float *x, int64_t x_stride, float *y, int64_t y_stride, int64_t M, const float *bias,
           int32_t accumulate, int32_t precision) {
    if (!valid(*weight)) return 1;
    if (M <= 0 || weight->rows == 0) return 0;
    leanlm_weight w = as_codes(*weight);
    Output out{y, y_stride, bias, accumulate != 0};
    const float *factors = column_factors(w);
    if (w.kind == LEANLM_FLOAT) {
        if (M > FEW) many_rows(w, x, x_stride, M, factors, out);
        else if (w.dtype == LEANLM_F32) float_matmul<LEANLM_F32>(w, x, x_stride, M, out);
        else if (w.dtype == LEANLM_BF16) float_matmul<LEANLM_BF16>(w, x, x_stride, M, out);
        else float_matmul<LEANLM_F16>(w, x, x_stride, M, out);
        return 0;
    }
    if (!in_order(w) || (M > FEW && precision == LEANLM_EXACT)) {
        many_rows(w, x, x_stride, M, factors, out);
        return 0;
    }
    switch (w.bits) {
        case 2: integer_matmul<2>(w, x, x_stride, M, factors, out, precision); break;
        case 3: integer_matmul<3>(w, x, x_stride, M, factors, out, precision); break;
        case 4: integer_matmul<4>(w, x, x_stride, M, factors, out, precision); break;
        case 6: integer_matmul<6>(w, x, x_stride, M, factors, out, precision); break;
        default: integer_matmul<8>(w, x, x_stride, M, factors, out, precision);
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
