#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine_dir/generation.hpp"
#include "engine_dir/roles.hpp"
#include "schedule.hpp"
#include "text/info.hpp"

/// The schema of an engine directory's `config.json`, as structs; the twin of `trtprune.engine_dir.schema`.
///
/// docs/engine-directory.md describes the members.
namespace trtprune::engine_dir {

constexpr std::int64_t schema_version = 2;
/// Folder of the weight files; graphs name them `weights/FILE`, relative to their own folder.
constexpr const char* weights_folder = "onnx/weights";
constexpr const char* config_name = "config.json";

/// A dimension of a tensor: a size, or a symbolic name.
using Dimension = std::variant<std::int64_t, std::string>;

/// One graph input or output.
struct TensorSpec {
    std::string name;
    std::string dtype;  ///< a NumPy-style name, `float32`, `bfloat16`, `int64`, …
    std::vector<Dimension> shape;
};

/// Smallest, typical and largest shape of an input of an engine; for a shape input, its values.
using Range = std::array<std::vector<std::int64_t>, 3>;
/// The range of each input whose shape is not fixed: one optimisation profile.
using Profile = std::map<std::string, Range>;

/// One graph of the chain.
struct ComponentInfo {
    std::string name;  ///< for people and file names
    std::string role;  ///< its purpose, see `roles`
    std::optional<std::int64_t> segment;
    std::string onnx;
    std::optional<std::string> engine;
    std::vector<TensorSpec> inputs;
    std::vector<TensorSpec> outputs;
    std::vector<Profile> profiles;
    std::string dtype;

    /// The component's place in the chain.
    Part part() const { return {role, segment}; }
};

/// The runtime's facts of the model; sizes in pixels or tokens.
struct ModelInfo {
    std::string id;
    std::optional<std::string> revision;
    std::string digest;
    std::string family;
    std::optional<std::array<std::int64_t, 2>> image_size;  ///< of a crop; none with a packed tower
    std::optional<std::array<std::int64_t, 2>> patch_grid;
    std::int64_t visual_tokens = 0;
    bool has_cls = false;
    std::int64_t hidden_size = 0;
    std::int64_t vocab_size = 0;
    std::int64_t max_positions = 0;
    std::string image_token;
    std::int64_t image_token_id = 0;
    std::vector<std::int64_t> eos_token_ids;
    bool keeps_cls_feature = false;
    std::int64_t first_patch = 0;            ///< the patch (row by row) of visual token 0; -1 if it is the CLS token
    std::optional<std::string> video_token;  ///< stands for a video in prompts, which no model here takes
    /// L, the levels of the vision tower that a visual token brings along; level l is added behind layer l.
    std::int64_t deepstack_levels = 0;

    /// The width of a row of the decoder's input.
    std::int64_t row_width() const { return hidden_size * (1 + deepstack_levels); }
};

/// The steps from an image to visual tokens.
struct VisionInfo {
    std::string processor;
    nlohmann::json settings;  ///< an object
    std::array<std::int64_t, 2> tokens{};
    std::array<std::int64_t, 2> crops{};
    std::string newlines;  ///< `keep`, `drop` or `candidates`
    /// The outputs of the vision graph that say how strongly the tower attends to each patch, as far as the method
    /// reads them.
    std::vector<std::string> saliency;
};

/// The positions of a prompt's tokens in the decoder.
struct PositionsInfo {
    std::string rule;                    ///< `compact` or `original`
    std::int64_t axes = 0;               ///< numbers of a position: 1, or 3 for time, row and column (M-RoPE)
    std::vector<std::int64_t> sections;  ///< for each axis, the number of rotary frequencies that turn by it
    bool interleaved = false;            ///< whether the axes alternate over the frequencies
};

/// A value of a method's option.
using Option = std::variant<bool, std::int64_t, double, std::string>;

/// The method of the build.
struct PruningInfo {
    std::string method;
    std::int64_t keep = 0;                     ///< the default budget per image
    std::array<std::int64_t, 2> keep_range{};  ///< the inclusive limits
    std::map<std::string, Option> options;
    std::vector<std::string> needs;
    std::string text_span;
    std::optional<ScheduleInfo> schedule;  ///< of a decoder in segments
};

/// The KV cache.
struct KvInfo {
    std::int64_t capacity = 0;  ///< the largest number of tokens a request may hold, prompt and answer
    std::int64_t bytes_per_token = 0;
    std::int64_t num_layers = 0;
    std::int64_t num_kv_heads = 0;
    std::int64_t head_dim = 0;
    std::string dtype;
    std::vector<std::int64_t> segment_layers;  ///< of the decoder's segments; empty for a whole decoder
};

/// The settings of the TensorRT engines, and their requirements.
struct EngineInfo {
    std::string version;
    std::vector<std::string> targets;
    std::int64_t max_batch_size = 0;
    std::int64_t max_input_len = 0;
    std::int64_t max_images = 0;
    std::string attention;
    bool version_compatible = false;
    std::string hardware_compatibility = "none";
    bool weight_streaming = false;
    std::map<std::string, std::string> plugins;
};

/// The parsed `config.json`; `root` is the directory that it was read from and is not part of the file.
///
/// `opening.hpp` reads one.
struct EngineDir {
    std::int64_t schema_version = 0;
    std::string backend;
    std::map<std::string, std::string> lowering;
    std::string dtype;
    ModelInfo model;
    VisionInfo vision;
    PositionsInfo positions;
    text::TextInfo text;
    PruningInfo pruning;
    std::vector<ComponentInfo> components;
    std::vector<std::string> chain;
    KvInfo kv;
    GenerationInfo generation;
    std::map<std::string, std::string> built_with;
    std::string build_digest;
    /// Each file and its digests, in the order of `config.json`.
    std::vector<std::pair<std::string, std::string>> files;
    std::optional<std::string> weight_dtype;
    std::optional<EngineInfo> engines;  ///< not set in a build without engines
    std::string root;

    /// The component called `name`; raises EngineDirError for an unknown name.
    const ComponentInfo& component(const std::string& name) const;
    /// The components of the chain with a role, in the order of their segments.
    std::vector<const ComponentInfo*> by_role(const std::string& role) const;
    /// The component of the chain with a role and a segment; nullptr if there is none.
    const ComponentInfo* find(const std::string& role, std::optional<std::int64_t> segment = {}) const;
    /// As `find`, for a component that must exist; raises EngineDirError if the chain has no such component.
    const ComponentInfo& part(const std::string& role, std::optional<std::int64_t> segment = {}) const;
    /// The segments of the decoder, in order; empty for a whole decoder.
    std::vector<const ComponentInfo*> segments() const;
    /// The path of a file named in the config, checked to be inside the directory.
    std::string path(const std::string& relative) const;
};

}  // namespace trtprune::engine_dir
