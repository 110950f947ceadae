#include "text/utf8.hpp"

#include <doctest/doctest.h>

using namespace trtprune::text;

TEST_CASE("bytes that are no UTF-8 are known") {
    for (const char* text : {"", "a", "\u00e9", "\uffff", "\U0010FFFF"}) CHECK(is_utf8(text));
    for (const char* text :
         {"\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF5", "\xE2\x82"})
        CHECK_FALSE(is_utf8(text));
}

TEST_CASE("bytes that are no UTF-8 are replaced as in Rust") {
    // The examples of the Unicode Standard, section 3.9, table 3-8 and following.
    CHECK(lossy("a\xF1\x80\x80\xE1\x80\xC2"
                "b\x80"
                "c\x80\xBF"
                "d") == "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
    CHECK(lossy("\xE0\x80\x80") == "\uFFFD\uFFFD\uFFFD");
    CHECK(lossy("\xF0\x9F\x99") == "\uFFFD");
    CHECK(lossy("\xED\xA0\x80") == "\uFFFD\uFFFD\uFFFD");
}

TEST_CASE("characters are written and read") {
    for (const char32_t point : {U'a', U'\u00e9', U'\u20ac', U'\U0001F642'}) {
        const std::string text = to_utf8(point);
        CHECK(char_at(text, 0) == point);
        CHECK(char_length(text[0]) == text.size());
        CHECK(before(text, text.size()) == 0);
    }
    CHECK(count_chars("a\u00e9\u20ac\U0001F642") == 4);
}
