/* Memory that a kernel works in, kept from call to call. */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace leanlm {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    ~Scratch() { std::free(data); }

    /* Room for `count` values, on a cache line; what stood there is lost. */
    template <class T>
    T *of(int64_t count) {
        size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) & ~size_t{63};  // a line more than is used
        if (bytes > size) {
            std::free(data);
            size = 0;
            data = std::aligned_alloc(64, bytes);
            if (!data) throw std::bad_alloc();
            size = bytes;
        }
        return static_cast<T *>(data);
    }

private:
    void *data = nullptr;
    size_t size = 0;
};

}  // namespace leanlm
