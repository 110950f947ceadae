#include "c_api/settings.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>
#include <trtprune/error.hpp>

#include "c_api/handles.hpp"

namespace trtprune::c_api {

namespace {

// No version has larger structures; what claims to be larger was never initialised.
constexpr std::size_t largest_struct = 4096;
constexpr std::size_t largest_count = 65536;

/// Whether a version may have a structure of this size.  One that ends within a pointer would be read as half of it.
template <class Settings>
bool possible_size(std::size_t size) {
    return size >= sizeof size && size <= largest_struct && size % alignof(Settings) == 0;
}

[[noreturn]] void refuse_size(const char* name, std::size_t size) {
    throw InputError(std::string(name) + ".struct_size=" + std::to_string(size) + " is of no known version",
                     "set it to sizeof, and all other members to 0");
}

/// A copy of settings of this or an earlier version; or of a later one, if it sets nothing that this one does not know.
template <class Settings>
Settings known_part(const Settings* given, const char* name) {
    Settings known{};
    if (given == nullptr) return known;
    std::size_t size = 0;
    std::memcpy(&size, given, sizeof size);
    if (!possible_size<Settings>(size)) refuse_size(name, size);
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    if (size > sizeof known &&
        std::any_of(bytes + sizeof known, bytes + size, [](unsigned char b) { return b != 0; })) {
        throw InputError(std::string(name) + " has a setting that this version of trtprune does not know",
                         std::string("this library is trtprune ") + TRTPRUNE_VERSION + "; install the newer one");
    }
    std::memcpy(&known, given, std::min(size, sizeof known));
    return known;
}

template <class Value>
std::optional<Value> optional(const Value* value) {
    return value == nullptr ? std::nullopt : std::optional<Value>(*value);
}

std::optional<std::string> optional_text(const char* value) {
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

void check_array(const void* first, std::size_t count, const char* name) {
    if (count > largest_count) {
        throw InputError(std::string(name) + ": " + std::to_string(count) + " are too many",
                         "at most " + std::to_string(largest_count));
    }
    if (count > 0 && first == nullptr) {
        throw InputError(std::string(name) + "=NULL with a count of " + std::to_string(count));
    }
}

}  // namespace

std::string text(const char* value, const char* name) {
    if (value == nullptr) throw InputError(std::string(name) + "=NULL");
    return value;
}

ImageOptions image_options(const trtprune_image_options* given) {
    const trtprune_image_options known = known_part(given, "options");
    ImageOptions options;
    if (known.max_pixels != nullptr) {
        if (*known.max_pixels < 1) {
            throw InputError("max_pixels=" + std::to_string(*known.max_pixels) + " must be at least 1");
        }
        options.max_pixels = *known.max_pixels;
    }
    options.strict = known.strict != 0;
    return options;
}

LoadOptions load_options(const trtprune_load_options* given) {
    const trtprune_load_options known = known_part(given, "options");
    LoadOptions options;
    if (known.provider != nullptr) options.provider = known.provider;
    options.threads = known.threads;
    if (known.verify != nullptr) options.verify = known.verify;
    check_array(known.provider_options, known.provider_option_count, "provider_options");
    for (std::size_t i = 0; i < known.provider_option_count; ++i) {
        const trtprune_pair& pair = known.provider_options[i];
        options.provider_options[text(pair.name, "provider_options.name")] = text(pair.value, "provider_options.value");
    }
    if (known.library != nullptr) options.library = known.library;
    return options;
}

GenerateOptions generate_options(const trtprune_generate_options* given) {
    const trtprune_generate_options known = known_part(given, "options");
    GenerateOptions options;
    options.keep = optional(known.keep);
    options.keep_ratio = optional(known.keep_ratio);
    options.max_new_tokens = optional(known.max_new_tokens);
    options.temperature = optional(known.temperature);
    options.top_k = optional(known.top_k);
    options.top_p = optional(known.top_p);
    options.repetition_penalty = optional(known.repetition_penalty);
    options.seed = optional(known.seed);
    check_array(known.stop, known.stop_count, "stop");
    if (known.stop != nullptr) {
        options.stop.emplace();
        for (std::size_t i = 0; i < known.stop_count; ++i) options.stop->push_back(text(known.stop[i], "stop"));
    }
    options.system = optional_text(known.system);
    options.ignore_eos = known.ignore_eos != 0;
    options.raw_prompt = known.raw_prompt != 0;
    return options;
}

std::vector<Image> images(const trtprune_image* const* handles, std::size_t count) {
    check_array(handles, count, "images");
    std::vector<Image> all;
    all.reserve(count);
    for (std::size_t i = 0; i < count; ++i) all.push_back(object<ImageObject>(handles[i])->image);
    return all;
}

std::vector<Request> requests(const trtprune_request* const* given, std::size_t count) {
    check_array(given, count, "requests");
    std::vector<Request> all;
    for (std::size_t i = 0; i < count; ++i) {
        if (given[i] == nullptr) throw InputError("requests[" + std::to_string(i) + "]=NULL");
        const trtprune_request known = known_part(given[i], "requests");
        Request request;
        request.images = images(known.images, known.image_count);
        request.prompt = text(known.prompt, "prompt");
        request.keep = optional(known.keep);
        request.keep_ratio = optional(known.keep_ratio);
        request.system = optional_text(known.system);
        request.raw_prompt = known.raw_prompt != 0;
        request.max_new_tokens = optional(known.max_new_tokens);
        request.seed = optional(known.seed);
        all.push_back(std::move(request));
    }
    return all;
}

TextCallback callback(trtprune_text_callback on_text, void* user_data) {
    if (on_text == nullptr) return {};
    return [on_text, user_data](std::string_view piece) {
        const std::string text(piece);
        std::int32_t answer = 0;
        try {
            answer = on_text(text.c_str(), text.size(), user_data);
        } catch (const std::exception& failure) {
            throw Error(ErrorCode::stopped, std::string("on_text threw: ") + failure.what());
        } catch (...) {
            throw Error(ErrorCode::stopped, "on_text threw");
        }
        if (answer < 0) throw Error(ErrorCode::stopped, "on_text returned " + std::to_string(answer));
        return answer != 0;
    };
}

void fill(trtprune_info* info, const Info& facts) {
    if (info == nullptr) throw InputError("info=NULL");
    std::size_t size = 0;
    std::memcpy(&size, info, sizeof size);
    if (!possible_size<trtprune_info>(size) || size > sizeof *info) refuse_size("info", size);
    trtprune_info all{};
    all.struct_size = size;
    all.model_id = facts.model_id.c_str();
    all.family = facts.family.c_str();
    all.backend = facts.backend.c_str();
    all.provider = facts.provider.c_str();
    all.dtype = facts.dtype.c_str();
    all.weight_dtype = facts.weight_dtype.c_str();
    all.method = facts.method.c_str();
    all.keep = facts.keep;
    all.keep_least = facts.keep_range.first;
    all.keep_most = facts.keep_range.second;
    all.visual_tokens_least = facts.visual_tokens.first;
    all.visual_tokens_most = facts.visual_tokens.second;
    all.capacity = facts.capacity;
    all.max_batch_size = facts.max_batch_size;
    std::memcpy(info, &all, size);
}

}  // namespace trtprune::c_api
