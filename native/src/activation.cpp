/* Activations and gates, elementwise.   M rows  D width */
#include "elementary.h"
#include "threads.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t TASK_VALUES = 4096; /* worth waking a thread for */

/* V vectors, of the last of which n values count. */
template <int V>
LEANLM_INLINE void activate_vectors(int32_t kind, const float *x, const float *z, const float *bias, float *y, int64_t n) {
    const auto read = [&](const float *from, int v) { return load_up_to(from + v * W, v == V - 1 ? n : W); };
    Vec gates[V];
    for (int v = 0; v < V; v++) gates[v] = read(kind == LEANLM_MUL_SILU ? z : x, v);
    if (kind == LEANLM_MUL_SILU && bias)
        for (int v = 0; v < V; v++) gates[v] += read(bias, v);
    if (kind == LEANLM_GELU)
        for (int v = 0; v < V; v++) gates[v] = gelu(gates[v]);
    else
        silus(gates);
    if (kind == LEANLM_SILU_MUL || kind == LEANLM_MUL_SILU)
        for (int v = 0; v < V; v++) gates[v] *= read(kind == LEANLM_MUL_SILU ? x : z, v);
    for (int v = 0; v < V; v++) store_up_to(y + v * W, gates[v], v == V - 1 ? n : W);
}

void activate_row(int32_t kind, const float *x, const float *z, const float *bias, float *y, int64_t D) {
    const auto from = [](const float *at, int64_t i) { return at ? at + i : at; };
    int64_t i = 0;
    for (; i + 4 * W <= D; i += 4 * W) activate_vectors<4>(kind, x + i, from(z, i), from(bias, i), y + i, W);
    for (; i < D; i += W) activate_vectors<1>(kind, x + i, from(z, i), from(bias, i), y + i, D - i);
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
            activate_row(kind, x + m * x_stride + begin, z ? z + m * z_stride + begin : z, bias ? bias + begin : bias,
                         y + m * y_stride + begin, end - begin);
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
