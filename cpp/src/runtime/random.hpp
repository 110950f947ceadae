#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace trtprune::runtime {

/// Random numbers of one row, the same as `numpy.random.Generator(Philox(key=SeedSequence(seed).generate_state(2)))`.
///
/// Philox 4x64 with ten rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.  The key comes from
/// NumPy's SeedSequence, after M. E. O'Neill's `seed_seq_fe`.
class Random {
  public:
    /// \param seed  Equal seeds give equal numbers; not set: other numbers in every run.
    explicit Random(std::optional<std::uint64_t> seed);

    /// The next number, from 0 to below 1, a multiple of 2^-53.
    double next();

  private:
    std::uint64_t next_word();

    std::array<std::uint64_t, 2> key_{};
    std::array<std::uint64_t, 4> counter_{};
    std::array<std::uint64_t, 4> block_{};
    std::size_t used_ = 4;
};

}  // namespace trtprune::runtime
