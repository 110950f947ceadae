#include "images/processor.hpp"

#include <algorithm>
#include <numeric>
#include <trtprune/error.hpp>

#include "files/shown.hpp"
#include "images/internvl.hpp"
#include "images/limits.hpp"
#include "images/llava_next.hpp"
#include "images/llava_onevision.hpp"
#include "images/qwen2_vl.hpp"
#include "images/single.hpp"
#include "images/smolvlm.hpp"

namespace trtprune::images {

namespace {

// All image processors.  A new one is a file beside this one and an entry here.
struct Entry {
    const char* name;
    std::unique_ptr<Processor> (*from_settings)(const Json& settings, const std::string& where);
};

constexpr Entry processors[] = {
    {Single::processor_name, Single::from_settings},
    {LlavaNext::processor_name, LlavaNext::from_settings},
    {LlavaOnevision::processor_name, LlavaOnevision::from_settings},
    {InternVl::processor_name, InternVl::from_settings},
    {Qwen2Vl::processor_name, Qwen2Vl::from_settings},
    {SmolVlm::processor_name, SmolVlm::from_settings},
};

}  // namespace

std::vector<std::int64_t> TokenPlan::span_lengths() const {
    return spans.empty() ? std::vector<std::int64_t>{tokens()} : spans;
}

std::vector<std::string> TokenPlan::span_texts() const {
    return markers.empty() ? std::vector<std::string>(span_lengths().size() + 1) : markers;
}

std::vector<std::int64_t> TokenPlan::candidates() const {
    return choices("drop");
}

std::vector<std::int64_t> TokenPlan::choices(const std::string& newlines) const {
    const bool all_newlines = newlines == "candidates";
    std::vector<std::int64_t> result;
    for (std::int64_t token = 0; token < tokens(); ++token) {
        const bool taken = is_newline(token) ? all_newlines : padding[static_cast<std::size_t>(token)] == 0;
        if (taken) result.push_back(token);
    }
    return result;
}

std::optional<std::vector<std::int64_t>> TokenPlan::without_choice(std::int64_t keep,
                                                                   const std::string& newlines) const {
    std::vector<std::int64_t> kept = choices(newlines);
    std::vector<std::int64_t> spare;  // padding alone
    for (std::int64_t token = 0; token < tokens(); ++token) {
        if (!is_newline(token) && padding[static_cast<std::size_t>(token)] != 0) spare.push_back(token);
    }
    const auto real = static_cast<std::int64_t>(kept.size());
    if (keep < real || (keep == real && real == tokens())) return {};
    if (keep >= real + static_cast<std::int64_t>(spare.size())) {
        std::vector<std::int64_t> all(static_cast<std::size_t>(tokens()));
        std::iota(all.begin(), all.end(), std::int64_t{0});
        return all;
    }
    kept.insert(kept.end(), spare.begin(), spare.begin() + (keep - real));
    std::sort(kept.begin(), kept.end());
    return kept;
}

std::unique_ptr<Processor> processor_from_settings(const std::string& name, const nlohmann::json& settings,
                                                   const std::string& where) {
    std::string known;
    for (const Entry& entry : processors) {
        if (name == entry.name) {
            const Json none = Json::object();
            return entry.from_settings(settings.is_object() ? settings : none, where);
        }
        known += (known.empty() ? "" : ", ") + std::string(entry.name);
    }
    throw EngineDirError(where + ": image processor " + files::shown(name) + " is not known",
                         "built by a newer trtprune? Known here: " + known);
}

void check_prepared_size(const Processor& processor, const Image& image, std::int64_t max_pixels) {
    const std::int64_t width = image.width();
    const std::int64_t height = image.height();
    // An image that was read under a higher limit, or comes from memory, has shown that there is room for it.
    const std::int64_t limit = std::max(max_pixels_from(max_pixels), width * height);
    const std::int64_t taken = processor.pixels_taken(width, height);
    if (taken <= limit) return;
    throw InputError("the picture: " + std::to_string(width) + " × " + std::to_string(height) +
                         " is too narrow: prepared for the model it takes " + std::to_string(taken) +
                         " pixels, above the limit of " + std::to_string(limit),
                     "crop it, or raise the limit with max_pixels or " + std::string(max_pixels_variable));
}

}  // namespace trtprune::images
