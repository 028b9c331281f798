/* The kernels: functions of the interface that are compiled once per instruction set, and the table that holds them.
 *
 * A kernel source defines, in namespace leanlm::LEANLM_NAMESPACE, a function for each of its names in LEANLM_KERNELS, with the
 * signature of leanlm_<name>. */
#pragma once

#include "leanlm.h"

#define LEANLM_KERNELS(KERNEL) \
    KERNEL(matmul)             \
    KERNEL(embed)              \
    KERNEL(norm)               \
    KERNEL(gated_norm)         \
    KERNEL(activate)           \
    KERNEL(conv)               \
    KERNEL(ssd)                \
    KERNEL(scan)               \
    KERNEL(rotate)             \
    KERNEL(attend)             \
    KERNEL(telescope)          \
    KERNEL(read)

#define LEANLM_DECLARE(name) decltype(leanlm_##name) name;
#define LEANLM_POINTER(name) decltype(&leanlm_##name) name;
#define LEANLM_PORTABLE(name) portable::name,
#define LEANLM_AVX2(name) avx2::name,
#define LEANLM_AVX512(name) avx512::name,

namespace leanlm {

struct Kernels {
    LEANLM_KERNELS(LEANLM_POINTER)
};

namespace portable {
LEANLM_KERNELS(LEANLM_DECLARE)
}
namespace avx2 {
LEANLM_KERNELS(LEANLM_DECLARE)
}
namespace avx512 {
LEANLM_KERNELS(LEANLM_DECLARE)
}

}  // namespace leanlm
