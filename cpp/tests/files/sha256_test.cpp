#include "files/sha256.hpp"

#include <doctest/doctest.h>

#include <string>

using trtprune::files::Sha256;

namespace {

std::string digest(const std::string& text, bool portable, std::size_t piece) {
    Sha256 sha(portable);
    for (std::size_t at = 0; at < text.size(); at += piece) sha.update(std::string_view(text).substr(at, piece));
    return sha.hex();
}

}  // namespace

// The examples of FIPS 180-4.
TEST_CASE("digests are those of the standard, with and without the processor's instructions, in any pieces") {
    const std::string letters = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    for (const bool portable : {false, true}) {
        for (const std::size_t piece : {1U, 7U, 64U, 1000U}) {
            CHECK(digest("", portable, piece) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
            CHECK(digest("abc", portable, piece) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
            CHECK(digest(letters, portable, piece) ==
                  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
        }
        CHECK(digest(std::string(1000000, 'a'), portable, 65537) ==
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}

TEST_CASE("lengths around the end of a block give the same with and without the instructions") {
    for (std::size_t size = 0; size < 200; ++size) {
        const std::string text(size, 'x');
        CHECK(digest(text, false, 64) == digest(text, true, 13));
    }
}
