#include "runtime/random.hpp"

#include <random>
#include <vector>

namespace trtprune::runtime {

namespace {

using Words = std::vector<std::uint32_t>;

constexpr std::size_t pool_size = 4;

class Hash {
  public:
    Hash(std::uint32_t constant, std::uint32_t factor) : constant_(constant), factor_(factor) {}

    std::uint32_t operator()(std::uint32_t value) {
        value ^= constant_;
        constant_ *= factor_;
        value *= constant_;
        return value ^ (value >> 16);
    }

  private:
    std::uint32_t constant_;
    std::uint32_t factor_;
};

std::uint32_t mix(std::uint32_t x, std::uint32_t y) {
    const std::uint32_t result = 0xca01f9ddU * x - 0x4973f715U * y;
    return result ^ (result >> 16);
}

// SeedSequence's pool of entropy, and two words of state from it.
std::array<std::uint64_t, 2> state_of(const Words& entropy) {
    std::array<std::uint32_t, pool_size> pool{};
    Hash hash(0x43b0d7e5U, 0x931e8875U);
    for (std::size_t i = 0; i < pool_size; ++i) pool[i] = hash(i < entropy.size() ? entropy[i] : 0);
    for (std::size_t source = 0; source < pool_size; ++source) {
        for (std::size_t target = 0; target < pool_size; ++target) {
            if (source != target) pool[target] = mix(pool[target], hash(pool[source]));
        }
    }
    Hash output(0x8b51f9ddU, 0x58f38dedU);
    std::array<std::uint64_t, 2> state{};
    for (std::size_t i = 0; i < 2 * state.size(); ++i) {
        state[i / 2] |= static_cast<std::uint64_t>(output(pool[i % pool_size])) << (32 * (i % 2));
    }
    return state;
}

void multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& high, std::uint64_t& low) {
    const std::uint64_t a_low = a & 0xFFFFFFFFU, a_high = a >> 32, b_low = b & 0xFFFFFFFFU, b_high = b >> 32;
    const std::uint64_t middle = a_high * b_low + ((a_low * b_low) >> 32);
    const std::uint64_t other = a_low * b_high + (middle & 0xFFFFFFFFU);
    high = a_high * b_high + (middle >> 32) + (other >> 32);
    low = a * b;
}

std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> c, std::array<std::uint64_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        std::uint64_t high0 = 0, low0 = 0, high1 = 0, low1 = 0;
        multiply(0xD2E7470EE14C6C93U, c[0], high0, low0);
        multiply(0xCA5A826395121157U, c[2], high1, low1);
        c = {high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0};
        key[0] += 0x9E3779B97F4A7C15U;
        key[1] += 0xBB67AE8584CAA73BU;
    }
    return c;
}

}  // namespace

Random::Random(std::optional<std::uint64_t> seed) {
    Words entropy;
    if (seed) {
        entropy = {static_cast<std::uint32_t>(*seed), static_cast<std::uint32_t>(*seed >> 32)};
    } else {
        std::random_device device;
        for (std::size_t i = 0; i < pool_size; ++i) entropy.push_back(device());
    }
    key_ = state_of(entropy);
}

double Random::next() {
    return static_cast<double>(next_word() >> 11) * 0x1.0p-53;
}

std::uint64_t Random::next_word() {
    if (used_ == block_.size()) {
        for (std::uint64_t& word : counter_) {
            if (++word != 0) break;
        }
        block_ = philox(counter_, key_);
        used_ = 0;
    }
    return block_[used_++];
}

}  // namespace trtprune::runtime
