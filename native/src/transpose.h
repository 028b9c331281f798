/* Transposed copies, widened to float32. */
#pragma once

#include "vector.h"

namespace leanlm::LEANLM_NAMESPACE {
inline namespace vectors {

/* The W x W block of rows x[i] in place: interleaving the halves of its rows log2(W) times. */
LEANLM_INLINE void transpose(Vec (&x)[W]) {
    Vec y[W];
    for (int step = 1; step < W; step *= 2) {
        for (int i = 0; i < W / 2; i++) interleave(x[i], x[i + W / 2], y[2 * i], y[2 * i + 1]);
        for (int i = 0; i < W; i++) x[i] = y[i];
    }
}

/* to[c][r] = row(r)[c] for r < rows and c < columns; zeros up to `padded` rows, a multiple of W. */
template <class Row>
LEANLM_INLINE void transpose_rows(const Row &row, int64_t rows, int64_t columns, float *to, int64_t to_stride, int64_t padded) {
    for (int64_t r = 0; r < padded; r += W)
        for (int64_t c = 0; c < columns; c += W) {
            Vec x[W];
            for (int i = 0; i < W; i++) x[i] = r + i < rows ? load_up_to(row(r + i) + c, columns - c) : zeros();
            transpose(x);
            for (int i = 0; i < W && c + i < columns; i++) store(to + (c + i) * to_stride + r, x[i]);
        }
}

/* to[r][c] = from[c][r] for r < rows and c < columns, where from's rows are padded to a multiple of W. */
template <class T>
LEANLM_INLINE void transpose_back(const float *from, int64_t from_stride, int64_t rows, int64_t columns, T *to,
                                  int64_t to_stride) {
    for (int64_t r = 0; r < rows; r += W)
        for (int64_t c = 0; c < columns; c += W) {
            Vec x[W];
            for (int i = 0; i < W; i++) x[i] = c + i < columns ? load(from + (c + i) * from_stride + r) : zeros();
            transpose(x);
            for (int i = 0; i < W && r + i < rows; i++) store_up_to(to + (r + i) * to_stride + c, x[i], columns - c);
        }
}

} // namespace vectors
} // namespace leanlm::LEANLM_NAMESPACE
