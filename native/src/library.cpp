/* The interface: the table of the chosen instruction set, and the functions that call through it. */

#include <cstring>

#include "kernels.h"
#include "threads.h"

#define LEANLM_API extern "C" __attribute__((visibility("default")))

namespace leanlm {
namespace {

struct InstructionSet {
    const char *name;
    bool (*available)();
    Kernels kernels;
};

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

const InstructionSet SETS[] = {  // best first
#if defined(__x86_64__)
    {"avx512", has_avx512, {LEANLM_KERNELS(LEANLM_AVX512)}},
    {"avx2", has_avx2, {LEANLM_KERNELS(LEANLM_AVX2)}},
#endif
    {"portable", [] { return true; }, {LEANLM_KERNELS(LEANLM_PORTABLE)}},
};

const InstructionSet *best() {
    const InstructionSet *set = SETS;
    while (!set->available()) set++;
    return set;
}

const InstructionSet *chosen = best();

}  // namespace
}  // namespace leanlm

using leanlm::chosen;

LEANLM_API int leanlm_version(void) { return 1; }

LEANLM_API const char *leanlm_isa(void) { return chosen->name; }

LEANLM_API int leanlm_set_isa(const char *name) {
    for (const auto &set : leanlm::SETS) {
        if (std::strcmp(set.name, name) == 0 && set.available()) {
            chosen = &set;
            return 0;
        }
    }
    return 1;
}

LEANLM_API int leanlm_threads(void) { return leanlm::threads(); }

LEANLM_API int leanlm_set_threads(int threads) { return leanlm::set_threads(threads); }

LEANLM_API int leanlm_matmul(const leanlm_product *products, int64_t count, const float *x, int64_t x_stride, int64_t M,
                             int32_t precision) {
    return chosen->kernels.matmul(products, count, x, x_stride, M, precision);
}

LEANLM_API int leanlm_embed(const leanlm_weight *table, const int64_t *tokens, float *x, int64_t x_stride, int64_t M) {
    return chosen->kernels.embed(table, tokens, x, x_stride, M);
}

LEANLM_API int leanlm_norm(const float *x, int64_t x_stride, float *y, int64_t y_stride, int64_t M, int64_t D,
                           const float *weight, const float *bias, float eps) {
    return chosen->kernels.norm(x, x_stride, y, y_stride, M, D, weight, bias, eps);
}

LEANLM_API int leanlm_gated_norm(float *y, int64_t y_stride, const float *z, int64_t z_stride, int64_t M, int64_t D,
                                 const float *weight, float eps, int32_t groups, int32_t before) {
    return chosen->kernels.gated_norm(y, y_stride, z, z_stride, M, D, weight, eps, groups, before);
}

LEANLM_API int leanlm_activate(int32_t kind, const float *x, int64_t x_stride, const float *z, int64_t z_stride,
                               const float *bias, float *y, int64_t y_stride, int64_t M, int64_t D) {
    return chosen->kernels.activate(kind, x, x_stride, z, z_stride, bias, y, y_stride, M, D);
}

LEANLM_API int leanlm_conv(float *x, int64_t x_stride, int64_t B, int64_t L, int64_t C, int32_t K, const float *weight,
                           const float *bias, void *tail, int32_t dtype, int32_t silu) {
    return chosen->kernels.conv(x, x_stride, B, L, C, K, weight, bias, tail, dtype, silu);
}

LEANLM_API int leanlm_ssd(const float *x, int64_t x_stride, const float *Bm, int64_t B_stride, const float *Cm,
                          int64_t C_stride, const float *a, int64_t a_stride, float *y, int64_t y_stride, int64_t B,
                          int64_t L, int32_t H, int32_t P, int32_t G, int32_t N, int32_t mode, const float *A,
                          const float *dt_bias, float dt_min, float dt_max, const float *D, int32_t d_per_channel,
                          void *state, int32_t dtype) {
    return chosen->kernels.ssd(x, x_stride, Bm, B_stride, Cm, C_stride, a, a_stride, y, y_stride, B, L, H, P, G, N, mode, A,
                               dt_bias, dt_min, dt_max, D, d_per_channel, state, dtype);
}

LEANLM_API int leanlm_scan(const float *x, int64_t x_stride, const float *a, int64_t a_stride, const float *Bm,
                           int64_t B_stride, const float *Cm, int64_t C_stride, const float *z, int64_t z_stride, float *y,
                           int64_t y_stride, int64_t B, int64_t L, int64_t I, int32_t N, const float *A,
                           const float *dt_bias, const float *D, void *state, int32_t dtype) {
    return chosen->kernels.scan(x, x_stride, a, a_stride, Bm, B_stride, Cm, C_stride, z, z_stride, y, y_stride, B, L, I, N,
                                A, dt_bias, D, state, dtype);
}

LEANLM_API int leanlm_rotate(float *x, int64_t x_stride, int64_t B, int64_t L, int32_t heads, int32_t P, int32_t R,
                             const float *freq, const int64_t *position, const int64_t *start) {
    return chosen->kernels.rotate(x, x_stride, B, L, heads, P, R, freq, position, start);
}

LEANLM_API int leanlm_attend(const float *q, int64_t q_stride, const float *k, int64_t k_stride, const float *v,
                             int64_t v_stride, float *y, int64_t y_stride, int64_t B, int64_t L, int32_t H, int32_t Hkv,
                             int32_t P, int64_t slots, int64_t window, float scale, const int64_t *position,
                             const int64_t *start, void *k_cache, void *v_cache, int32_t dtype, float *k_scales,
                             float *v_scales) {
    return chosen->kernels.attend(q, q_stride, k, k_stride, v, v_stride, y, y_stride, B, L, H, Hkv, P, slots, window, scale,
                                  position, start, k_cache, v_cache, dtype, k_scales, v_scales);
}

LEANLM_API int leanlm_telescope(const leanlm_telescoping *call, int64_t B, int64_t L, const int64_t *position,
                                const int64_t *start, float *k, float *v, float *weight_k, float *weight_v) {
    return chosen->kernels.telescope(call, B, L, position, start, k, v, weight_k, weight_v);
}

LEANLM_API double leanlm_read(const void *data, int64_t bytes) { return chosen->kernels.read(data, bytes); }
