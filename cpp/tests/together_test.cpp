#include "together.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

using namespace trtprune;

TEST_CASE("every job runs once, with what it threw in its place") {
    for (const int threads : {-1, 0, 1, 2, 5, 100}) {
        CAPTURE(threads);
        std::vector<std::atomic<int>> runs(40);
        std::vector<std::function<void()>> jobs;
        for (std::size_t i = 0; i < runs.size(); ++i) {
            jobs.emplace_back([&runs, i] {
                ++runs[i];
                if (i % 7 == 3) throw std::runtime_error(std::to_string(i));
            });
        }
        const std::vector<std::exception_ptr> failures = run_together(jobs, threads);
        REQUIRE(failures.size() == jobs.size());
        for (std::size_t i = 0; i < jobs.size(); ++i) {
            CHECK(runs[i] == 1);
            CHECK((failures[i] != nullptr) == (i % 7 == 3));
            if (failures[i]) CHECK_THROWS_WITH(std::rethrow_exception(failures[i]), std::to_string(i).c_str());
        }
    }
    CHECK(run_together({}, 4).empty());
}

TEST_CASE("jobs run at the same time") {
    // Each waits for the other.
    std::atomic<int> there{0};
    const auto meet = [&] {
        ++there;
        while (there < 2) {
        }
    };
    run_together({meet, meet}, 2);
    CHECK(there == 2);
}
