/* Five trits in a byte, as files hold them, into 2-bit codes, as they are run. */
#include <array>
#include <cstdint>
#include <cstring>

#include "leanlm.h"

namespace {

/* The five codes of every byte, 10 bits: multiplying by three pushes out one digit after the other. */
std::array<uint16_t, 256> codes_of_bytes() {
    std::array<uint16_t, 256> found{};
    for (int byte = 0; byte < 256; ++byte)
        for (int digit = 0, rest = byte; digit < 5; ++digit, rest &= 255) {
            rest *= 3;
            found[byte] |= static_cast<uint16_t>((rest >> 8) << (2 * digit));
        }
    return found;
}

const std::array<uint16_t, 256> CODES = codes_of_bytes();

uint64_t five_bytes(const uint8_t *packed, int64_t count) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint64_t>(CODES[packed[i]]) << (10 * i);
    return bits;
}

void unpack_row(const uint8_t *packed, int64_t n, uint8_t *codes) {
    int64_t given = (n + 4) / 5, left = (n + 3) / 4;
    uint8_t &last = codes[left - 1];
    for (; left >= 8; packed += 4, given -= 4, codes += 5, left -= 5) { /* eight bytes are written, five of them meant */
        const uint64_t bits = five_bytes(packed, 4);
        std::memcpy(codes, &bits, 8);
    }
    for (; left > 0; packed += 4, given -= 4, codes += 5, left -= 5) {
        const uint64_t bits = five_bytes(packed, given < 4 ? given : 4);
        std::memcpy(codes, &bits, static_cast<size_t>(left < 5 ? left : 5));
    }
    if (n % 4) last &= static_cast<uint8_t>((1 << 2 * (n % 4)) - 1);
}

} // namespace

extern "C" __attribute__((visibility("default"))) void leanlm_codes_of_trits(const uint8_t *packed, int64_t R, int64_t n,
                                                                             uint8_t *codes) {
    for (int64_t row = 0; row < R; ++row) unpack_row(packed + row * ((n + 4) / 5), n, codes + row * ((n + 3) / 4));
}
