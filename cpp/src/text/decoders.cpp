#include "text/decoders.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <trtprune/error.hpp>
#include <utility>

#include "text/aligned_text.hpp"
#include "text/json_fields.hpp"
#include "text/normalizers.hpp"
#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

// Replacements may let a text grow; Python bounds the memory of that.
constexpr std::size_t largest_text = 1U << 28;
constexpr char unreadable[] = "\xEF\xBF\xBD";

class Chain : public Decoder {
  public:
    explicit Chain(std::vector<std::unique_ptr<const Decoder>> parts) : parts_(std::move(parts)) {}
    void apply(std::vector<std::string>& tokens) const override {
        for (const auto& part : parts_) part->apply(tokens);
    }
    bool joins_bytes() const override {
        return std::any_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->joins_bytes(); });
    }

  private:
    std::vector<std::unique_ptr<const Decoder>> parts_;
};

class ByteLevel : public Decoder {
  public:
    ByteLevel() {
        bytes_.fill(-1);
        for (int byte = 0; byte < 256; ++byte) bytes_[byte_spelling(static_cast<unsigned char>(byte))] = byte;
    }
    void apply(std::vector<std::string>& tokens) const override {
        std::string bytes;
        for (const std::string& token : tokens) append_bytes(token, bytes);
        tokens.assign(1, lossy(bytes));
    }

  private:
    /// The bytes that a token spells; its own, if one of its characters spells none.
    void append_bytes(const std::string& token, std::string& bytes) const {
        const std::size_t size = bytes.size();
        for (std::size_t i = 0; i < token.size(); i += char_length(token[i])) {
            const char32_t point = char_at(token, i);
            const int byte = point < bytes_.size() ? bytes_[point] : -1;
            if (byte < 0) {
                bytes.replace(size, std::string::npos, token);
                return;
            }
            bytes.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
        }
    }

    std::array<int, 0x144> bytes_{};
};

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/// The byte of a token like <0x0A>; Rust reads a sign before a single digit, too.
std::optional<char> byte_of(const std::string& token) {
    if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return std::nullopt;
    const int high = token[3] == '+' ? 0 : hex_digit(token[3]), low = hex_digit(token[4]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<char>(static_cast<unsigned char>(high * 16 + low));
}

class ByteFallback : public Decoder {
  public:
    void apply(std::vector<std::string>& tokens) const override {
        std::vector<std::string> found;
        std::string bytes;
        const auto release = [&] {
            if (bytes.empty()) return;
            if (is_utf8(bytes))
                found.push_back(bytes);
            else
                found.insert(found.end(), bytes.size(), unreadable);
            bytes.clear();
        };
        for (std::string& token : tokens) {
            if (const auto byte = byte_of(token)) {
                bytes.push_back(*byte);
                continue;
            }
            release();
            found.push_back(std::move(token));
        }
        release();
        tokens = std::move(found);
    }
    bool joins_bytes() const override { return true; }
};

class Fuse : public Decoder {
  public:
    void apply(std::vector<std::string>& tokens) const override {
        std::string whole;
        for (const std::string& token : tokens) whole += token;
        tokens.assign(1, std::move(whole));
    }
};

class Replace : public Decoder {
  public:
    Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
    void apply(std::vector<std::string>& tokens) const override {
        std::size_t total = 0;
        for (std::string& token : tokens) {
            std::string text;
            for (const Cut& cut : token.empty() ? std::vector<Cut>() : cuts_of(pattern_, token)) {
                if (cut.match)
                    text += content_;
                else
                    text.append(token, cut.start, cut.end - cut.start);
                if (total + text.size() > largest_text)
                    throw EngineDirError("tokenizer.json cannot decode an answer: its decoder makes it too long",
                                         "correct the checkpoint's tokenizer.json and build again");
            }
            total += text.size();
            token = std::move(text);
        }
    }

  private:
    Pattern pattern_;
    std::string content_;
};

class Strip : public Decoder {
  public:
    Strip(char32_t content, std::size_t start, std::size_t stop) : content_(content), start_(start), stop_(stop) {}
    void apply(std::vector<std::string>& tokens) const override {
        for (std::string& token : tokens) {
            const std::u32string points = characters(token);
            std::size_t first = 0, last = points.size();
            while (first < std::min(start_, points.size()) && points[first] == content_) ++first;
            for (std::size_t i = 0; i < stop_; ++i) {
                // The library stops with an error at a token that is shorter than what is to be taken off its end.
                if (i >= points.size()) refuse();
                if (points[points.size() - 1 - i] != content_) break;
                last = points.size() - 1 - i;
            }
            if (first > last) refuse();
            std::string text;
            for (std::size_t i = first; i < last; ++i) append(text, points[i]);
            token = std::move(text);
        }
    }

  private:
    [[noreturn]] static void refuse() {
        throw EngineDirError("tokenizer.json cannot decode an answer: its Strip takes off more than a token has",
                             "correct the checkpoint's tokenizer.json and build again");
    }

    char32_t content_;
    std::size_t start_, stop_;
};

class Metaspace : public Decoder {
  public:
    Metaspace(char32_t replacement, bool never) : replacement_(replacement), never_(never) {}
    void apply(std::vector<std::string>& tokens) const override {
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            std::string text;
            for (const char32_t point : characters(tokens[i])) {
                if (point != replacement_)
                    append(text, point);
                else if (i > 0 || never_)
                    text.push_back(' ');
            }
            tokens[i] = std::move(text);
        }
    }

  private:
    char32_t replacement_;
    bool never_;
};

}  // namespace

std::unique_ptr<const Decoder> read_decoder(const nlohmann::json& value, const std::string& name, int depth) {
    if (value.is_null()) return nullptr;
    const Fields fields(value, name + ": its decoder");
    const std::string kind = fields.text("type");
    if (depth > deepest_part) fields.refuse("a nesting of more than " + std::to_string(deepest_part));
    if (kind == "Sequence") {
        std::vector<std::unique_ptr<const Decoder>> parts;
        for (const auto& part : fields.list("decoders")) {
            if (part.is_null()) fields.wrong("a part is null");
            parts.push_back(read_decoder(part, name, depth + 1));
        }
        return std::make_unique<Chain>(std::move(parts));
    }
    if (kind == "ByteLevel") return std::make_unique<ByteLevel>();
    if (kind == "ByteFallback") return std::make_unique<ByteFallback>();
    if (kind == "Fuse") return std::make_unique<Fuse>();
    if (kind == "Strip")
        return std::make_unique<Strip>(fields.character("content"), fields.number("start"), fields.number("stop"));
    if (kind == "Metaspace") {
        const bool never = fields.optional_text("prepend_scheme").value_or("always") == "never";
        return std::make_unique<Metaspace>(fields.character("replacement"), never);
    }
    if (kind == "Replace")
        return std::make_unique<Replace>(read_pattern(fields.member("pattern"), fields.where()),
                                         fields.text("content"));
    fields.refuse("'" + kind + "'");
}

}  // namespace trtprune::text
