#include "text/tokenizer.hpp"

#include <nlohmann/json.hpp>
#include <trtprune/error.hpp>

#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/decoders.hpp"
#include "text/json_fields.hpp"
#include "text/normalizers.hpp"
#include "text/post_processors.hpp"
#include "text/pre_tokenizers.hpp"
#include "text/tokenizer_file.hpp"
#include "text/utf8.hpp"

namespace trtprune::text {

struct Tokenizer::State {
    State(Bpe model, std::string file) : bpe(std::move(model)), name(std::move(file)) {}

    Bpe bpe;
    std::string name;
    std::unique_ptr<const Normalizer> normalizer;
    std::unique_ptr<const PreTokenizer> pre_tokenizer;
    std::unique_ptr<const PostProcessor> post_processor;
    std::unique_ptr<const Decoder> decoder;
    AddedTokens added;
    bool encode_special_tokens = false;
};

namespace {

// Places are kept in 32 bits.
constexpr std::size_t largest_text = 1U << 30;
// Each part takes the whole text in its hands; known tokenizers have less than ten.
constexpr std::size_t most_objects = 40;

const nlohmann::json& member(const nlohmann::json& object, const char* name) {
    static const nlohmann::json null;
    const auto found = object.find(name);
    return found == object.end() ? null : *found;
}

std::size_t count_objects(const nlohmann::json& value) {
    std::size_t count = value.is_object() ? 1 : 0;
    if (value.is_structured()) {
        for (const auto& part : value) count += count_objects(part);  // the reader of the file bounds the depth
    }
    return count;
}

const nlohmann::json& part(const nlohmann::json& members, const char* kind, const std::string& name) {
    const nlohmann::json& value = member(members, kind);
    if (count_objects(value) > most_objects)
        throw EngineDirError(name + ": its " + kind + " has too many parts for the C++ runtime",
                             "run the directory from Python");
    return value;
}

Bpe read_model(TokenizerFile& file, const std::string& name) {
    const Fields model(member(file.members, "model"), name + ": its model");
    const std::string kind = model.optional_text("type").value_or("BPE");
    if (kind != "BPE") model.refuse("'" + kind + "'");
    if (!file.has_vocabulary || !file.has_merges) model.wrong("Missing vocab/merges");
    if (model.has("dropout") && !(model.member("dropout").is_number() && model.member("dropout") == 0.0))
        model.refuse("'dropout', which draws tokens by chance,");
    BpeSettings settings;
    settings.unk_token = model.optional_text("unk_token");
    settings.continuing_subword_prefix = model.optional_text("continuing_subword_prefix").value_or("");
    settings.end_of_word_suffix = model.optional_text("end_of_word_suffix").value_or("");
    settings.fuse_unk = model.flag("fuse_unk", false);
    settings.byte_fallback = model.flag("byte_fallback", false);
    settings.ignore_merges = model.flag("ignore_merges", false);
    return Bpe(std::move(settings), std::move(file.vocabulary), file.merges(), name);
}

std::vector<AddedToken> read_added(const nlohmann::json& value, const std::string& name) {
    std::vector<AddedToken> tokens;
    if (value.is_null()) return tokens;
    const std::string where = name + ": its added_tokens";
    if (!value.is_array()) throw EngineDirError(where + " are no list", "correct the checkpoint's " + name);
    for (const auto& entry : value) {
        const Fields token(entry, where);
        token.number("id");
        tokens.push_back({token.text("content"), token.flag("single_word"), token.flag("lstrip"), token.flag("rstrip"),
                          token.flag("normalized"), token.flag("special")});
    }
    return tokens;
}

/// Characters for bytes; the library maps a place behind the text to that behind its last character.
class CharacterPlaces {
  public:
    explicit CharacterPlaces(std::string_view text) {
        characters_.reserve(text.size());
        std::int64_t index = -1;
        for (const char byte : text) {
            if (begins_char(byte)) ++index;
            characters_.push_back(index);
        }
    }

    std::pair<std::int64_t, std::int64_t> of(std::pair<std::int64_t, std::int64_t> bytes) const {
        const auto& [start, end] = bytes;
        if (!has(start)) return bytes;
        if (has(end)) return {at(start), at(end)};
        return {at(start), (has(end - 1) ? at(end - 1) : at(start) + 1) + 1};
    }

  private:
    bool has(std::int64_t byte) const { return byte >= 0 && byte < static_cast<std::int64_t>(characters_.size()); }
    std::int64_t at(std::int64_t byte) const { return characters_[static_cast<std::size_t>(byte)]; }

    std::vector<std::int64_t> characters_;
};

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<State> state) : state_(std::move(state)) {}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& name) {
    TokenizerFile file = read_tokenizer_file(json, name);
    const nlohmann::json& version = member(file.members, "version");
    if (!version.is_null() && version != "1.0")
        throw EngineDirError(name + " cannot be read: Unknown tokenizer version", "correct the checkpoint's " + name);
    auto state = std::make_shared<State>(read_model(file, name), name);
    state->normalizer = read_normalizer(part(file.members, "normalizer", name), name);
    state->pre_tokenizer = read_pre_tokenizer(part(file.members, "pre_tokenizer", name), name);
    state->post_processor = read_post_processor(member(file.members, "post_processor"), name);
    state->decoder = read_decoder(part(file.members, "decoder", name), name);
    Tokenizer tokenizer(std::move(state));
    tokenizer.add_tokens(read_added(member(file.members, "added_tokens"), name));
    return tokenizer;
}

void Tokenizer::add_tokens(const std::vector<AddedToken>& tokens) {
    state_->added.add(tokens, state_->bpe.vocabulary(), state_->normalizer.get(), state_->name);
}

void Tokenizer::replace_added_tokens(const std::vector<AddedTokenInfo>& tokens) {
    state_->added.replace(tokens, state_->bpe.vocabulary(), state_->name);
}

void Tokenizer::set_encode_special_tokens(bool value) {
    state_->encode_special_tokens = value;
}

Encoding Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
    if (text.size() > largest_text || !is_utf8(text))
        throw InputError("the prompt cannot be tokenised: it is no UTF-8 text of less than 1 GB",
                         "it was read in another encoding than it was written in: read or set it as UTF-8");
    std::vector<Piece> pieces = state_->added.extract(text, state_->normalizer.get(), state_->encode_special_tokens);
    if (state_->pre_tokenizer) state_->pre_tokenizer->apply(pieces);
    const CharacterPlaces places(text);
    std::vector<TokenGroup> groups(1);
    const auto add = [&](std::int64_t id, std::string spelling, std::pair<std::int64_t, std::int64_t> bytes) {
        groups[0].ids.push_back(id);
        groups[0].texts.push_back(std::move(spelling));
        groups[0].offsets.push_back(places.of(bytes));
    };
    for (const Piece& piece : pieces) {
        const std::string& word = piece.text.text();
        if (piece.id) {
            add(*piece.id, word, piece.text.original(0, word.size()));
            continue;
        }
        for (const auto& [id, start, end] : state_->bpe.tokenize(word))
            add(id, std::string(state_->bpe.vocabulary().text(id).value_or("")), piece.text.original(start, end));
    }
    if (state_->post_processor) state_->post_processor->apply(groups, add_special_tokens);
    Encoding encoding;
    for (TokenGroup& group : groups) {
        encoding.ids.insert(encoding.ids.end(), group.ids.begin(), group.ids.end());
        encoding.offsets.insert(encoding.offsets.end(), group.offsets.begin(), group.offsets.end());
    }
    return encoding;
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids, bool skip_special_tokens) const {
    std::vector<std::string> tokens;
    tokens.reserve(ids.size());
    for (const std::int64_t id : ids) {
        if (skip_special_tokens && state_->added.skips(id)) continue;
        if (std::optional<std::string> token = id_to_token(id)) tokens.push_back(std::move(*token));
    }
    if (state_->decoder) state_->decoder->apply(tokens);
    std::string text;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (i > 0 && !state_->decoder) text.push_back(' ');
        text += tokens[i];
    }
    return text;
}

std::optional<std::int64_t> Tokenizer::token_to_id(std::string_view token) const {
    if (const auto id = state_->added.id(token)) return *id;
    if (const auto id = state_->bpe.vocabulary().id(token)) return *id;
    return std::nullopt;
}

std::optional<std::string> Tokenizer::id_to_token(std::int64_t id) const {
    if (id < 0 || id > 0xFFFFFFFF) return std::nullopt;
    const auto number = static_cast<std::uint32_t>(id);
    if (auto text = state_->added.text(number)) return text;
    const auto text = state_->bpe.vocabulary().text(number);
    return text ? std::optional<std::string>(*text) : std::nullopt;
}

std::int64_t Tokenizer::size() const {
    auto size = static_cast<std::int64_t>(state_->bpe.vocabulary().size());
    for (const auto& [content, id] : state_->added.ids()) size += state_->bpe.vocabulary().id(content) ? 0 : 1;
    return size;
}

std::vector<std::int64_t> Tokenizer::skipped_ids() const {
    const auto& skipped = state_->added.skipped();
    return {skipped.begin(), skipped.end()};
}

std::vector<std::int64_t> Tokenizer::byte_ids() const {
    std::vector<std::int64_t> ids;
    if (!state_->decoder || !state_->decoder->joins_bytes()) return ids;
    const char* digits = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; ++byte) {
        const std::string token = std::string("<0x") + digits[byte >> 4] + digits[byte & 15] + ">";
        if (const auto id = token_to_id(token)) ids.push_back(*id);
    }
    return ids;
}

}  // namespace trtprune::text
