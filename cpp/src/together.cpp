#include "together.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>

namespace trtprune {

std::vector<std::exception_ptr> run_together(const std::vector<std::function<void()>>& jobs, int threads) {
    std::vector<std::exception_ptr> failures(jobs.size());
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1)) {
            try {
                jobs[i]();
            } catch (...) {
                failures[i] = std::current_exception();
            }
        }
    };
    std::vector<std::thread> others;
    const std::size_t most = std::min(jobs.size(), static_cast<std::size_t>(std::max(threads, 1)));
    others.reserve(most);
    try {
        while (others.size() + 1 < most) others.emplace_back(work);
    } catch (const std::system_error&) {
        // No further thread: those that run share the jobs.
    }
    work();
    for (std::thread& other : others) other.join();
    return failures;
}

}  // namespace trtprune
