#include "text/pattern.hpp"

#include <doctest/doctest.h>

#include <string>
#include <trtprune/error.hpp>
#include <vector>

using trtprune::text::Pattern;

namespace {

std::vector<std::string> matches(const std::string& expression, const std::string& text) {
    std::vector<std::string> found;
    for (const auto& place : Pattern::from_regex(expression, "t").find_all(text))
        found.push_back(text.substr(place.start, place.end - place.start));
    return found;
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("a pattern finds what Oniguruma finds") {
    CHECK(matches("ab|a", "aab") == Texts{"a", "ab"});
    CHECK(matches("a+?b|a", "aab") == Texts{"aab"});
    CHECK(matches("(?:ab)+", "ababa") == Texts{"abab"});
    CHECK(matches("(?:ab){1,2}", "ababab") == Texts{"abab", "ab"});
    CHECK(matches("(?:ab)+?", "abab") == Texts{"ab", "ab"});
    CHECK(matches("\\p{N}{1,3}", "12345") == Texts{"123", "45"});
    CHECK(matches("\\s+(?!\\S)|\\s+", "  a ") == Texts{" ", " ", " "});
    CHECK(matches("(?i:'LL|k)", "'ll'Ll\u212A") == Texts{"'ll", "'Ll", "\u212A"});
    CHECK(matches("[^\\r\\n\\p{L}-]+", "a1-2b") == Texts{"1", "2"});
    CHECK(matches("^a$", "a\na") == Texts{"a", "a"});
    CHECK(matches("x*", "axxa") == Texts{"", "xx", ""});
    CHECK(matches("\\u00e9|\\x{1F642}", "\u00e9\U0001F642") == Texts{"\u00e9", "\U0001F642"});
}

TEST_CASE("a pattern that is not supported is refused by name") {
    for (const char* expression : {"(?<=a)b", "a++", "a{1,2}?", "(a*)*", "\\bword", "[a&&b]", "\\p{Han}", "(?i:ss)",
                                   "a{2,1}", "(", ")", "[", "a{,2}", "(?>a)", "\\1", "(?i:[\\p{L}])", "\\uD800", "*"}) {
        CAPTURE(expression);
        CHECK_THROWS_AS(Pattern::from_regex(expression, "tokenizer.json"), trtprune::EngineDirError);
    }
}

TEST_CASE("a search ends after a number of steps that grows with the text") {
    const Pattern pattern = Pattern::from_regex("(?:a|aa)+$", "tokenizer.json");
    CHECK_THROWS_AS(pattern.find_all(std::string(100, 'a') + "b"), trtprune::InputError);
    const Pattern spaces = Pattern::from_regex("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", "tokenizer.json");
    CHECK(spaces.find_all(std::string(1000000, ' ') + "b").size() == 2);
}
