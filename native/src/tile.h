/* Small dense products out of the caches: tiles of a few rows by two vectors of columns, held in registers. */
#pragma once

#include <type_traits>

#include "vector.h"

namespace leanlm::LEANLM_NAMESPACE {
inline namespace vectors {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8;
#elif defined(__AVX2__)
constexpr int TILE_ROWS = 6;
#else
constexpr int TILE_ROWS = 4;
#endif
constexpr int TILE_COLUMNS = 2 * W;

constexpr int64_t padded(int64_t n) { return (n + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS; }

template <int R>
struct Tile {
    Vec at[R][2];

    LEANLM_INLINE void clear() {
        for (int r = 0; r < R; r++) at[r][0] = at[r][1] = zeros();
    }

    LEANLM_INLINE void read(const float *from, int64_t stride) {
        for (int r = 0; r < R; r++) {
            at[r][0] = load(from + r * stride);
            at[r][1] = load(from + r * stride + W);
        }
    }

    LEANLM_INLINE void write(float *to, int64_t stride) const {
        for (int r = 0; r < R; r++) {
            store(to + r * stride, at[r][0]);
            store(to + r * stride + W, at[r][1]);
        }
    }

    LEANLM_INLINE void write_some(float *to, int64_t stride, int64_t columns) const {
        if (columns >= TILE_COLUMNS) return write(to, stride);
        for (int r = 0; r < R; r++) {
            store_up_to(to + r * stride, at[r][0], columns);
            if (columns > W) store_some(to + r * stride + W, at[r][1], columns - W);
        }
    }

    LEANLM_INLINE void scale(int r, float factor) {
        at[r][0] *= factor;
        at[r][1] *= factor;
    }

    /* += a [R, depth], whose rows and columns lie a_row and a_column apart, times b [depth, two vectors]. */
    LEANLM_INLINE void add_product(int64_t depth, const float *a, int64_t a_row, int64_t a_column, const float *b,
                                   int64_t b_stride) {
        for (int64_t i = 0; i < depth; i++) {
            const Vec b0 = load(b + i * b_stride), b1 = load(b + i * b_stride + W);
            for (int r = 0; r < R; r++) {
                const Vec factor = splat(a[r * a_row + i * a_column]);
                at[r][0] = fma(factor, b0, at[r][0]);
                at[r][1] = fma(factor, b1, at[r][1]);
            }
        }
    }
};

template <int R, class F>
LEANLM_INLINE void rest_of_rows(int64_t begin, int64_t left, F &work) {
    if constexpr (R > 0) {
        if (left == R) return work(begin, std::integral_constant<int, R>());
        rest_of_rows<R - 1>(begin, left, work);
    }
}

/* Calls work(first row, how many as a constant type) for tiles that cover `rows` rows. */
template <class F>
LEANLM_INLINE void for_tile_rows(int64_t rows, F work) {
    int64_t row = 0;
    for (; row + TILE_ROWS <= rows; row += TILE_ROWS) work(row, std::integral_constant<int, TILE_ROWS>());
    rest_of_rows<TILE_ROWS - 1>(row, rows - row, work);
}

} // namespace vectors
} // namespace leanlm::LEANLM_NAMESPACE
