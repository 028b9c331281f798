/* Norms of the residual stream and Mamba-2's gated norm.   M rows  D width */
#include "elementary.h"
#include "threads.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t TASK_VALUES = 4096; /* worth waking a thread for */

/* Sums term(i, n) over vectors of up to n values beginning at i < D; several sums run side by side. */
template <class Term>
LEANLM_INLINE float total(int64_t D, Term term) {
    Vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= D; i += 4 * W)
        for (int j = 0; j < 4; j++) sums[j] += term(i + j * W, W);
    for (; i + W <= D; i += W) sums[0] += term(i, W);
    if (i < D) sums[1] += term(i, D - i);
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void rms_row(const float *x, float *y, int64_t D, const float *weight, float eps) {
    const float squares = total(D, [&](int64_t i, int64_t n) {
        const Vec v = load_up_to(x + i, n);
        return v * v;
    });
    const float scale = 1.0f / __builtin_sqrtf(squares / D + eps);
    for (int64_t i = 0; i < D; i += W)
        store_up_to(y + i, load_up_to(x + i, D - i) * scale * load_up_to(weight + i, D - i), D - i);
}

void layer_row(const float *x, float *y, int64_t D, const float *weight, const float *bias, float eps) {
    const float mean = total(D, [&](int64_t i, int64_t n) { return load_up_to(x + i, n); }) / D;
    const float squares = total(D, [&](int64_t i, int64_t n) {
        Vec v = load_up_to(x + i, n) - mean;
        if (n < W)
            for (int j = n; j < W; j++) v[j] = 0;
        return v * v;
    });
    const float scale = 1.0f / __builtin_sqrtf(squares / D + eps);
    for (int64_t i = 0; i < D; i += W) {
        const Vec v = (load_up_to(x + i, D - i) - mean) * scale;
        store_up_to(y + i, fma(v, load_up_to(weight + i, D - i), load_up_to(bias + i, D - i)), D - i);
    }
}

/* y silu(z), in place. */
void gate_row(float *y, const float *z, int64_t D) {
    int64_t i = 0;
    for (; i + 4 * W <= D; i += 4 * W) {
        Vec gates[4];
        for (int v = 0; v < 4; v++) gates[v] = load(z + i + v * W);
        silus(gates);
        for (int v = 0; v < 4; v++) store(y + i + v * W, gates[v] * load(y + i + v * W));
    }
    for (; i < D; i += W) store_up_to(y + i, silu(load_up_to(z + i, D - i)) * load_up_to(y + i, D - i), D - i);
}

void gated_row(float *y, const float *z, int64_t D, const float *weight, float eps, bool before) {
    if (!before) gate_row(y, z, D);
    rms_row(y, y, D, weight, eps);
    if (before) gate_row(y, z, D);
}

/* Deals `rows` of D values out to the threads. */
template <class Row>
void for_rows(int64_t rows, int64_t D, Row row) {
    const int64_t share = D < TASK_VALUES ? TASK_VALUES / D : 1;
    parallel_for((rows + share - 1) / share, [&](int64_t task) {
        for (int64_t r = task * share; r < (task + 1) * share && r < rows; r++) row(r);
    });
}

} // namespace

int norm(const float *x, int64_t x_stride, float *y, int64_t y_stride, int64_t M, int64_t D, const float *weight,
         const float *bias, float eps) {
    for_rows(M, D, [&](int64_t m) {
        if (bias)
            layer_row(x + m * x_stride, y + m * y_stride, D, weight, bias, eps);
        else
            rms_row(x + m * x_stride, y + m * y_stride, D, weight, eps);
    });
    return 0;
}

int gated_norm(float *y, int64_t y_stride, const float *z, int64_t z_stride, int64_t M, int64_t D, const float *weight, float eps,
               int32_t groups, int32_t before) {
    const int64_t width = D / groups;
    for_rows(M * groups, width, [&](int64_t row) {
        const int64_t m = row / groups, at = row % groups * width;
        gated_row(y + m * y_stride + at, z + m * z_stride + at, width, weight + at, eps, before);
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
