#pragma once

#include <cstdint>
#include <optional>

namespace trtprune::runtime {

/// The budget of an image: a number of visual tokens to keep, or a share of those it has.
class Budget {
  public:
    explicit Budget(std::int64_t keep) : keep_(keep) {}
    /// \param keep   The build's default.
    /// \param ratio  The share, above 0 and at most 1.
    /// \throws InputError  naming the share.
    Budget(std::int64_t keep, double ratio);

    std::int64_t keep() const noexcept { return keep_; }
    const std::optional<double>& ratio() const noexcept { return ratio_; }
    /// Tokens to keep of an image with so many; of a share at least 1, halves to the even number.
    std::int64_t of(std::int64_t visual_tokens) const;

    bool operator==(const Budget& other) const { return keep_ == other.keep_ && ratio_ == other.ratio_; }

  private:
    std::int64_t keep_;
    std::optional<double> ratio_;
};

}  // namespace trtprune::runtime
