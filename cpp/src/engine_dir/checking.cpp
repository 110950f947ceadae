#include "engine_dir/checking.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string_view>

#include "backend/tensor_names.hpp"
#include "files/integers.hpp"
#include "files/printable.hpp"

namespace trtprune::engine_dir {

namespace {

using Fault = std::optional<std::string>;
using files::quoted;
using std::to_string;

constexpr std::int64_t most_crops = 1 << 12;
constexpr std::int64_t longest_side = 1 << 15;
constexpr std::int64_t largest_tensor = std::int64_t{1} << 40;
constexpr std::int64_t largest_vocabulary = 1 << 26;
constexpr std::size_t most_files = 10'000;
constexpr std::array<const char*, 8> all_roles = {roles::vision, roles::pack,   roles::embed, roles::clip_text,
                                                  roles::pruner, roles::raters, roles::rank,  roles::decoder};
constexpr std::array<const char*, 11> dtypes = {"bool",  "int4",    "int8",     "uint8",   "int16",  "int32",
                                                "int64", "float16", "bfloat16", "float32", "float64"};

constexpr std::array<const char*, 4> saliency = {"cls_attention", "mean_query_attention", "shallow_attention",
                                                 "deep_attention"};

template <class Names>
bool is_one_of(const Names& names, const std::string& name) {
    return std::any_of(names.begin(), names.end(), [&](const auto& other) { return name == other; });
}

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
bool is_small(char c) {
    return c >= 'a' && c <= 'z';
}
bool is_letter(char c) {
    return is_small(c) || (c >= 'A' && c <= 'Z');
}

// [A-Za-z][\w-]{0,63}(\.\d{1,4})?
bool is_component_name(std::string_view name) {
    if (name.empty() || !is_letter(name[0])) return false;
    std::size_t end = 1;
    while (end < name.size() && (is_letter(name[end]) || is_digit(name[end]) || name[end] == '_' || name[end] == '-')) {
        ++end;
    }
    if (end > 64) return false;
    if (end == name.size()) return true;
    const std::string_view number = name.substr(end + 1);
    return name[end] == '.' && !number.empty() && number.size() <= 4 &&
           std::all_of(number.begin(), number.end(), is_digit);
}

// sm[0-9]{2,3}[a-z]?
bool is_target(std::string_view target) {
    if (target.substr(0, 2) != "sm") return false;
    std::string_view rest = target.substr(2);
    if (!rest.empty() && is_small(rest.back())) rest.remove_suffix(1);
    return (rest.size() == 2 || rest.size() == 3) && std::all_of(rest.begin(), rest.end(), is_digit);
}

// sha256(-header-size|-head-size)?:[0-9a-f]{64}
bool is_digest(std::string_view digest) {
    const std::size_t colon = digest.find(':');
    const std::string_view kind = digest.substr(0, colon);
    if (colon == digest.npos || (kind != "sha256" && kind != "sha256-header-size" && kind != "sha256-head-size")) {
        return false;
    }
    const std::string_view hex = digest.substr(colon + 1);
    return hex.size() == 64 &&
           std::all_of(hex.begin(), hex.end(), [](char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); });
}

std::string about(const ComponentInfo& component) {
    return "config.components: '" + component.name + "'";
}

Fault wrong_size(const char* field, std::int64_t value, std::int64_t largest) {
    if (0 < value && value <= largest) return {};
    return std::string("config.") + field + " must be between 1 and " + to_string(largest);
}

Fault wrong_sizes(const EngineDir& directory) {
    const ModelInfo& model = directory.model;
    const KvInfo& kv = directory.kv;
    struct Limit {
        const char* field;
        std::int64_t value;
        int bits;
    };
    std::vector<Limit> limits = {
        {"model.visual_tokens", model.visual_tokens, 20},
        {"model.hidden_size", model.hidden_size, 20},
        {"model.vocab_size", model.vocab_size, 26},
        {"model.max_positions", model.max_positions, 32},
        {"kv.capacity", kv.capacity, 32},
        {"kv.bytes_per_token", kv.bytes_per_token, 40},
        {"kv.num_layers", kv.num_layers, 14},
        {"kv.num_kv_heads", kv.num_kv_heads, 16},
        {"kv.head_dim", kv.head_dim, 16},
    };
    if (directory.engines) {
        limits.push_back({"engines.max_batch_size", directory.engines->max_batch_size, 20});
        limits.push_back({"engines.max_input_len", directory.engines->max_input_len, 32});
        limits.push_back({"engines.max_images", directory.engines->max_images, 20});
    }
    for (const Limit& limit : limits) {
        if (Fault fault = wrong_size(limit.field, limit.value, std::int64_t{1} << limit.bits)) return fault;
    }
    using Sides = std::optional<std::array<std::int64_t, 2>>;
    const std::pair<const char*, Sides> sides[] = {{"image_size", model.image_size}, {"patch_grid", model.patch_grid}};
    for (const auto& [name, pair] : sides) {
        if (pair.has_value() != model.image_size.has_value()) {
            return "config.model.image_size and patch_grid belong together";
        }
        if (pair && (std::min((*pair)[0], (*pair)[1]) < 1 || std::max((*pair)[0], (*pair)[1]) > longest_side)) {
            return std::string("config.model.") + name + " must be two numbers between 1 and " +
                   to_string(longest_side);
        }
    }
    return {};
}

Fault wrong_ids(const EngineDir& directory) {
    const ModelInfo& model = directory.model;
    const auto wrong = [](std::int64_t token) { return token < 0 || token >= largest_vocabulary; };
    if (wrong(model.image_token_id)) return "config.model.image_token_id: a token id is at least 0";
    if (std::any_of(model.eos_token_ids.begin(), model.eos_token_ids.end(), wrong)) {
        return "config.model.eos_token_ids: a token id is at least 0";
    }
    if (model.first_patch < -1 || model.first_patch > model.visual_tokens) {
        return "config.model.first_patch must be between -1 and " + to_string(model.visual_tokens);
    }
    const std::int64_t layers = directory.kv.num_layers;
    if (model.deepstack_levels < 0 || model.deepstack_levels > layers) {
        return "config.model.deepstack_levels must be between 0 and " + to_string(layers) + ", the decoder's layers";
    }
    return {};
}

bool has_width(const TensorSpec& spec, std::int64_t width) {
    return spec.shape.size() == 3 && spec.shape[2] == Dimension(width);
}

Fault wrong_rows(const EngineDir& directory) {
    const std::int64_t width = directory.model.row_width();
    for (const ComponentInfo& component : directory.components) {
        for (const TensorSpec& spec : component.inputs) {
            if (spec.name == names::inputs_embeds && !has_width(spec, width)) {
                return about(component) + ": '" + spec.name + "' must be [batch, sequence, " + to_string(width) +
                       "], as config.model says";
            }
        }
    }
    return {};
}

Fault wrong_vision(const EngineDir& directory) {
    const VisionInfo& vision = directory.vision;
    const std::int64_t most = directory.model.visual_tokens;
    if (vision.tokens[0] < 1 || vision.tokens[0] > vision.tokens[1] || vision.tokens[1] != most) {
        return "config.vision.tokens must be two numbers from 1 to model.visual_tokens, " + to_string(most);
    }
    if (vision.crops[0] < 1 || vision.crops[0] > vision.crops[1] || vision.crops[1] > most_crops) {
        return "config.vision.crops must be two numbers between 1 and " + to_string(most_crops);
    }
    if (vision.newlines != "keep" && vision.newlines != "drop" && vision.newlines != "candidates") {
        return "config.vision.newlines must be one of keep, drop, candidates";
    }
    std::vector<std::string> read;
    std::string list;
    for (const char* name : saliency) {
        if (!is_one_of(directory.pruning.needs, name)) continue;
        read.emplace_back(name);
        list += (list.empty() ? "" : ", ") + read.back();
    }
    if (vision.saliency != read) {
        return "config.vision.saliency must be " + (list.empty() ? "empty" : list) + ", as config.pruning.needs says";
    }
    return {};
}

// Whether a position input has the form that `positions` says.
bool has_axes(const TensorSpec& spec, std::int64_t axes) {
    return spec.shape.size() == 3 && spec.shape[1] == Dimension(axes);
}

Fault wrong_positions(const EngineDir& directory) {
    const PositionsInfo& positions = directory.positions;
    const std::vector<std::int64_t>& sections = positions.sections;
    const std::int64_t half = directory.kv.head_dim / 2;
    if (positions.rule != "compact" && positions.rule != "original") {
        return "config.positions.rule must be one of compact, original";
    }
    if (positions.axes != 1 && positions.axes != 3) return "config.positions.axes must be one of 1, 3";
    files::Wide sum = 0;
    for (const std::int64_t section : sections) sum += section;
    const bool below_one = std::any_of(sections.begin(), sections.end(), [](std::int64_t count) { return count < 1; });
    if (sections.size() != static_cast<std::size_t>(positions.axes) || below_one || sum != half) {
        return "config.positions.sections must share " + to_string(half) +
               " frequencies, half of kv.head_dim, among the axes";
    }
    if (positions.interleaved && positions.axes == 1) return "config.positions.interleaved belongs to several axes";
    for (const ComponentInfo& component : directory.components) {
        for (const TensorSpec& spec : component.inputs) {
            if (spec.name == names::position_ids && !has_axes(spec, positions.axes)) {
                return about(component) + ": '" + spec.name + "' must be [batch, " + to_string(positions.axes) +
                       ", sequence], as config.positions says";
            }
        }
    }
    return {};
}

Fault wrong_budget(const EngineDir& directory) {
    const PruningInfo& pruning = directory.pruning;
    const std::int64_t tokens = directory.model.visual_tokens;
    const auto [low, high] = pruning.keep_range;
    if (low < 1 || low > high || high > tokens) {
        return "config.pruning.keep_range must lie between 1 and " + to_string(tokens);
    }
    if (pruning.keep < low || pruning.keep > high) return "config.pruning.keep must lie in keep_range";
    if (!pruning.schedule) return {};
    if (Fault fault = wrong_schedule(*pruning.schedule)) return "config.pruning.schedule." + *fault;
    if (pruning.schedule->depth != directory.kv.num_layers) {
        return "config.pruning.schedule.depth must be " + to_string(directory.kv.num_layers) + ", as config.kv says";
    }
    return {};
}

// What is wrong with a tensor, as words behind its name.
Fault wrong_tensor(const TensorSpec& spec) {
    files::Wide elements = 1;
    bool negative = false;
    bool zero = false;
    for (const Dimension& dimension : spec.shape) {
        const auto* size = std::get_if<std::int64_t>(&dimension);
        if (size == nullptr) continue;
        negative = negative || *size < 0;
        zero = zero || *size == 0;
        // Stays above the limit once it is there; a zero is counted apart.
        if (*size > 0 && elements <= largest_tensor) elements *= *size;
    }
    if (negative || spec.shape.size() > 16 || (!zero && elements > largest_tensor)) return "has a shape out of range";
    if (is_one_of(dtypes, spec.dtype)) return {};
    return "has the unknown dtype " + quoted(spec.dtype, 100);
}

Fault wrong_component(const ComponentInfo& component) {
    for (const auto* specs : {&component.inputs, &component.outputs}) {
        std::set<std::string_view> names;
        for (const TensorSpec& spec : *specs) names.insert(spec.name);
        if (names.size() < specs->size()) return about(component) + ": two tensors of one name";
        for (const TensorSpec& spec : *specs) {
            if (Fault fault = wrong_tensor(spec)) return about(component) + ": '" + spec.name + "' " + *fault;
        }
    }
    return {};
}

Fault wrong_components(const EngineDir& directory) {
    std::map<std::string_view, int> names;
    for (const ComponentInfo& component : directory.components) ++names[component.name];
    for (const auto& [name, count] : names) {
        if (count > 1) return "config.components: '" + std::string(name) + "' occurs twice";
    }
    for (const ComponentInfo& component : directory.components) {
        if (!is_component_name(component.name)) {
            return "config.components: " + quoted(component.name, 100) + " is no name of a component";
        }
    }
    for (const std::string& name : directory.chain) {
        if (names.count(name) == 0) return "config.chain: there is no component '" + name + "'";
    }
    for (const ComponentInfo& component : directory.components) {
        if (Fault fault = wrong_component(component)) return fault;
    }
    return {};
}

// Roles and segments: each part once, and the pieces of a decoder without a gap.
Fault wrong_parts(const EngineDir& directory) {
    std::map<Part, int> parts;
    for (const ComponentInfo& component : directory.components) {
        ++parts[component.part()];
        if (!is_one_of(all_roles, component.role)) {
            return about(component) + " has the unknown role " + quoted(component.role, 100);
        }
        if (component.segment && component.role != roles::pruner && component.role != roles::decoder) {
            return about(component) + ": a component of role " + component.role + " has no segment";
        }
    }
    for (const ComponentInfo& component : directory.components) {
        if (parts[component.part()] > 1) {
            return about(component) + ": another component has its role and segment";
        }
    }
    const std::vector<const ComponentInfo*> pieces = directory.by_role(roles::decoder);
    const auto is_whole = [](const std::vector<const ComponentInfo*>& components) {
        return components.empty() || (components.size() == 1 && !components[0]->segment);
    };
    const bool whole = is_whole(pieces);
    for (std::size_t i = 0; i < pieces.size() && !whole; ++i) {
        if (pieces[i]->segment != static_cast<std::int64_t>(i)) {
            return "config.components: the decoder's segments must be numbered 0, 1, 2, … or there must be none";
        }
    }
    const std::vector<const ComponentInfo*> points = directory.by_role(roles::pruner);
    const auto stands_well = [&](const ComponentInfo* point) {
        // The segments are numbered from 0, so that their numbers are a range.
        return point->segment && *point->segment >= 0 && *point->segment < static_cast<std::int64_t>(pieces.size()) - 1;
    };
    if (!(whole ? is_whole(points) : std::all_of(points.begin(), points.end(), stands_well))) {
        return "config.components: a pruner must stand before the decoder, or behind one of its segments but the last";
    }
    return {};
}

Fault wrong_layers(const EngineDir& directory) {
    const std::vector<std::int64_t>& layers = directory.kv.segment_layers;
    const std::size_t segments = directory.segments().size();
    files::Wide sum = 0;
    for (const std::int64_t count : layers) sum += count;
    const bool shared = segments == 0 || (!layers.empty() && *std::min_element(layers.begin(), layers.end()) >= 1 &&
                                          sum == directory.kv.num_layers);
    if (layers.size() != segments || !shared) {
        return "config.kv.segment_layers must share " + to_string(directory.kv.num_layers) + " layers among " +
               to_string(segments) + " segments";
    }
    const std::optional<ScheduleInfo>& schedule = directory.pruning.schedule;
    if (schedule.has_value() != (segments > 0)) {
        return "config.pruning.schedule belongs to a decoder in segments, and to no other";
    }
    if (!schedule) return {};
    std::int64_t end = 0;
    bool same = schedule->points.size() == layers.size() - 1;
    for (std::size_t i = 0; i + 1 < layers.size() && same; ++i) {
        end += layers[i];
        same = schedule->points[i] == end - 1;
    }
    if (!same) {
        return "config.pruning.schedule.points must be the last layers of the segments, as config.kv says";
    }
    return {};
}

// Whether a cache input has the form that `kv` says: every second dimension from the second on.
bool has_cache_shape(const TensorSpec& spec, const KvInfo& kv) {
    std::vector<Dimension> sizes;
    for (std::size_t i = 1; i < spec.shape.size(); i += 2) sizes.push_back(spec.shape[i]);
    return sizes == std::vector<Dimension>{kv.num_kv_heads, kv.head_dim};
}

Fault wrong_caches(const EngineDir& directory) {
    for (const ComponentInfo& component : directory.components) {
        for (const TensorSpec& spec : component.inputs) {
            if (names::is_past(spec.name) && !has_cache_shape(spec, directory.kv)) {
                return about(component) + ": '" + spec.name + "' must be [batch, " +
                       to_string(directory.kv.num_kv_heads) + ", capacity, " + to_string(directory.kv.head_dim) +
                       "], as config.kv says";
            }
        }
    }
    return {};
}

Fault wrong_engines(const EngineDir& directory) {
    if (!directory.engines) return {};
    const std::vector<std::string>& targets = directory.engines->targets;
    if (targets.empty() || !std::all_of(targets.begin(), targets.end(), [](const auto& t) { return is_target(t); })) {
        return "config.engines.targets must name compute capabilities, like sm89";
    }
    for (const ComponentInfo& component : directory.components) {
        if (!component.engine) return about(component) + " has no engine";
    }
    return {};
}

Fault wrong_files(const EngineDir& directory) {
    if (directory.files.size() > most_files) {
        return "config.files: more than " + to_string(most_files) + " files";
    }
    for (const auto& [name, recorded] : directory.files) {
        const std::vector<std::string_view> digests = files::words(recorded);
        // An empty entry would pass every check.
        if (digests.empty() || !std::all_of(digests.begin(), digests.end(), is_digest)) {
            return "config.files: no valid digest for " + quoted(name, 200);
        }
    }
    return {};
}

Fault wrong_generation(const EngineDir& directory) {
    Fault fault = directory.generation.wrong(std::max<std::int64_t>(directory.model.vocab_size, 1));
    if (fault) fault = "config.generation." + *fault;
    return fault;
}

}  // namespace

std::optional<std::string> wrong_values(const EngineDir& directory) {
    if (Fault fault = wrong_sizes(directory)) return fault;
    if (Fault fault = wrong_ids(directory)) return fault;
    if (Fault fault = wrong_vision(directory)) return fault;
    if (Fault fault = directory.text.wrong()) return "config.text." + *fault;
    if (Fault fault = wrong_rows(directory)) return fault;
    if (Fault fault = wrong_positions(directory)) return fault;
    if (Fault fault = wrong_generation(directory)) return fault;
    if (Fault fault = wrong_budget(directory)) return fault;
    if (Fault fault = wrong_components(directory)) return fault;
    if (Fault fault = wrong_parts(directory)) return fault;
    if (Fault fault = wrong_layers(directory)) return fault;
    if (Fault fault = wrong_caches(directory)) return fault;
    if (Fault fault = wrong_engines(directory)) return fault;
    return wrong_files(directory);
}

}  // namespace trtprune::engine_dir
