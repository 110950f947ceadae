#include "text/post_processors.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <trtprune/error.hpp>

#include "text/aligned_text.hpp"
#include "text/json_fields.hpp"
#include "text/normalizers.hpp"

namespace trtprune::text {

namespace {

// A template may repeat the prompt; Python bounds the memory of that.
constexpr std::size_t most_tokens = 1U << 25;

void grow(std::size_t& total, std::size_t more) {
    total += more;
    if (total > most_tokens)
        throw InputError("the prompt cannot be tokenised: the post_processor makes too many tokens of it",
                         "the checkpoint's tokenizer.json is at fault, if other prompts fail, too");
}

class Chain : public PostProcessor {
  public:
    explicit Chain(std::vector<std::unique_ptr<const PostProcessor>> parts) : parts_(std::move(parts)) {}
    void apply(std::vector<TokenGroup>& groups, bool add_special_tokens) const override {
        for (const auto& part : parts_) part->apply(groups, add_special_tokens);
    }

  private:
    std::vector<std::unique_ptr<const PostProcessor>> parts_;
};

bool is_space(char32_t point) {
    return point == byte_spelling(' ') || is_rust_space(point);
}

/// Leaves white space at the ends of tokens out of their places.
void trim(TokenGroup& group, bool add_prefix_space) {
    for (std::size_t i = 0; i < group.texts.size(); ++i) {
        const std::u32string points = characters(group.texts[i]);
        const auto ink = [](char32_t point) { return !is_space(point); };
        const auto first = std::find_if(points.begin(), points.end(), ink);
        const auto last = std::find_if(points.rbegin(), points.rend(), ink);
        std::int64_t leading = first - points.begin();
        const std::int64_t trailing = last - points.rbegin();
        auto& [start, end] = group.offsets[i];
        if (leading > 0) {
            // One space before the first word is the one that was added: it has no place to be left out.
            if ((i == 0 || start == 0) && add_prefix_space && leading == 1) leading = 0;
            start = std::min(start + leading, end);
        }
        if (trailing > 0 && end >= trailing) end = std::max(end - trailing, start);
    }
}

class ByteLevel : public PostProcessor {
  public:
    ByteLevel(bool trims, bool add_prefix_space) : trims_(trims), add_prefix_space_(add_prefix_space) {}
    void apply(std::vector<TokenGroup>& groups, bool) const override {
        if (!trims_) return;
        for (TokenGroup& group : groups) trim(group, add_prefix_space_);
    }

  private:
    bool trims_, add_prefix_space_;
};

void add(TokenGroup& group, std::int64_t id, const std::string& text) {
    group.ids.push_back(id);
    group.texts.push_back(text);
    group.offsets.emplace_back(0, 0);
}

class Roberta : public PostProcessor {
  public:
    using Token = std::pair<std::string, std::uint32_t>;
    Roberta(Token first, Token last, bool trims, bool add_prefix_space)
        : first_(std::move(first)), last_(std::move(last)), trims_(trims), add_prefix_space_(add_prefix_space) {}
    void apply(std::vector<TokenGroup>& groups, bool add_special_tokens) const override {
        for (std::size_t i = 0; i < groups.size(); ++i) {
            TokenGroup& group = groups[i];
            if (trims_) trim(group, add_prefix_space_);
            if (!add_special_tokens) continue;
            const Token& begin = i == 0 ? first_ : last_;
            group.ids.insert(group.ids.begin(), begin.second);
            group.texts.insert(group.texts.begin(), begin.first);
            group.offsets.insert(group.offsets.begin(), {0, 0});
            add(group, last_.second, last_.first);
        }
    }

  private:
    Token first_, last_;
    bool trims_, add_prefix_space_;
};

class Template : public PostProcessor {
  public:
    /// A special token by name, or a group by its number.
    struct Part {
        std::string token;
        std::size_t group;
        bool special;
    };
    using Special = std::vector<std::pair<std::uint32_t, std::string>>;

    Template(std::vector<Part> single, std::vector<Part> pair, std::map<std::string, Special> tokens)
        : single_(std::move(single)), pair_(std::move(pair)), tokens_(std::move(tokens)) {}

    void apply(std::vector<TokenGroup>& groups, bool add_special_tokens) const override {
        if (groups.empty() || groups.size() > 2) refuse();
        std::vector<TokenGroup> found;
        std::size_t total = 0;
        for (const Part& part : groups.size() == 1 ? single_ : pair_) {
            if (!part.special) {
                if (part.group >= groups.size()) refuse();
                grow(total, groups[part.group].ids.size() + 1);
                found.push_back(groups[part.group]);
                continue;
            }
            if (!add_special_tokens) continue;
            const auto special = tokens_.find(part.token);
            if (special == tokens_.end()) refuse();
            grow(total, special->second.size() + 1);
            TokenGroup& group = found.emplace_back();
            for (const auto& [id, text] : special->second) add(group, id, text);
        }
        groups = std::move(found);
    }

  private:
    [[noreturn]] static void refuse() {
        throw InputError("the prompt cannot be tokenised: the template of the post_processor does not fit",
                         "the checkpoint's tokenizer.json is at fault, if other prompts fail, too");
    }

    std::vector<Part> single_, pair_;
    std::map<std::string, Special> tokens_;
};

std::vector<Template::Part> read_template(const Fields& fields, const char* name) {
    std::vector<Template::Part> parts;
    for (const auto& value : fields.list(name)) {
        const Fields part(value, fields.where());
        const bool special = part.has("SpecialToken");
        const Fields inside(part.member(special ? "SpecialToken" : "Sequence"), fields.where());
        const std::string id = inside.text("id");
        inside.number("type_id");
        if (!special && id != "A" && id != "B") fields.wrong("a Sequence is neither A nor B");
        parts.push_back({id, static_cast<std::size_t>(id == "B" ? 1 : 0), special});
    }
    return parts;
}

std::unique_ptr<const PostProcessor> read_template_processing(const Fields& fields) {
    std::map<std::string, Template::Special> tokens;
    const auto& members = fields.member("special_tokens");
    if (!members.is_object()) fields.wrong("'special_tokens' is no object");
    for (const auto& [key, value] : members.items()) {
        const Fields token(value, fields.where());
        token.text("id");
        const auto ids = token.list("ids"), texts = token.list("tokens");
        if (ids.size() != texts.size()) fields.wrong("a special token has another number of ids than of tokens");
        for (std::size_t i = 0; i < ids.size(); ++i) {
            if (!ids[i].is_number_unsigned() || ids[i].get<std::uint64_t>() > 0xFFFFFFFF || !texts[i].is_string())
                fields.wrong("a special token has an id that is no number or a token that is no text");
            tokens[key].emplace_back(ids[i].get<std::uint32_t>(), texts[i].get<std::string>());
        }
        tokens.try_emplace(key);
    }
    return std::make_unique<Template>(read_template(fields, "single"), read_template(fields, "pair"),
                                      std::move(tokens));
}

Roberta::Token read_token(const Fields& fields, const char* name) {
    const auto values = fields.list(name);
    if (values.size() != 2 || !values[0].is_string() || !values[1].is_number_unsigned() ||
        values[1].get<std::uint64_t>() > 0xFFFFFFFF)
        fields.wrong(std::string("'") + name + "' is no text with an id");
    return {values[0].get<std::string>(), values[1].get<std::uint32_t>()};
}

}  // namespace

std::unique_ptr<const PostProcessor> read_post_processor(const nlohmann::json& value, const std::string& name,
                                                         int depth) {
    if (value.is_null()) return nullptr;
    const Fields fields(value, name + ": its post_processor");
    const std::string kind = fields.text("type");
    if (depth > deepest_part) fields.refuse("a nesting of more than " + std::to_string(deepest_part));
    if (kind == "Sequence") {
        std::vector<std::unique_ptr<const PostProcessor>> parts;
        for (const auto& part : fields.list("processors")) {
            if (part.is_null()) fields.wrong("a part is null");
            parts.push_back(read_post_processor(part, name, depth + 1));
        }
        return std::make_unique<Chain>(std::move(parts));
    }
    if (kind == "ByteLevel")
        return std::make_unique<ByteLevel>(fields.flag("trim_offsets"), fields.flag("add_prefix_space"));
    if (kind == "RobertaProcessing")
        return std::make_unique<Roberta>(read_token(fields, "cls"), read_token(fields, "sep"),
                                         fields.flag("trim_offsets"), fields.flag("add_prefix_space"));
    if (kind == "TemplateProcessing") return read_template_processing(fields);
    fields.refuse("'" + kind + "'");
}

}  // namespace trtprune::text
