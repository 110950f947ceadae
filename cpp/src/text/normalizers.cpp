#include "text/normalizers.hpp"

#include <array>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "text/json_fields.hpp"
#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

class Chain : public Normalizer {
  public:
    explicit Chain(std::vector<std::unique_ptr<const Normalizer>> parts) : parts_(std::move(parts)) {}
    void apply(AlignedText& text) const override {
        for (const auto& part : parts_) part->apply(text);
    }

  private:
    std::vector<std::unique_ptr<const Normalizer>> parts_;
};

class NormalForm : public Normalizer {
  public:
    NormalForm(bool compatible, bool composed) : compatible_(compatible), composed_(composed) {}
    void apply(AlignedText& text) const override {
        text.transform(normal_form(characters(text.text()), compatible_, composed_));
    }

  private:
    bool compatible_, composed_;
};

class Lowercase : public Normalizer {
  public:
    void apply(AlignedText& text) const override {
        std::vector<Change> changes;
        for (const char32_t point : characters(text.text())) {
            int change = 0;
            for (const char32_t lower : lowercase(point)) changes.push_back({lower, std::exchange(change, 1)});
        }
        text.transform(changes);
    }
};

class Strip : public Normalizer {
  public:
    Strip(bool left, bool right) : left_(left), right_(right) {}
    void apply(AlignedText& text) const override {
        if (left_ && right_) return text.strip(true, true);
        if (left_) text.strip(true, false);
        if (right_) text.strip(false, true);
    }

  private:
    bool left_, right_;
};

class Prepend : public Normalizer {
  public:
    explicit Prepend(std::string text) : text_(std::move(text)) {}
    void apply(AlignedText& text) const override { text.prepend(text_); }

  private:
    std::string text_;
};

class Replace : public Normalizer {
  public:
    Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
    void apply(AlignedText& text) const override {
        if (!text.empty()) text.replace(cuts_of(pattern_, text.text()), content_);
    }

  private:
    Pattern pattern_;
    std::string content_;
};

class ByteLevel : public Normalizer {
  public:
    void apply(AlignedText& text) const override {
        if (!text.empty()) spell_bytes(text);
    }
};

/// GPT-2's table: printable bytes stand for themselves, the others for the characters from U+0100 on.
std::array<char32_t, 256> spellings() {
    std::array<char32_t, 256> found{};
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        found[byte] = printable ? byte : next++;
    }
    return found;
}

}  // namespace

char32_t byte_spelling(unsigned char byte) {
    static const std::array<char32_t, 256> table = spellings();
    return table[byte];
}

void spell_bytes(AlignedText& text) {
    std::vector<Change> changes;
    changes.reserve(text.text().size());
    for (const char byte : text.text())
        changes.push_back({byte_spelling(static_cast<unsigned char>(byte)), begins_char(byte) ? 0 : 1});
    text.transform(changes);
}

Pattern read_pattern(const nlohmann::json& value, const std::string& where) {
    const Fields fields(value, where);
    if (value.size() == 1 && fields.has("String")) return Pattern::from_text(fields.text("String"), where);
    if (value.size() == 1 && fields.has("Regex")) return Pattern::from_regex(fields.text("Regex"), where);
    fields.wrong("its pattern is neither String nor Regex");
}

std::unique_ptr<const Normalizer> read_normalizer(const nlohmann::json& value, const std::string& name, int depth) {
    if (value.is_null()) return nullptr;
    const Fields fields(value, name + ": its normalizer");
    const std::string kind = fields.text("type");
    if (depth > deepest_part) fields.refuse("a nesting of more than " + std::to_string(deepest_part));
    if (kind == "Sequence") {
        std::vector<std::unique_ptr<const Normalizer>> parts;
        for (const auto& part : fields.list("normalizers")) {
            if (part.is_null()) fields.wrong("a part is null");
            parts.push_back(read_normalizer(part, name, depth + 1));
        }
        return std::make_unique<Chain>(std::move(parts));
    }
    if (kind == "NFC") return std::make_unique<NormalForm>(false, true);
    if (kind == "NFD") return std::make_unique<NormalForm>(false, false);
    if (kind == "NFKC") return std::make_unique<NormalForm>(true, true);
    if (kind == "NFKD") return std::make_unique<NormalForm>(true, false);
    if (kind == "Lowercase") return std::make_unique<Lowercase>();
    if (kind == "Strip") return std::make_unique<Strip>(fields.flag("strip_left"), fields.flag("strip_right"));
    if (kind == "Prepend") return std::make_unique<Prepend>(fields.text("prepend"));
    if (kind == "ByteLevel") return std::make_unique<ByteLevel>();
    if (kind == "Replace")
        return std::make_unique<Replace>(read_pattern(fields.member("pattern"), fields.where()),
                                         fields.text("content"));
    fields.refuse("'" + kind + "'");
}

}  // namespace trtprune::text
