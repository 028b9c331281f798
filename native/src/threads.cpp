#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace leanlm {
namespace {

constexpr auto SPIN = std::chrono::microseconds(50);
constexpr int MOST = 256;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

int read_number(const std::string &file) {
    int number = -1;
    if (FILE *stream = std::fopen(file.c_str(), "r")) {
        if (std::fscanf(stream, "%d", &number) != 1) number = -1;
        std::fclose(stream);
    }
    return number;
}

/* Physical cores among the CPUs this process may use: CPUs that share package and core count once. */
int physical_cores() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return std::max(1u, std::thread::hardware_concurrency());
    std::set<std::pair<int, int>> cores;
    int unknown = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        int package = read_number(topology + "physical_package_id"), core = read_number(topology + "core_id");
        if (core < 0) unknown++;
        else cores.insert({package, core});
    }
    return std::max(1, std::min(MOST, static_cast<int>(cores.size()) + unknown));
}

class Pool {
public:
    explicit Pool(int count) {
        for (int i = 1; i < count; i++) workers.emplace_back([this] { work(); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            ending = true;
            round.fetch_add(1);
        }
        wake.notify_all();
        for (auto &worker : workers) worker.join();
    }

    void run(int64_t tasks, Task function, void *argument) {
        task = function;
        context = argument;
        count = tasks;
        next.store(0, std::memory_order_relaxed);
        busy.store(static_cast<int>(workers.size()), std::memory_order_relaxed);
        round.fetch_add(1);  // sequentially consistent, as the reading of `asleep` after it
        if (asleep.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex);
            wake.notify_all();
        }
        take();
        while (busy.load(std::memory_order_acquire) > 0) pause();
    }

private:
    void take() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
    }

    void work() {
        for (unsigned seen = 0;;) {
            seen = await(seen);
            if (ending) return;
            take();
            busy.fetch_sub(1, std::memory_order_release);
        }
    }

    unsigned await(unsigned seen) {
        auto until = std::chrono::steady_clock::now() + SPIN;
        for (int turn = 1; round.load(std::memory_order_acquire) == seen; turn++) {
            pause();
            if (turn % 64 == 0 && std::chrono::steady_clock::now() > until) {
                std::unique_lock<std::mutex> lock(mutex);
                asleep.fetch_add(1);
                wake.wait(lock, [&] { return round.load() != seen; });
                asleep.fetch_sub(1);
            }
        }
        return round.load(std::memory_order_acquire);
    }

    std::vector<std::thread> workers;
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<unsigned> round{0};
    std::atomic<int> asleep{0};
    bool ending = false;
    Task task = nullptr;
    void *context = nullptr;
    int64_t count = 0;
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int> busy{0};
};

int wanted = 0;  // 0: not known yet
Pool *pool = nullptr;

void forget() { pool = nullptr; }  // in the child of a fork, which has none of its parent's threads

}  // namespace

int threads() {
    if (!wanted) wanted = physical_cores();
    return wanted;
}

int set_threads(int count) {
    if (count < 1 || count > MOST) return 1;
    if (count != wanted) {
        delete pool;
        pool = nullptr;
        wanted = count;
    }
    return 0;
}

void run_tasks(int64_t count, Task task, void *context) {
    if (count <= 1 || threads() == 1) {
        for (int64_t i = 0; i < count; i++) task(context, i);
        return;
    }
    if (!pool) {
        static bool watched = pthread_atfork(nullptr, nullptr, forget) == 0;
        (void)watched;
        pool = new Pool(threads());
    }
    pool->run(count, task, context);
}

}  // namespace leanlm
