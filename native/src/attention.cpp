/* Attention over full and ring caches.   B texts  L tokens  H heads  Hkv key/value heads  P head width */
#include <type_traits>

#include "attention_sequence.h"
#include "attention_token.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t FEW = 7; /* tokens up to which they are read one by one */

template <class F>
void with_cache_dtype(int32_t dtype, F work) {
    if (dtype == LEANLM_I8)
        work(static_cast<Int8 *>(nullptr));
    else
        with_dtype(dtype, work);
}

} // namespace

int attend(const float *q, int64_t q_stride, const float *k, int64_t k_stride, const float *v, int64_t v_stride, float *y,
           int64_t y_stride, int64_t B, int64_t L, int32_t H, int32_t Hkv, int32_t P, int64_t slots, int64_t window, float scale,
           const int64_t *position, const int64_t *start, void *k_cache, void *v_cache, int32_t dtype,
           float *k_scales, float *v_scales) {
    const int64_t span = window > 0 && window < slots ? window : slots;
    with_cache_dtype(dtype, [&](auto *typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        const Attention<T> s{q, k, v,   y, q_stride, k_stride, v_stride, y_stride, B,     L,
                             H, Hkv, P, slots, span, scale,    position, start,    {static_cast<T *>(k_cache), k_scales},
                             {static_cast<T *>(v_cache), v_scales}};
        if (L >= FEW) return attend_sequence(s);
        for (int64_t t = 0; t < L; t++) attend_token(s, t);
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
