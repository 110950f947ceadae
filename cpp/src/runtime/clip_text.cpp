#include "runtime/clip_text.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <trtprune/error.hpp>

#include "backend/tensor_names.hpp"
#include "files/reading.hpp"
#include "runtime/kv_cache.hpp"

namespace trtprune::runtime {

namespace roles = engine_dir::roles;

namespace {

constexpr const char* file_name = "clip_tokenizer.json";
constexpr const char* again = "build the directory again";
constexpr std::size_t largest_file = 64'000'000;
// The largest number of segments in one run of the text tower: a question has one, and a text of many pages must not
// take memory for all of them at once.
constexpr std::int64_t text_batch = 8;

std::string content(const engine_dir::EngineDir& config) {
    const bool listed =
        std::any_of(config.files.begin(), config.files.end(), [](const auto& file) { return file.first == file_name; });
    if (!listed) throw EngineDirError(std::string(file_name) + " is missing", again);
    const std::string path = config.path(file_name);
    std::string reason = "missing";
    try {
        if (auto text = files::read_bounded(path, largest_file)) return std::move(*text);
    } catch (const files::ReadError& error) {
        reason = error.what();
    }
    throw EngineDirError(path + ": cannot be read: " + reason, again);
}

// Tokens of a segment, which the file has as its truncation.
std::int64_t segment_length(const std::string& text) {
    const auto json = nlohmann::json::parse(text, nullptr, false);
    const auto truncation = json.is_object() ? json.find("truncation") : json.end();
    if (!json.is_object() || truncation == json.end() || !truncation->is_object()) return 0;
    const auto length = truncation->find("max_length");
    return length != truncation->end() && length->is_number_integer() ? length->get<std::int64_t>() : 0;
}

}  // namespace

ClipText::ClipText(const Chain& chain) : chain_(chain) {
    const engine_dir::ComponentInfo* component = chain.config().find(roles::clip_text);
    if (component == nullptr) return;
    const std::string text = content(chain.config());
    tokenizer_ = text::Tokenizer::from_json(text, file_name);
    longest_ = segment_length(text);
    around_ = tokenizer_->encode("", true).ids;
    if (longest_ < 3 || around_.size() != 2) {
        throw EngineDirError(std::string(file_name) + " does not cut texts into segments", again);
    }
    if (component->inputs.size() != 1 || component->inputs[0].shape.size() != 2) {
        throw EngineDirError(chain.config().root + ": the text tower has other inputs than ids", again);
    }
    if (const auto* length = std::get_if<std::int64_t>(&component->inputs[0].shape[1])) length_ = *length;
}

Tensors ClipText::read(const text::Prompt& prompt) const {
    if (!tokenizer_) return {};
    // Before minutes are spent on a text that will be refused.
    check_length(static_cast<std::int64_t>(prompt.ids.size()), 1, {chain_.config().kv.capacity});
    const std::vector<Ids> ids = segments(prompt.text);
    backend::Session& session = chain_.session(roles::clip_text);
    const auto count = static_cast<std::int64_t>(ids.size());
    const std::int64_t size = std::min(text_batch, session.max_batch());
    std::vector<Tensor> found;
    for (std::int64_t start = 0; start < count; start += size) {
        const std::int64_t stop = std::min(start + size, count);
        Ids batch;
        for (std::int64_t i = start; i < stop; ++i) {
            const Ids& row = ids[static_cast<std::size_t>(i)];
            batch.insert(batch.end(), row.begin(), row.end());
        }
        const Tensor input = Tensor::of(batch, {stop - start, static_cast<std::int64_t>(ids[0].size())});
        found.push_back(session.run({{names::input_ids, input}}).at(names::clip_text_embeds));
    }
    return {{names::clip_text_embeds, chain_.memory().concatenate(found)}};
}

std::vector<Ids> ClipText::segments(const std::string& text) const {
    const Ids ids = tokenizer_->encode(text, false).ids;
    const auto words = static_cast<std::size_t>(longest_ - 2);
    std::vector<Ids> rows;
    std::size_t width = length_ ? static_cast<std::size_t>(*length_) : 0;
    for (std::size_t start = 0; start == 0 || start < ids.size(); start += words) {
        Ids row{around_.front()};
        row.insert(row.end(), ids.begin() + static_cast<std::ptrdiff_t>(start),
                   ids.begin() + static_cast<std::ptrdiff_t>(std::min(start + words, ids.size())));
        row.push_back(around_.back());
        if (!length_) width = std::max(width, row.size());
        rows.push_back(std::move(row));
    }
    for (Ids& row : rows) {
        if (row.size() > width) {
            throw EngineDirError(std::string(file_name) + " cuts texts into " + std::to_string(row.size()) +
                                     " tokens, the text tower reads " + std::to_string(width),
                                 again);
        }
        row.resize(width, around_.back());
    }
    return rows;
}

}  // namespace trtprune::runtime
