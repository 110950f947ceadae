#include "runtime/clock.hpp"

#include <array>
#include <charconv>

namespace trtprune::runtime {

double rounded(double value) {
    // Through decimal digits, as Python rounds: half to even by the number's exact value.
    std::array<char, 400> buffer{};
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed, 3);
    double result = 0;
    std::from_chars(buffer.data(), end.ptr, result);
    return result;
}

std::map<std::string, double> Clock::read() const {
    std::map<std::string, double> timings;
    for (const auto& [name, ms] : ms_) timings[name] = rounded(ms);
    timings["total"] = rounded(since(start_));
    return timings;
}

}  // namespace trtprune::runtime
