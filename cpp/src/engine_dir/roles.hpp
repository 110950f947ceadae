#pragma once

#include <cstdint>
#include <optional>
#include <string>

/// The roles of components: the purpose of each graph of the chain, independent of its name.
namespace trtprune::engine_dir {

namespace roles {
constexpr const char* vision = "vision";        ///< pixels → features of the image
constexpr const char* pack = "pack";            ///< features of crops → the image's visual tokens
constexpr const char* embed = "embed";          ///< token ids → embeddings
constexpr const char* clip_text = "clip_text";  ///< the question → its embeddings in CLIP's joint space
/// Visual tokens → those that are kept; with a segment, the prune point behind that segment of the decoder.
constexpr const char* pruner = "pruner";
constexpr const char* raters = "raters";    ///< image and text → the text tokens that rate the image
constexpr const char* rank = "rank";        ///< attention of the raters → its matrix rank
constexpr const char* decoder = "decoder";  ///< embeddings and KV cache → logits; with a segment, that segment
}  // namespace roles

/// The place of a component in the chain.
struct Part {
    std::string role;
    std::optional<std::int64_t> segment;  ///< number of a decoder's segment, from 0

    /// The component's name in a build, also in file names: `vision`, `decoder.0`.
    std::string name() const { return segment ? role + "." + std::to_string(*segment) : role; }

    bool operator==(const Part& other) const { return role == other.role && segment == other.segment; }
    bool operator<(const Part& other) const { return role != other.role ? role < other.role : segment < other.segment; }
};

}  // namespace trtprune::engine_dir
