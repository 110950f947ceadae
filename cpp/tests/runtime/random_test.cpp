#include "runtime/random.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

using trtprune::runtime::Random;

TEST_CASE("random numbers are those of NumPy's Philox with a key from its SeedSequence") {
    struct Case {
        std::uint64_t seed;
        std::vector<double> numbers;
    };
    // np.random.Generator(np.random.Philox(key=np.random.SeedSequence(seed).generate_state(2, np.uint64))).random()
    const std::vector<Case> cases{
        {0,
         {0x1.ccf2d9115c140p-7, 0x1.07f42307c03cep-2, 0x1.e2e209058bb92p-2, 0x1.76747919e0270p-4, 0x1.f5511e00551a6p-1,
          0x1.063adbd64b9b0p-2}},
        {7,
         {0x1.e011b0f91315ep-2, 0x1.b45f92f7e53e2p-2, 0x1.73b1799881d06p-2, 0x1.e619ce6624f20p-3, 0x1.1c2156d9dccccp-3,
          0x1.06231691ecb86p-1}},
        {(std::uint64_t{1} << 40) + 3,
         {0x1.88f665584b9d0p-5, 0x1.d5068926f3320p-4, 0x1.d08ae144d8216p-2, 0x1.c9a889b5ce138p-1, 0x1.a46a851af0b04p-3,
          0x1.03b9618f76780p-7}},
        {(std::uint64_t{1} << 63) - 1,
         {0x1.af68e5e916800p-5, 0x1.3f997189fb478p-1, 0x1.745e8e66863fep-2, 0x1.fcbf9510b9cfap-1, 0x1.c5239fb28b5a2p-1,
          0x1.a3acab6e8c238p-3}},
    };
    for (const Case& item : cases) {
        Random random(item.seed);
        for (const double number : item.numbers) CHECK(random.next() == number);
    }
}

TEST_CASE("without a seed the numbers differ from run to run") {
    Random first({}), second({});
    CHECK(first.next() != second.next());
}
