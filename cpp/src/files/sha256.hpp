#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace trtprune::files {

/// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
class Sha256 {
  public:
    /// \param portable  Whether to do without the processor's instructions.
    explicit Sha256(bool portable = false);

    void update(const void* data, std::size_t size);
    void update(std::string_view text) { update(text.data(), text.size()); }

    /// The digest of all that was given, as 64 hexadecimal digits; the object is of no use behind it.
    std::string hex();

  private:
    std::array<std::uint32_t, 8> state_;
    std::array<std::uint8_t, 64> block_{};
    std::size_t filled_ = 0;
    std::uint64_t total_ = 0;
    bool portable_;
};

}  // namespace trtprune::files
