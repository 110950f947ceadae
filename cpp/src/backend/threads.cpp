#include "backend/threads.hpp"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace trtprune::backend {

namespace {

struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
};

// The numbers at the beginning of a file, one or two; nothing for a file that is missing or has other content.
std::vector<long long> numbers(const char* path, int count) {
    const std::unique_ptr<std::FILE, Close> file(std::fopen(path, "re"));
    long long first = 0, second = 0;
    if (!file) return {};
    const int read = std::fscanf(file.get(), count == 2 ? "%19lld %19lld" : "%19lld", &first, &second);
    if (read != count) return {};  // "max" is no number
    return count == 2 ? std::vector<long long>{first, second} : std::vector<long long>{first};
}

std::vector<std::pair<long long, long long>> quotas() {
    std::vector<std::pair<long long, long long>> found;
    const auto second = numbers("/sys/fs/cgroup/cpu.max", 2);  // cgroup v2
    if (!second.empty()) found.emplace_back(second[0], second[1]);
    // cgroup v1; a quota of -1 means no limit
    const auto quota = numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", 1);
    const auto period = numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", 1);
    if (!quota.empty() && !period.empty()) found.emplace_back(quota[0], period[0]);
    return found;
}

long long processors() {
    // The mask must be at least as wide as the machine has processors.
    for (int width = 1024; width <= (1 << 20); width *= 4) {
        cpu_set_t* mask = CPU_ALLOC(width);
        if (mask == nullptr) break;
        const std::size_t size = CPU_ALLOC_SIZE(width);
        const bool done = sched_getaffinity(0, size, mask) == 0;
        const int count = done ? CPU_COUNT_S(size, mask) : 0;
        CPU_FREE(mask);
        if (done) return count;
    }
    return std::max(1U, std::thread::hardware_concurrency());
}

}  // namespace

int available_threads() {
    long long count = processors();
    for (const auto& [quota, period] : quotas()) {
        if (quota > 0 && period > 0) count = std::min(count, (quota - 1) / period + 1);
    }
    return static_cast<int>(std::max(1LL, count));
}

}  // namespace trtprune::backend
