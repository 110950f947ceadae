#include "files/json.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

using trtprune::files::BigInteger;
using trtprune::files::Json;
using trtprune::files::JsonError;
using trtprune::files::parse_json;

namespace {

std::string fault(const std::string& text) {
    try {
        parse_json(text);
    } catch (const JsonError& error) {
        return error.what();
    }
    return "none";
}

}  // namespace

TEST_CASE("numbers are integers of any size, or floats, as they are written") {
    CHECK(*parse_json("-9223372036854775808").get<std::int64_t>() == INT64_MIN);
    CHECK(parse_json("9223372036854775808").get<BigInteger>()->digits == "9223372036854775808");
    CHECK(*parse_json("1.0").get<double>() == 1.0);
    CHECK(std::isinf(*parse_json("1e400").get<double>()));
    CHECK(*parse_json("-1e-400").get<double>() == 0.0);
    CHECK(std::isnan(*parse_json(" NaN ").get<double>()));
    CHECK(fault("01") == "Extra data: line 1 column 2 (char 1)");
}

TEST_CASE("an object keeps the order of its members, and the last of equal ones") {
    const Json value = parse_json(R"({"b": 1, "a": 2, "b": 3})");
    const auto& members = *value.get<Json::Object>();
    REQUIRE(members.size() == 2);
    CHECK(members[0].first == "b");
    CHECK(*members[0].second.get<std::int64_t>() == 3);
    CHECK(value.member("c") == nullptr);
}

TEST_CASE("faults are told with Python's words and places, which count characters") {
    CHECK(fault("") == "Expecting value: line 1 column 1 (char 0)");
    CHECK(fault("[\n\"\xc3\xa9\" 1]") == "Expecting ',' delimiter: line 2 column 5 (char 6)");
    CHECK(fault("\xff") == "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte");
    CHECK(fault(std::string(100000, '[')) == "nested too deeply");
    CHECK(fault(std::string(201, '[') + std::string(201, ']')) == "nested too deeply");
    CHECK(fault(std::string(200, '[') + std::string(200, ']')) == "none");
    CHECK(fault("\"\\ud800\"") == "a text with half of a character, a lone surrogate");
    CHECK(fault(std::string(5000, '9')) == "a number of thousands of digits");
}

TEST_CASE("escapes become UTF-8, pairs of surrogates one character") {
    CHECK(*parse_json(R"("\u00e9\ud83d\ude00\n\/")").get<std::string>() == "\xc3\xa9\xf0\x9f\x98\x80\n/");
}
