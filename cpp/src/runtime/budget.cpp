#include "runtime/budget.hpp"

#include <algorithm>
#include <cmath>
#include <trtprune/error.hpp>

#include "arguments.hpp"

namespace trtprune::runtime {

using arguments::arg;

Budget::Budget(std::int64_t keep, double ratio) : keep_(keep), ratio_(ratio) {
    if (!(std::isfinite(ratio) && 0 < ratio && ratio <= 1)) {
        throw InputError(arg("keep_ratio", ratio) + ": must be a number above 0 and at most 1",
                         arg("keep_ratio", 0.25));
    }
}

std::int64_t Budget::of(std::int64_t visual_tokens) const {
    if (!ratio_) return keep_;
    const double share = std::nearbyint(*ratio_ * static_cast<double>(visual_tokens));
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(share));
}

}  // namespace trtprune::runtime
