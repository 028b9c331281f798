#include "workspace.h"

#include <cstdlib>
#include <new>

namespace leanlm {
namespace {

struct Block {
    float *data = nullptr;
    int64_t floats = 0;

    ~Block() { std::free(data); }

    float *at_least(int64_t wanted) {
        if (wanted <= floats) return data;
        std::free(data);
        floats = (wanted + 1023) / 1024 * 1024;
        data = static_cast<float *>(std::aligned_alloc(64, floats * sizeof(float)));
        if (!data) {
            floats = 0;
            throw std::bad_alloc();
        }
        return data;
    }
};

thread_local Block blocks[static_cast<int>(Workspace::Count)];

} // namespace

float *workspace(Workspace purpose, int64_t floats) { return blocks[static_cast<int>(purpose)].at_least(floats); }

} // namespace leanlm
