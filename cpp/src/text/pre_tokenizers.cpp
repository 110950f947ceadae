#include "text/pre_tokenizers.hpp"

#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "text/json_fields.hpp"
#include "text/normalizers.hpp"
#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

// The pattern of GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py
constexpr char gpt2[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Replaces each piece that is no added token by parts of it.
template <typename Split>
void split_each(std::vector<Piece>& pieces, const Split& split) {
    std::vector<Piece> found;
    found.reserve(pieces.size());
    for (Piece& piece : pieces) {
        if (piece.id) {
            found.push_back(std::move(piece));
            continue;
        }
        for (AlignedText& part : split(piece.text)) {
            if (!part.empty()) found.push_back({std::move(part), std::nullopt});
        }
    }
    pieces = std::move(found);
}

std::vector<AlignedText> whole(AlignedText& text) {
    std::vector<AlignedText> found;
    found.push_back(std::move(text));
    return found;
}

class Chain : public PreTokenizer {
  public:
    explicit Chain(std::vector<std::unique_ptr<const PreTokenizer>> parts) : parts_(std::move(parts)) {}
    void apply(std::vector<Piece>& pieces) const override {
        for (const auto& part : parts_) part->apply(pieces);
    }

  private:
    std::vector<std::unique_ptr<const PreTokenizer>> parts_;
};

class ByteLevel : public PreTokenizer {
  public:
    ByteLevel(bool add_prefix_space, std::optional<Pattern> pattern)
        : add_prefix_space_(add_prefix_space), pattern_(std::move(pattern)) {}
    void apply(std::vector<Piece>& pieces) const override {
        split_each(pieces, [&](AlignedText& text) {
            if (add_prefix_space_ && !text.empty() && text.text()[0] != ' ') text.prepend(" ");
            if (!pattern_) return whole(text);
            return text.split(cuts_of(*pattern_, text.text()), Behavior::isolated);
        });
        for (Piece& piece : pieces) {
            if (!piece.id) spell_bytes(piece.text);
        }
    }

  private:
    bool add_prefix_space_;
    std::optional<Pattern> pattern_;
};

class Split : public PreTokenizer {
  public:
    Split(Pattern pattern, Behavior behavior, bool invert)
        : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
    void apply(std::vector<Piece>& pieces) const override {
        split_each(pieces, [&](AlignedText& text) {
            std::vector<Cut> cuts = cuts_of(pattern_, text.text());
            if (invert_) {
                for (Cut& cut : cuts) cut.match = !cut.match;
            }
            return text.split(cuts, behavior_);
        });
    }

  private:
    Pattern pattern_;
    Behavior behavior_;
    bool invert_;
};

class SplitAtCharacters : public PreTokenizer {
  public:
    SplitAtCharacters(bool (*chosen)(char32_t), Behavior behavior) : chosen_(chosen), behavior_(behavior) {}
    void apply(std::vector<Piece>& pieces) const override {
        split_each(pieces, [&](AlignedText& text) { return text.split(cuts_of(chosen_, text.text()), behavior_); });
    }

  private:
    bool (*chosen_)(char32_t);
    Behavior behavior_;
};

enum class Scheme { first, never, always };

class Metaspace : public PreTokenizer {
  public:
    Metaspace(char32_t replacement, Scheme scheme, bool split)
        : replacement_(replacement), text_(to_utf8(replacement)), scheme_(scheme), split_(split) {}
    void apply(std::vector<Piece>& pieces) const override {
        split_each(pieces, [&](AlignedText& text) {
            text.replace(cuts_of([](char32_t point) { return point == ' '; }, text.text()), text_);
            const bool wanted = scheme_ == Scheme::always || (scheme_ == Scheme::first && text.start() == 0);
            if (wanted && text.text().compare(0, text_.size(), text_) != 0) text.prepend(text_);
            if (!split_) return whole(text);
            const auto chosen = [&](char32_t point) { return point == replacement_; };
            return text.split(cuts_of(chosen, text.text()), Behavior::merged_with_next);
        });
    }

  private:
    char32_t replacement_;
    std::string text_;
    Scheme scheme_;
    bool split_;
};

Behavior behavior_of(const Fields& fields) {
    const std::string name = fields.text("behavior");
    const std::pair<const char*, Behavior> known[] = {{"Removed", Behavior::removed},
                                                      {"Isolated", Behavior::isolated},
                                                      {"MergedWithPrevious", Behavior::merged_with_previous},
                                                      {"MergedWithNext", Behavior::merged_with_next},
                                                      {"Contiguous", Behavior::contiguous}};
    for (const auto& [text, behavior] : known) {
        if (name == text) return behavior;
    }
    fields.refuse("the behavior '" + name + "'");
}

std::unique_ptr<const PreTokenizer> read_metaspace(const Fields& fields) {
    const std::string name = fields.optional_text("prepend_scheme").value_or("always");
    Scheme scheme = name == "always" ? Scheme::always : name == "first" ? Scheme::first : Scheme::never;
    if (scheme == Scheme::never && name != "never") fields.refuse("the prepend_scheme '" + name + "'");
    if (!fields.flag("add_prefix_space", true)) {
        if (fields.has("prepend_scheme") ? scheme != Scheme::never : true)
            fields.wrong("add_prefix_space does not match declared prepend_scheme");
        scheme = Scheme::never;
    }
    return std::make_unique<Metaspace>(fields.character("replacement"), scheme, fields.flag("split", true));
}

}  // namespace

std::unique_ptr<const PreTokenizer> read_pre_tokenizer(const nlohmann::json& value, const std::string& name,
                                                       int depth) {
    if (value.is_null()) return nullptr;
    const Fields fields(value, name + ": its pre_tokenizer");
    const std::string kind = fields.text("type");
    if (depth > deepest_part) fields.refuse("a nesting of more than " + std::to_string(deepest_part));
    if (kind == "Sequence") {
        std::vector<std::unique_ptr<const PreTokenizer>> parts;
        for (const auto& part : fields.list("pretokenizers")) {
            if (part.is_null()) fields.wrong("a part is null");
            parts.push_back(read_pre_tokenizer(part, name, depth + 1));
        }
        return std::make_unique<Chain>(std::move(parts));
    }
    if (kind == "ByteLevel") {
        const bool regex = fields.flag("use_regex", true);
        fields.flag("trim_offsets");
        std::optional<Pattern> pattern;
        if (regex) pattern = Pattern::from_regex(gpt2, fields.where());
        return std::make_unique<ByteLevel>(fields.flag("add_prefix_space"), std::move(pattern));
    }
    if (kind == "Split")
        return std::make_unique<Split>(read_pattern(fields.member("pattern"), fields.where()), behavior_of(fields),
                                       fields.flag("invert"));
    if (kind == "Digits")
        return std::make_unique<SplitAtCharacters>(
            is_numeric, fields.flag("individual_digits") ? Behavior::isolated : Behavior::contiguous);
    if (kind == "Punctuation")
        return std::make_unique<SplitAtCharacters>(is_punctuation,
                                                   fields.has("behavior") ? behavior_of(fields) : Behavior::isolated);
    if (kind == "Metaspace") return read_metaspace(fields);
    fields.refuse("'" + kind + "'");
}

}  // namespace trtprune::text
