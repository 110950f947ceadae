#include "files/printable.hpp"

#include <doctest/doctest.h>

#include <string>
#include <trtprune/error.hpp>

using trtprune::files::one_line;

TEST_CASE("a text of any bytes becomes one printable line") {
    CHECK(one_line("  a \n\t b\r\n") == "a b");
    CHECK(one_line("\x1b[2J") == "\\x1b[2J");
    CHECK(one_line("caf\xc3\xa9 \xff") == "caf\xc3\xa9 \\xff");
    CHECK(one_line("a\xe2\x80\xae"
                   "b") == "a\\u202eb");
    CHECK(one_line(std::string(600, 'a')) == std::string(499, 'a') + "…");
    CHECK(one_line(std::string(500, 'a')) == std::string(500, 'a'));
}

TEST_CASE("an error has its message, its hint and both together") {
    const trtprune::InputError error("prompt: empty", "ask something");
    CHECK(error.code() == trtprune::ErrorCode::input);
    CHECK(error.message() == "prompt: empty");
    CHECK(error.hint() == "ask something");
    CHECK(std::string(error.what()) == "prompt: empty (ask something)");
}
