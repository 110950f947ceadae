#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "runtime/clock.hpp"
#include "runtime/half.hpp"
#include "runtime/numerics.hpp"
#include "runtime/rank.hpp"

using namespace trtprune::runtime;

namespace {

constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

trtprune::backend::Tensor block(const std::vector<float>& values, std::int64_t rows) {
    return trtprune::backend::Tensor::of(values, {rows, static_cast<std::int64_t>(values.size()) / rows});
}

}  // namespace

TEST_CASE("a sum has the rounding of NumPy's") {
    // np.sum and np.cumsum of np.float32([0.1] * 1000) differ in the last places.
    const std::vector<float> values(1000, 0.1F);
    CHECK(pairwise_sum(values) == 100.00001525878906F);
    CHECK(cumulative(values).back() == 99.99905F);
}

TEST_CASE("NaN is the largest number") {
    const std::vector<float> values{2.0F, nan_value, 1.0F, 2.0F};
    CHECK(std::isnan(largest(values)));
    CHECK(argmax(values) == 1);
    CHECK(argsort(values) == std::vector<std::size_t>{2, 0, 3, 1});
}

TEST_CASE("float16 and bfloat16 round halves to the even number") {
    CHECK(to_float16(1.0F) == 0x3C00);
    CHECK(to_float16(-2.0F) == 0xC000);
    CHECK(to_float16(65504.0F) == 0x7BFF);
    CHECK(to_float16(65519.0F) == 0x7BFF);
    CHECK(to_float16(65520.0F) == 0x7C00);
    CHECK(to_float16(0x1.002p0F) == 0x3C00);  // a half between 1 and the next number
    CHECK(to_float16(0x1.006p0F) == 0x3C02);  // a half above an odd one
    CHECK(to_float16(0x1p-24F) == 0x0001);    // the smallest number
    CHECK(to_float16(0x1p-25F) == 0x0000);    // half of it
    CHECK(to_float16(0x1.8p-25F) == 0x0001);
    CHECK(to_float16(0x1.8p-24F) == 0x0002);
    CHECK((to_float16(nan_value) & 0x7FFF) > 0x7C00);
    CHECK(to_bfloat16(1.0F) == 0x3F80);
    CHECK(to_bfloat16(0x1.01p0F) == 0x3F80);
    CHECK(to_bfloat16(0x1.03p0F) == 0x3F82);
    CHECK((to_bfloat16(nan_value) & 0x7FFF) > 0x7F80);
}

TEST_CASE("milliseconds are rounded as in Python") {
    CHECK(rounded(0.0625) == 0.062);
    CHECK(rounded(1.0005) == 1.0);  // is a little less
    CHECK(rounded(2.0015) == 2.002);
    CHECK(rounded(12345.6789) == 12345.679);
}

TEST_CASE("the rank of a block is the number of its singular values above the noise") {
    CHECK(matrix_rank(block({1, 0, 0, 0, 1, 0}, 2)) == 2);
    CHECK(matrix_rank(block({1, 2, 3, 2, 4, 6}, 2)) == 1);
    CHECK(matrix_rank(block({1, 2, 2, 4, 3, 6.0001F}, 3)) == 2);
    CHECK(matrix_rank(block({0, 0, 0, 0}, 2)) == 0);
    CHECK(matrix_rank(block({1, nan_value, 0, 1}, 2)) == 0);
    // Sums of three rows: np.linalg.matrix_rank says 3.
    std::vector<float> values;
    for (int i = 0; i < 12; ++i) {
        for (int j = 0; j < 40; ++j) {
            values.push_back(static_cast<float>(std::sin(j) * i + std::cos(3 * j) * (i * i % 7) + (j % 5) * (i % 3)));
        }
    }
    CHECK(matrix_rank(block(values, 12)) == 3);
}
