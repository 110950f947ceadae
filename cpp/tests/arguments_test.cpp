#include "arguments.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <trtprune/error.hpp>

using namespace trtprune;

TEST_CASE("arguments are spelled as in Python") {
    CHECK(arguments::arg("keep", 64) == "keep=64");
    CHECK(arguments::arg("keep_ratio", 0.25) == "keep_ratio=0.25");
    CHECK(arguments::arg("stop", "a'b") == "stop=\"a'b\"");
    CHECK(arguments::arg("raw_prompt", true) == "raw_prompt=True");
    CHECK(arguments::arg("stop", std::string(300, 'x')) == "stop='" + std::string(158, 'x') + "…");
}

TEST_CASE("a number out of its range is an error that names the argument") {
    CHECK(arguments::whole("top_k", 0, 0) == 0);
    CHECK_THROWS_WITH_AS(arguments::whole("top_k", -1, 0, " (off)"), "top_k=-1: must be at least 0 (off)", InputError);
    CHECK(arguments::real("temperature", 0.5) == 0.5);
    CHECK_THROWS_WITH_AS(arguments::real("temperature", std::nan("")), "temperature=nan: must be a number", InputError);
}
