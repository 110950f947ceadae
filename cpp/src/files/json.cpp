#include "files/json.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <optional>

#include "files/utf8.hpp"

namespace trtprune::files {

namespace {

// Python's own limit, against conversions that take the square of the number of digits.
constexpr std::size_t max_digits = 4300;
// Beyond this the parser itself stops; up to it a fault of the text is the one that is told.
constexpr std::size_t deepest = 900;

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// Twice the same name: the value of the last, at the place of the first, as in a Python dict.
void drop_duplicates(Json::Object& members) {
    std::vector<std::size_t> order(members.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        const int compared = members[a].first.compare(members[b].first);
        return compared != 0 ? compared < 0 : a < b;
    });
    std::vector<bool> dropped(members.size());
    bool any = false;
    for (std::size_t i = 0; i < order.size();) {
        std::size_t last = i;
        while (last + 1 < order.size() && members[order[last + 1]].first == members[order[i]].first) ++last;
        for (std::size_t other = i + 1; other <= last; ++other) dropped[order[other]] = any = true;
        if (last > i) members[order[i]].second = std::move(members[order[last]].second);
        i = last + 1;
    }
    if (!any) return;
    std::size_t kept = 0;
    for (std::size_t i = 0; i < members.size(); ++i) {
        if (dropped[i]) continue;
        if (kept != i) members[kept] = std::move(members[i]);
        ++kept;
    }
    members.resize(kept);
}

// The scanner of CPython's _json.c: the same decisions at the same places.
class Parser {
  public:
    explicit Parser(std::string_view text) : text_(text) {}

    Json parse() {
        if (text_.substr(0, 3) == "\xEF\xBB\xBF") fail("Unexpected UTF-8 BOM (decode using utf-8-sig)", 0);
        skip_space();
        Json value = parse_value();
        skip_space();
        if (at_ != text_.size()) fail("Extra data", at_);
        if (too_deep_) throw JsonError("nested too deeply");
        return value;
    }

  private:
    [[noreturn]] void fail(const char* what, std::size_t at) const {
        std::size_t line = 1;
        std::size_t column = 1;
        std::size_t characters = 0;
        for (const char c : text_.substr(0, at)) {
            if ((static_cast<unsigned char>(c) & 0xC0U) == 0x80) continue;
            ++characters;
            column = c == '\n' ? 1 : column + 1;
            line += c == '\n' ? 1 : 0;
        }
        throw JsonError(std::string(what) + ": line " + std::to_string(line) + " column " + std::to_string(column) +
                        " (char " + std::to_string(characters) + ")");
    }

    bool ended() const { return at_ >= text_.size(); }
    bool is(char c) const { return !ended() && text_[at_] == c; }

    void skip_space() {
        while (is(' ') || is('\t') || is('\n') || is('\r')) ++at_;
    }

    bool take(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json parse_value() {
        if (ended()) fail("Expecting value", at_);
        switch (text_[at_]) {
            case '"':
                ++at_;
                return Json(parse_text());
            case '{':
                return nested([this] { return Json(parse_object()); });
            case '[':
                return nested([this] { return Json(parse_list()); });
            default:
                break;
        }
        if (take("null")) return Json();
        if (take("true")) return Json(true);
        if (take("false")) return Json(false);
        if (take("NaN")) return Json(std::numeric_limits<double>::quiet_NaN());
        if (take("Infinity")) return Json(std::numeric_limits<double>::infinity());
        if (take("-Infinity")) return Json(-std::numeric_limits<double>::infinity());
        return parse_number();
    }

    template <class Parse>
    Json nested(Parse parse_inner) {
        if (++depth_ > max_nesting) too_deep_ = true;
        if (depth_ > deepest) throw JsonError("nested too deeply");
        ++at_;
        Json value = parse_inner();
        --depth_;
        return value;
    }

    Json::Object parse_object() {
        Json::Object members;
        skip_space();
        if (is('}')) {
            ++at_;
            return members;
        }
        while (true) {
            if (!is('"')) fail("Expecting property name enclosed in double quotes", at_);
            ++at_;
            std::string name = parse_text();
            skip_space();
            if (!is(':')) fail("Expecting ':' delimiter", at_);
            ++at_;
            skip_space();
            members.emplace_back(std::move(name), parse_value());
            skip_space();
            if (is('}')) break;
            if (!is(',')) fail("Expecting ',' delimiter", at_);
            ++at_;
            skip_space();
        }
        ++at_;
        drop_duplicates(members);
        return members;
    }

    Json::List parse_list() {
        Json::List items;
        skip_space();
        if (is(']')) {
            ++at_;
            return items;
        }
        while (true) {
            items.push_back(parse_value());
            skip_space();
            if (is(']')) break;
            if (!is(',')) fail("Expecting ',' delimiter", at_);
            ++at_;
            skip_space();
        }
        ++at_;
        return items;
    }

    // Behind the opening quote.
    std::string parse_text() {
        const std::size_t begin = at_ - 1;
        std::string text;
        while (true) {
            const std::size_t from = at_;
            while (!ended() && text_[at_] != '"' && text_[at_] != '\\') {
                if (static_cast<unsigned char>(text_[at_]) <= 0x1F) fail("Invalid control character at", at_);
                ++at_;
            }
            if (ended()) fail("Unterminated string starting at", begin);
            text.append(text_.substr(from, at_ - from));
            ++at_;
            if (text_[at_ - 1] == '"') return text;
            if (ended()) fail("Unterminated string starting at", begin);
            if (text_[at_] == 'u') {
                append_utf8(text, parse_escaped_code());
                continue;
            }
            static constexpr std::string_view names = "\"\\/bfnrt";
            static constexpr std::string_view values = "\"\\/\b\f\n\r\t";
            const std::size_t place = names.find(text_[at_]);
            if (place == names.npos) fail("Invalid \\escape", at_ - 1);
            text += values[place];
            ++at_;
        }
    }

    // At the "u" of an escape: its code point, with that of the second half of a surrogate pair.
    std::uint32_t parse_escaped_code() {
        const std::uint32_t code = hexadecimal(at_);
        at_ += 5;
        if (code < 0xD800 || code > 0xDBFF || text_.substr(at_, 2) != "\\u" || at_ + 6 >= text_.size()) return code;
        const std::uint32_t second = hexadecimal(at_ + 1);
        if (second < 0xDC00 || second > 0xDFFF) return code;
        at_ += 6;
        return 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    }

    std::uint32_t hexadecimal(std::size_t at) const {
        // Python wants a character behind it, as a text has a closing quote.
        if (at + 5 >= text_.size()) fail("Invalid \\uXXXX escape", at);
        std::uint32_t code = 0;
        for (const char c : text_.substr(at + 1, 4)) {
            const char small = static_cast<char>(c | 0x20);
            const bool letter = small >= 'a' && small <= 'f';
            if (!is_digit(c) && !letter) fail("Invalid \\uXXXX escape", at);
            code = code * 16 + static_cast<std::uint32_t>(is_digit(c) ? c - '0' : small - 'a' + 10);
        }
        return code;
    }

    Json parse_number() {
        const std::size_t begin = at_;
        std::size_t end = begin + (text_[begin] == '-' ? 1 : 0);
        const auto digit_at = [&](std::size_t i) { return i < text_.size() && is_digit(text_[i]); };
        const auto skip_digits = [&] {
            while (digit_at(end)) ++end;
        };
        if (!digit_at(end)) fail("Expecting value", begin);
        if (text_[end] == '0') {
            ++end;
        } else {
            skip_digits();
        }
        bool is_float = false;
        if (end < text_.size() && text_[end] == '.' && digit_at(end + 1)) {
            is_float = true;
            ++end;
            skip_digits();
        }
        if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
            const std::size_t before = end++;
            if (end < text_.size() && (text_[end] == '-' || text_[end] == '+')) ++end;
            if (digit_at(end)) {
                is_float = true;
                skip_digits();
            } else {
                end = before;
            }
        }
        at_ = end;
        const std::string_view number = text_.substr(begin, end - begin);
        return is_float ? Json(real(number)) : integer(number);
    }

    static Json integer(std::string_view number) {
        std::int64_t value = 0;
        const auto result = std::from_chars(number.data(), number.data() + number.size(), value);
        if (result.ec == std::errc()) return Json(value);
        if (number.size() - (number[0] == '-' ? 1 : 0) > max_digits) {
            throw JsonError("a number of thousands of digits");
        }
        return Json(BigInteger{std::string(number)});
    }

    static double real(std::string_view number) {
        double value = 0;
        const auto result = std::from_chars(number.data(), number.data() + number.size(), value);
        if (result.ec == std::errc()) return value;
        // Too large or too small: which one, the place of the first digit says.
        const bool negative = number[0] == '-';
        const std::size_t e = std::min(number.find_first_of("eE"), number.size());
        const std::string_view mantissa = number.substr(negative ? 1 : 0, e - (negative ? 1 : 0));
        const std::size_t point = std::min(mantissa.find('.'), mantissa.size());
        const std::size_t first = std::min(mantissa.find_first_of("123456789"), mantissa.size());
        const std::string exponent = e < number.size() ? std::string(number.substr(e + 1)) : "0";
        const long long power = std::clamp(std::strtoll(exponent.c_str(), nullptr, 10), -(1LL << 40), 1LL << 40);
        const bool large = power + static_cast<long long>(point) - static_cast<long long>(first) > 0;
        const double end = large ? std::numeric_limits<double>::infinity() : 0.0;
        return negative ? -end : end;
    }

    std::string_view text_;
    std::size_t at_ = 0;
    std::size_t depth_ = 0;
    bool too_deep_ = false;
};

bool has_surrogate(std::string_view text) {
    // In UTF-8 a text of the parser is broken only by one.
    for (std::size_t i = 0; i + 1 < text.size(); ++i) {
        if (text[i] == '\xED' && static_cast<unsigned char>(text[i + 1]) >= 0xA0) return true;
    }
    return false;
}

bool has_surrogate(const Json& value) {
    if (const auto* text = value.get<std::string>()) return has_surrogate(*text);
    if (const auto* list = value.get<Json::List>()) {
        return std::any_of(list->begin(), list->end(), [](const Json& item) { return has_surrogate(item); });
    }
    if (const auto* object = value.get<Json::Object>()) {
        return std::any_of(object->begin(), object->end(), [](const auto& member) {
            return has_surrogate(member.first) || has_surrogate(member.second);
        });
    }
    return false;
}

}  // namespace

const Json* Json::member(std::string_view name) const {
    const auto* object = get<Object>();
    if (object == nullptr) return nullptr;
    for (const auto& [key, value] : *object) {
        if (key == name) return &value;
    }
    return nullptr;
}

const char* Json::type() const {
    static constexpr const char* names[] = {"NoneType", "bool", "int", "int", "float", "str", "list", "dict"};
    return names[value_.index()];
}

nlohmann::json Json::plain() const {
    if (const auto* value = get<bool>()) return *value;
    if (const auto* value = get<std::int64_t>()) return *value;
    if (const auto* value = get<BigInteger>()) return std::strtod(value->digits.c_str(), nullptr);
    if (const auto* value = get<double>()) return *value;
    if (const auto* value = get<std::string>()) return *value;
    if (const auto* list = get<List>()) {
        nlohmann::json array = nlohmann::json::array();
        for (const Json& item : *list) array.push_back(item.plain());
        return array;
    }
    if (const auto* object = get<Object>()) {
        nlohmann::json members = nlohmann::json::object();
        for (const auto& [name, item] : *object) members[name] = item.plain();
        return members;
    }
    return nullptr;
}

Json parse_json(std::string_view text) {
    const std::string fault = utf8_fault(text);
    if (!fault.empty()) throw JsonError(fault);
    Json value = Parser(text).parse();
    if (has_surrogate(value)) throw JsonError("a text with half of a character, a lone surrogate");
    return value;
}

}  // namespace trtprune::files
