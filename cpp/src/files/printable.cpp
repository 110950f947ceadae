#include "files/printable.hpp"

#include <cstdint>
#include <cstdio>

#include "files/utf8.hpp"

namespace trtprune::files {

namespace {

bool is_space(std::uint32_t code) {
    return code == ' ' || (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x1F) || code == 0x85 ||
           code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
           code == 0x202F || code == 0x205F || code == 0x3000;
}

// Controls, format characters and private ones; some can move the cursor or turn the direction of the text.
bool is_hidden(std::uint32_t code) {
    static constexpr std::uint32_t ranges[][2] = {
        {0x0, 0x1F},        {0x7F, 0x9F},       {0xAD, 0xAD},        {0x600, 0x605},     {0x61C, 0x61C},
        {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},      {0x8E2, 0x8E2},     {0x180E, 0x180E},
        {0x200B, 0x200F},   {0x202A, 0x202E},   {0x2060, 0x206F},    {0xD800, 0xF8FF},   {0xFEFF, 0xFEFF},
        {0xFFF0, 0xFFFB},   {0x110BD, 0x110BD}, {0x110CD, 0x110CD},  {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3},
        {0x1D173, 0x1D17A}, {0xE0000, 0xE007F}, {0xF0000, 0x10FFFF},
    };
    for (const auto& range : ranges) {
        if (code <= range[1]) return code >= range[0];
    }
    return false;
}

std::string escape(std::uint32_t code) {
    char buffer[16];
    const char* form = code <= 0xFF ? "\\x%02x" : code <= 0xFFFF ? "\\u%04x" : "\\U%08x";
    std::snprintf(buffer, sizeof buffer, form, static_cast<unsigned>(code));
    return buffer;
}

// A character, or a byte that is none; `length` 0 says the latter.
struct Character {
    std::uint32_t code = 0;
    std::size_t length = 0;
};

Character next_character(std::string_view& text) {
    Character character;
    character.length = utf8_sequence(text, character.code);
    if (character.length == 0) character.code = static_cast<std::uint8_t>(text[0]);
    text.remove_prefix(character.length == 0 ? 1 : character.length);
    return character;
}

// The text as printable characters, its white space collapsed; each entry is one character of the line.
std::vector<std::string> line_characters(std::string_view text, std::size_t most) {
    std::vector<std::string> line;
    bool space = false;
    std::size_t read = 0;
    const auto add = [&](const std::string& printed) {
        if (space && !line.empty()) line.emplace_back(" ");
        space = false;
        line.push_back(printed);
    };
    while (!text.empty() && read < most) {
        ++read;
        const std::string_view before = text;
        const Character character = next_character(text);
        if (character.length != 0 && is_space(character.code)) {
            space = true;
        } else if (character.length != 0 && !is_hidden(character.code)) {
            add(std::string(before.substr(0, character.length)));
        } else {
            const std::string printed = escape(character.code);
            for (std::size_t i = 0; i < printed.size(); ++i) i == 0 ? add({printed[0]}) : line.push_back({printed[i]});
        }
    }
    if (!text.empty()) {
        space = true;
        add("…");
    }
    return line;
}

}  // namespace

std::string one_line(std::string_view text, std::size_t limit) {
    // Cut first: a message of megabytes must take no time. Escapes only make it longer.
    std::vector<std::string> line = line_characters(text, 4 * limit);
    if (line.size() > limit) {
        line.resize(limit - 1);
        while (!line.empty() && line.back() == " ") line.pop_back();
        line.emplace_back("…");
    }
    std::string joined;
    for (const std::string& character : line) joined += character;
    return joined;
}

std::string quoted(std::string_view text, std::size_t limit) {
    const bool doubled = text.find('\'') != text.npos && text.find('"') == text.npos;
    const char quote = doubled ? '"' : '\'';
    std::string line{quote};
    std::size_t count = 1;
    const auto add = [&](std::string_view piece, std::size_t characters) {
        if (count + characters > limit) piece = piece.substr(0, limit - count);  // an escape, of ASCII
        line += piece;
        count += characters;
    };
    while (!text.empty() && count < limit) {
        const std::string_view before = text;
        const Character character = next_character(text);
        const std::uint32_t code = character.code;
        if (code == '\n' || code == '\r' || code == '\t') {
            add(code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t", 2);
        } else if (code == '\\' || code == static_cast<std::uint8_t>(quote)) {
            add(std::string{'\\', static_cast<char>(code)}, 2);
        } else if (character.length == 0 || is_hidden(code) || (is_space(code) && code != ' ')) {
            const std::string printed = escape(code);
            add(printed, printed.size());
        } else {
            add(before.substr(0, character.length), 1);
        }
    }
    add(std::string_view(&quote, 1), 1);
    if (count > limit && line.size() > limit) return std::string(cut(line, limit));
    return line;
}

std::string_view cut(std::string_view text, std::size_t limit) {
    std::string_view rest = text;
    for (std::size_t i = 0; i < limit && !rest.empty(); ++i) next_character(rest);
    return text.substr(0, text.size() - rest.size());
}

std::vector<std::string_view> words(std::string_view text) {
    std::vector<std::string_view> found;
    std::size_t begin = 0;
    std::string_view rest = text;
    const auto end_word = [&](std::size_t end) {
        if (end > begin) found.push_back(text.substr(begin, end - begin));
    };
    while (!rest.empty()) {
        const std::size_t at = text.size() - rest.size();
        const Character character = next_character(rest);
        if (character.length != 0 && is_space(character.code)) {
            end_word(at);
            begin = text.size() - rest.size();
        }
    }
    end_word(text.size());
    return found;
}

}  // namespace trtprune::files
