#include "text/prompt.hpp"

#include <algorithm>
#include <set>
#include <trtprune/error.hpp>
#include <utility>

#include "files/printable.hpp"
#include "text/aligned_text.hpp"
#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

constexpr std::size_t longest_text = longest_prompt / 2;

std::string quoted(const std::string& text) {
    return "'" + text + "'";
}

std::string grouped(std::size_t value) {
    std::string digits = std::to_string(value);
    for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
    return digits;
}

std::size_t count(const std::string& text, const std::string& part) {
    std::size_t found = 0;
    for (std::size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + part.size())) ++found;
    return found;
}

std::string without(std::string text, const std::string& part) {
    for (std::size_t i = text.find(part); i != std::string::npos; i = text.find(part, i)) text.erase(i, part.size());
    return text;
}

// Characters [start, end).
using Extent = std::pair<std::size_t, std::size_t>;

// Whether a token's place, which is not empty, has a common character with one of these, which ascend.
template <typename Token>
bool overlaps(const Token& token, const std::vector<Extent>& places) {
    const auto start = static_cast<std::size_t>(token.first), end = static_cast<std::size_t>(token.second);
    const auto found =
        std::partition_point(places.begin(), places.end(), [&](const Extent& place) { return place.second <= start; });
    return start < end && found != places.end() && found->first < end;
}

std::vector<std::u32string> split(const std::u32string& text, const std::u32string& part) {
    std::vector<std::u32string> pieces;
    std::size_t start = 0;
    for (std::size_t i = text.find(part); i != text.npos; i = text.find(part, start)) {
        pieces.push_back(text.substr(start, i - start));
        start = i + part.size();
    }
    pieces.push_back(text.substr(start));
    return pieces;
}

// Writes the markers of a prompt's images around and between their placeholders, one for each span; returns the
// markers' places, ascending.  Wrong numbers of images are left to the count of their tokens.
std::vector<Extent> write_markers(Rendered& rendered, const std::u32string& image_token, const Markers& markers) {
    const std::vector<std::u32string> pieces = split(rendered.text, image_token);
    if (pieces.size() != markers.size() + 1) return {};
    std::vector<std::vector<std::u32string>> texts(markers.size());
    std::size_t size = rendered.text.size();
    for (std::size_t image = 0; image < markers.size(); ++image) {
        for (const std::string& marker : markers[image]) {
            texts[image].push_back(characters(marker));
            size += texts[image].back().size() + image_token.size();
        }
    }
    if (size > longest_prompt) too_long();
    std::u32string text = pieces[0];
    std::vector<Extent> added;
    std::size_t start = rendered.start, end = rendered.end, before = pieces[0].size();
    for (std::size_t image = 0; image < markers.size(); ++image) {
        const std::size_t first = text.size();
        for (std::size_t number = 0; number < texts[image].size(); ++number) {
            if (number != 0) text += image_token;
            const std::size_t place = text.size();
            text += texts[image][number];
            if (place < text.size()) added.emplace_back(place, text.size());
        }
        // A place behind the placeholder moves by what the image's text is longer than it.
        const std::size_t written = text.size() - first;
        if (rendered.start > before) start = start + written - image_token.size();
        if (rendered.end > before) end = end + written - image_token.size();
        before += image_token.size() + pieces[image + 1].size();
        text += pieces[image + 1];
    }
    rendered = {std::move(text), start, end};
    return added;
}

std::string to_utf8_text(const std::u32string& points) {
    std::string text;
    for (const char32_t point : points) append(text, point);
    return text;
}

}  // namespace

std::vector<std::int64_t> Prompt::span(const std::string& name) const {
    std::set<std::int64_t> images(image_positions.begin(), image_positions.end());
    images.insert(markers.begin(), markers.end());
    std::vector<std::int64_t> chosen;
    if (name == "question" && !question.empty()) {
        chosen = question;
    } else {
        // Also a question of which no token can be told apart: what follows the image contains it.
        std::int64_t first = 0;
        if (name != "all" && !images.empty()) first = *images.rbegin() + 1;
        for (; first < static_cast<std::int64_t>(ids.size()); ++first) chosen.push_back(first);
    }
    chosen.erase(std::remove_if(chosen.begin(), chosen.end(), [&](auto i) { return images.count(i) != 0; }),
                 chosen.end());
    return chosen;
}

struct PromptEncoder::State {
    State(std::string_view content, TextInfo text, std::string token, std::int64_t id, std::optional<std::string> video)
        : tokenizer(Tokenizer::from_json(content)),
          info(std::move(text)),
          image_token(std::move(token)),
          image_token_id(id),
          video_token(std::move(video)) {}

    void check_placeholder() const;
    void check(const Turn& turn, bool raw) const;
    [[noreturn]] void miscounted(const std::string& text, std::int64_t found, std::int64_t images,
                                 const std::vector<Turn>& turns, bool raw) const;

    Tokenizer tokenizer;
    TextInfo info;
    std::string image_token;
    std::int64_t image_token_id;
    std::optional<std::string> video_token;
};

PromptEncoder::PromptEncoder(std::string_view tokenizer, TextInfo info, std::string image_token,
                             std::int64_t image_token_id, std::optional<std::string> video_token)
    : state_(std::make_unique<State>(tokenizer, std::move(info), std::move(image_token), image_token_id,
                                     std::move(video_token))) {
    state_->tokenizer.replace_added_tokens(state_->info.tokenizer.added_tokens);
    state_->tokenizer.set_encode_special_tokens(state_->info.tokenizer.encode_special_tokens);
    state_->check_placeholder();
}

PromptEncoder::PromptEncoder(PromptEncoder&&) noexcept = default;
PromptEncoder& PromptEncoder::operator=(PromptEncoder&&) noexcept = default;
PromptEncoder::~PromptEncoder() = default;

Prompt PromptEncoder::encode(const std::vector<Turn>& turns, bool raw, const Markers* markers) const {
    if (turns.empty()) throw InputError("the prompt has no turns", "ask a question");
    std::int64_t images = 0;
    for (const Turn& turn : turns) {
        state_->check(turn, raw);
        images += turn.images;
    }
    Rendered rendered;
    if (raw) {
        rendered.text = characters(turns.back().text);
        rendered.end = rendered.text.size();
    } else if (!state_->info.chat_template) {
        throw EngineDirError(state_->info.reason.value_or("the chat template is missing") +
                                 ", so it is not compiled: it runs in Python only",
                             "write the whole prompt yourself (raw_prompt), or run the directory from Python");
    } else {
        rendered = render(*state_->info.chat_template, turns);
    }
    std::int64_t spans = images;
    std::vector<Extent> added;
    if (markers != nullptr) {
        added = write_markers(rendered, characters(state_->image_token), *markers);
        spans = 0;
        for (const auto& texts : *markers) spans += static_cast<std::int64_t>(texts.size()) - 1;
    }
    if (rendered.text.size() > longest_prompt)
        throw InputError("the prompt has more than " + grouped(longest_prompt) + " characters",
                         "ask a shorter question");
    const std::string text = to_utf8_text(rendered.text);
    // As in transformers: no second copy of a first special token that the template itself prints.
    const std::string bos = state_->info.tokenizer.bos.value_or("");
    const bool printed = !bos.empty() && !raw && text.compare(0, bos.size(), bos) == 0;
    const Encoding encoding = state_->tokenizer.encode(text, !printed);
    Prompt prompt{encoding.ids, {}, {}, without(turns.back().text, state_->image_token), {}};
    const std::vector<Extent> question{{rendered.start, rendered.end}};
    for (std::size_t i = 0; i < encoding.ids.size(); ++i) {
        const auto index = static_cast<std::int64_t>(i);
        if (encoding.ids[i] == state_->image_token_id) {
            prompt.image_positions.push_back(index);
            continue;
        }
        if (overlaps(encoding.offsets[i], added)) {
            prompt.markers.push_back(index);
        } else if (overlaps(encoding.offsets[i], question)) {
            prompt.question.push_back(index);
        }
    }
    const auto found = static_cast<std::int64_t>(prompt.image_positions.size());
    if (found != spans) state_->miscounted(text, found, images, turns, raw);
    return prompt;
}

std::string PromptEncoder::decode(const std::vector<std::int64_t>& ids) const {
    return state_->tokenizer.decode(ids);
}

std::string PromptEncoder::token(std::int64_t id) const {
    return state_->tokenizer.id_to_token(id).value_or("");
}

Detokenizer PromptEncoder::detokenizer(const std::vector<std::string>& stop) const {
    return Detokenizer(state_->tokenizer, stop);
}

void PromptEncoder::State::check_placeholder() const {
    const auto number = tokenizer.token_to_id(image_token);
    if (number == image_token_id) {
        const auto ids = tokenizer.encode(image_token, false).ids;
        if (ids == std::vector<std::int64_t>{*number}) return;
        throw EngineDirError("tokenizer.json: splits the placeholder " + quoted(image_token) + " into " +
                                 std::to_string(ids.size()) + " tokens",
                             "add " + quoted(image_token) +
                                 " to added_tokens (or to tokenizer_config.json's added_tokens_decoder) as special");
    }
    const auto theirs = tokenizer.id_to_token(image_token_id);
    const std::string have =
        number ? quoted(image_token) + " is token " + std::to_string(*number) : "has no token " + quoted(image_token);
    const std::string known = theirs ? "has " + quoted(*theirs) + " there" : "has no such token";
    throw EngineDirError("tokenizer.json: " + have + "; the model's placeholder is token " +
                             std::to_string(image_token_id) + ": the tokenizer " + known,
                         "config.json's image_token_index and the tokenizer must be of one model: correct the one that "
                         "is not");
}

void PromptEncoder::State::check(const Turn& turn, bool raw) const {
    if (!is_utf8(turn.text))
        throw InputError("the " + turn.role + " text is not Unicode text: it has bytes that are no UTF-8",
                         "it was read in another encoding than it was written in: read or set it as UTF-8");
    const std::size_t size = count_chars(turn.text);
    if (size > longest_text)
        throw InputError("the " + turn.role + " text has " + grouped(size) + " characters; no prompt takes more than " +
                             grouped(longest_text),
                         "ask a shorter question");
    if (turn.images < 0) throw InputError("a turn has fewer than 0 images", "give its number of images");
    if (video_token && turn.text.find(*video_token) != std::string::npos)
        throw InputError("the " + turn.role + " text contains " + quoted(*video_token) + ", which stands for a video",
                         "videos are not supported: give single frames as images");
    if (!raw && turn.text.find(image_token) != std::string::npos)
        throw InputError("the " + turn.role + " text contains " + quoted(image_token) + ", which stands for an image",
                         "leave it out: images are put before the question; only a raw prompt holds it");
}

void PromptEncoder::State::miscounted(const std::string& text, std::int64_t found, std::int64_t images,
                                      const std::vector<Turn>& turns, bool raw) const {
    const auto written = static_cast<std::int64_t>(count(text, image_token));
    const std::string message =
        "the prompt has " + std::to_string(found) + " " + image_token + " for " + std::to_string(images) + " image(s)";
    if (raw) throw InputError(message, "a raw prompt needs one " + image_token + " an image");
    if (written != found)
        throw InputError("tokenizer.json makes " + std::to_string(found) + " image placeholders of the " +
                             std::to_string(written) + " " + image_token + " in the prompt",
                         "add " + quoted(image_token) + " to the tokenizer as a special token and build again");
    if (info.chat_template && info.chat_template->own_images)
        throw InputError(message, "the chat template writes " + image_token + " by itself: it takes one image, and " +
                                      (turns.size() > 1 ? "a conversation of one question" : "no more"));
    throw InputError(message, "the chat template leaves out or repeats images: correct it and build again, or place " +
                                  image_token + " yourself in a raw prompt (raw_prompt)");
}

}  // namespace trtprune::text
