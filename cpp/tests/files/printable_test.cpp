#include "files/printable.hpp"

#include <doctest/doctest.h>

#include <string>
#include <trtprune/error.hpp>

#include "files/shown.hpp"

using trtprune::files::float_repr;
using trtprune::files::one_line;
using trtprune::files::quoted;
using trtprune::files::words;

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

TEST_CASE("a long line is cut before it is printed, and then again") {
    CHECK(one_line("a" + std::string(3000, ' ') + "b") == "a …");
    CHECK(one_line(std::string(498, 'a') + "\x1b") == std::string(498, 'a') + "\\…");
    CHECK(one_line(std::string(499, 'a') + " bc") == std::string(499, 'a') + "…");
}

TEST_CASE("a text in quotes is Python's repr, cut to a number of characters") {
    CHECK(quoted("a") == "'a'");
    CHECK(quoted("it's") == "\"it's\"");
    CHECK(quoted("\"it's\"") == "'\"it\\'s\"'");
    CHECK(quoted("\n\t\x1b\\\xc2\xa0\xc3\xa9") == "'\\n\\t\\x1b\\\\\\xa0\xc3\xa9'");
    CHECK(quoted("abcdef", 4) == "'abc");
    CHECK(quoted("\xc3\xa9\xc3\xa9\xc3\xa9", 3) == "'\xc3\xa9\xc3\xa9");
    CHECK(quoted("\x1b", 3) == "'\\x");
    CHECK(quoted("abcdef", 8) == "'abcdef'");
    CHECK(quoted("abcdef", 7) == "'abcdef");
}

TEST_CASE("floats are written as Python writes them") {
    CHECK(float_repr(100) == "100.0");
    CHECK(float_repr(0.1) == "0.1");
    CHECK(float_repr(1e16) == "1e+16");
    CHECK(float_repr(123456789012345680.0) == "1.2345678901234568e+17");
    CHECK(float_repr(9007199254740993.0) == "9007199254740992.0");
    CHECK(float_repr(0.0001) == "0.0001");
    CHECK(float_repr(0.00001) == "1e-05");
    CHECK(float_repr(-0.0) == "-0.0");
    CHECK(float_repr(5e-324) == "5e-324");
}

TEST_CASE("words lie between white space of any kind") {
    CHECK(words("").empty());
    CHECK(words(" \xe3\x80\x80 ").empty());
    CHECK(words(" a\xc2\xa0"
                "b\n") == std::vector<std::string_view>{"a", "b"});
}
