/* The threads of the library: a pool that lives as long as the process.
 *
 * The caller works too. Between two calls the others spin for SPIN, so that the steps of one token follow each other without a
 * system call, and then sleep. Tasks are handed out one by one, to whoever is free: a task must compute its results alone and in
 * a fixed order, so that they do not depend on who runs it or on how many threads there are. */
#pragma once

#include <cstdint>
#include <type_traits>

namespace leanlm {

int threads();
int set_threads(int count);  // 0 on success

using Task = void (*)(void *context, int64_t task);

/* Runs task 0 .. count - 1 and returns when all are done. Called from one thread at a time, and not from a task. */
void run_tasks(int64_t count, Task task, void *context);

template <class Function>
void parallel_for(int64_t count, Function &&function) {
    using Plain = std::remove_reference_t<Function>;
    run_tasks(count, [](void *context, int64_t task) { (*static_cast<Plain *>(context))(task); }, &function);
}

}  // namespace leanlm
