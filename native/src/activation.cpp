/* Activations and gates, elementwise.   M rows  D width */
#include "elementary.h"
#include "threads.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t TASK_VALUES = 4096; /* worth waking a thread for */

LEANLM_INLINE Vec activated(int32_t kind, const float *x, const float *z, const float *bias, int64_t n) {
    const Vec v = load_up_to(x, n);
    if (kind == LEANLM_GELU) return gelu(v);
    if (kind == LEANLM_SILU) return silu(v);
    const Vec other = load_up_to(z, n);
    if (kind == LEANLM_SILU_MUL) return silu(v) * other;
    return v * silu(bias ? other + load_up_to(bias, n) : other);
}

} // namespace

int activate(int32_t kind, const float *x, int64_t x_stride, const float *z, int64_t z_stride, const float *bias, float *y,
             int64_t y_stride, int64_t M, int64_t D) {
    if (D == 0) return 0;
    const int64_t pieces = (D + TASK_VALUES - 1) / TASK_VALUES;  /* of a row */
    const int64_t share = D < TASK_VALUES ? TASK_VALUES / D : 1; /* rows of a task */
    parallel_for((M + share - 1) / share * pieces, [&](int64_t task) {
        const int64_t rows = task / pieces * share, begin = task % pieces * TASK_VALUES;
        const int64_t end = begin + TASK_VALUES < D ? begin + TASK_VALUES : D;
        for (int64_t m = rows; m < rows + share && m < M; m++)
            for (int64_t i = begin; i < end; i += W)
                store_up_to(y + m * y_stride + i,
                            activated(kind, x + m * x_stride + i, z ? z + m * z_stride + i : z, bias ? bias + i : bias, end - i),
                            end - i);
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
