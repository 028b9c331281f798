/* Rotary positions, half-split layout.   B texts  L tokens  P head width  R rotated channels */
#include "vector.h"
#include "workspace.h"
#include "threads.h"

namespace leanlm::LEANLM_NAMESPACE {
namespace {

constexpr int64_t SHARE = 8; /* tokens of a task */

/* Cosine and sine of a float32 angle, reduced to -pi/4 .. pi/4 in double: angles grow with the position. */
LEANLM_INLINE void turn(float angle, float &cosine, float &sine) {
    const double shifted = angle * 0.63661977236758134 + 0x1.8p52; /* its low bits: quarter turns */
    uint64_t quarters;
    memcpy(&quarters, &shifted, sizeof quarters);
    const float r = static_cast<float>(angle - (shifted - 0x1.8p52) * 1.5707963267948966), t = r * r;
    const float s = ((2.72491388e-6f * t - 0.000198400798f) * t + 0.00833333191f) * t - 0.166666672f;
    const float c = ((-2.73004474e-7f * t + 2.48005963e-5f) * t - 0.00138888881f) * t + 0.0416666679f;
    const float sin = s * t * r + r, cos = c * t * t - 0.5f * t + 1.0f;
    const bool swapped = quarters & 1;
    sine = (quarters & 2) ? -(swapped ? cos : sin) : (swapped ? cos : sin);
    cosine = ((quarters + 1) & 2) ? -(swapped ? sin : cos) : (swapped ? sin : cos);
}

/* One head's first 2 half channels. */
LEANLM_INLINE void rotate_head(float *x, int64_t half, const float *cosines, const float *sines) {
    for (int64_t i = 0; i < half; i += W) {
        const int64_t n = half - i;
        const Vec a = load_up_to(x + i, n), b = load_up_to(x + half + i, n);
        const Vec cosine = load_up_to(cosines + i, n), sine = load_up_to(sines + i, n);
        store_up_to(x + i, a * cosine - b * sine, n);
        store_up_to(x + half + i, b * cosine + a * sine, n);
    }
}

} // namespace

int rotate(float *x, int64_t x_stride, int64_t B, int64_t L, int32_t heads, int32_t P, int32_t R, const float *freq,
           const int64_t *position, const int64_t *start) {
    const int64_t half = R / 2, M = B * L;
    parallel_for((M + SHARE - 1) / SHARE, [&](int64_t task) {
        float *cosines = workspace(Workspace::Own, 2 * half), *sines = cosines + half;
        for (int64_t m = task * SHARE; m < (task + 1) * SHARE && m < M; m++) {
            const float at = static_cast<float>(position[m / L] + m % L - (start ? start[m / L] : 0));
            for (int64_t i = 0; i < half; i++) turn(at * freq[i], cosines[i], sines[i]);
            for (int32_t h = 0; h < heads; h++) rotate_head(x + m * x_stride + h * P, half, cosines, sines);
        }
    });
    return 0;
}

} // namespace leanlm::LEANLM_NAMESPACE
