/* Weights as floats: rows of a table, and the tiles of products of many rows. */

LEANLM_INLINE float widen(const void *values, int32_t dtype, int64_t i) {
    if (dtype == LEANLM_F32) return static_cast<const float *>(values)[i];
    uint16_t bits = static_cast<const uint16_t *>(values)[i];
    return dtype == LEANLM_BF16 ? widen_bf16(bits) : widen_f16(bits);
}

void widen_all(const void *values, int32_t dtype, int64_t first, int64_t count, float *out) {
    int64_t i = 0;
    if (dtype == LEANLM_F32) {
        std::memcpy(out, static_cast<const float *>(values) + first, count * sizeof(float));
        return;
    }
    const uint16_t *source = static_cast<const uint16_t *>(values) + first;
    if (dtype == LEANLM_BF16) {
        for (; i < count; i++) out[i] = widen_bf16(source[i]);
    } else {
        for (; i + W <= count; i += W) store(out + i, load_f16(source + i));
        for (; i < count; i++) out[i] = widen_f16(source[i]);
    }
}

/* The region of a row or column of a ternary matrix. */
int64_t region(const leanlm_weight &w, int64_t at) {
    return std::upper_bound(w.starts, w.starts + w.regions, static_cast<int32_t>(at)) - w.starts - 1;
}

/* The scales of a row's groups; of a ternary matrix, the one of the row (1 where the scales belong to columns). */
void row_scales(const leanlm_weight &w, int64_t row, float *scales) {
    if (w.kind == LEANLM_TERNARY) *scales = w.along_rows ? widen(w.scales, w.dtype, region(w, row)) : 1.f;
    else widen_all(w.scales, w.dtype, row * w.groups, w.groups, scales);
}

/* Eight codes of `bits` bits in the low bits of a word, one to each byte: halves, quarters and eighths are moved apart. */
template <int BITS>
LEANLM_INLINE uint64_t spread_codes(uint64_t word) {
    constexpr uint64_t HALF = (uint64_t{1} << (4 * BITS)) - 1, QUARTER = (uint64_t{1} << (2 * BITS)) - 1, ONE = (1 << BITS) - 1;
    constexpr uint64_t QUARTERS = QUARTER * 0x100000001, ONES = ONE * 0x0001000100010001;
    word = (word & HALF) | (word & (HALF << (4 * BITS % 64))) << (32 - 4 * BITS);
    word = (word & QUARTERS) | (word & (QUARTERS << (2 * BITS))) << (16 - 2 * BITS);
    return (word & ONES) | (word & (ONES << BITS)) << (8 - BITS);
}

/* Codes [first, first + count) of a row, first a multiple of 8. */
template <int BITS>
void unpack_codes(const uint8_t *row, int64_t first, int64_t count, uint8_t *codes) {
    const uint8_t *p = row + first * BITS / 8;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8, p += BITS) {
        uint64_t word = 0;
        std::memcpy(&word, p, BITS);
        word = spread_codes<BITS>(word);
        std::memcpy(codes + i, &word, 8);
    }
    for (int64_t j = 0; i + j < count; j++) {
        int64_t bit = j * BITS;
        int pair = p[bit / 8];
        if (bit % 8 + BITS > 8) pair |= p[bit / 8 + 1] << 8;
        codes[i + j] = pair >> (bit % 8) & ((1 << BITS) - 1);
    }
}

void unpack_codes(int bits, const uint8_t *row, int64_t first, int64_t count, uint8_t *codes) {
    switch (bits) {
        case 2: return unpack_codes<2>(row, first, count, codes);
        case 3: return unpack_codes<3>(row, first, count, codes);
        case 4: return unpack_codes<4>(row, first, count, codes);
        case 6: return unpack_codes<6>(row, first, count, codes);
        default: return unpack_codes<8>(row, first, count, codes);
    }
}

/* What a row needs to be turned into floats: scales (and zeros) of its groups, or of every column of a ternary matrix. */
class RowValues {
public:
    explicit RowValues(const leanlm_weight &weight, const float *column_factors = nullptr)
        : w(weight), factors(column_factors), scales(scale_space.of<float>(std::max(1, weight.groups))) {}

    void start(int64_t r) {
        row = r;
        if (w.kind != LEANLM_FLOAT) row_scales(w, r, scales);
    }

    /* Columns [first, first + count) of the row, first a multiple of 8. */
    void get(int64_t first, int64_t count, float *out) {
        const uint8_t *data = static_cast<const uint8_t *>(w.data) + row * w.row_bytes;
        if (w.kind == LEANLM_FLOAT) return widen_all(data, w.dtype, first, count, out);
        uint8_t codes[PIECE];
        for (int64_t at = 0; at < count; at += PIECE) {
            int64_t some = std::min<int64_t>(PIECE, count - at);
            unpack_codes(w.kind == LEANLM_TERNARY ? 2 : w.bits, data, first + at, some, codes);
            values(codes, first + at, some, out + at);
        }
    }

private:
    static constexpr int PIECE = 512;

    void values(const uint8_t *codes, int64_t first, int64_t count, float *out) const {
        if (w.kind == LEANLM_TERNARY) {
            steps(codes, count, 1, *scales, out);
            if (factors) for (int64_t i = 0; i < count; i++) out[i] *= factors[first + i];
            return;
        }
        if (w.g_idx || w.columns % w.groups) {
            for (int64_t i = 0; i < count; i++) {
                int64_t g = w.g_idx ? w.g_idx[first + i] : (first + i) * w.groups / w.columns;
                out[i] = (static_cast<float>(codes[i]) - zero(g)) * scales[g];
            }
            return;
        }
        int64_t size = w.columns / w.groups;
        for (int64_t at = 0; at < count;) {
            int64_t g = (first + at) / size, some = std::min(count - at, (g + 1) * size - (first + at));
            steps(codes + at, some, zero(g), scales[g], out + at);
            at += some;
        }
    }

    float zero(int64_t g) const { return w.zeros ? w.zeros[row * w.groups + g] : 1 << (w.bits - 1); }

    static void steps(const uint8_t *codes, int64_t count, float zero, float scale, float *out) {
        for (int64_t i = 0; i < count; i++) out[i] = (static_cast<float>(codes[i]) - zero) * scale;
    }

    static thread_local Scratch scale_space;
    const leanlm_weight &w;
    const float *factors;
    float *scales;
    int64_t row = 0;
};

thread_local Scratch RowValues::scale_space;
