#include "runtime/pruner.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <trtprune/error.hpp>

#include "backend/tensor_names.hpp"

namespace trtprune::runtime {

namespace roles = engine_dir::roles;

namespace {

bool has(const std::vector<engine_dir::TensorSpec>& specs, const std::string& name) {
    return std::any_of(specs.begin(), specs.end(), [&](const auto& spec) { return spec.name == name; });
}

// What the second axis of an input counts; empty for a number.
std::string second_axis(const engine_dir::TensorSpec& spec) {
    const auto* name = spec.shape.size() > 1 ? std::get_if<std::string>(&spec.shape[1]) : nullptr;
    return name != nullptr ? *name : "";
}

// Whether the second axis of an input counts visual tokens; the graph's number is then one of the run, unless every
// image has the same candidates.
bool by_token(const engine_dir::TensorSpec& spec) {
    return second_axis(spec) == "visual_tokens" && spec.name != names::grid;
}

}  // namespace

std::vector<std::string> image_inputs(const engine_dir::EngineDir& config) {
    const engine_dir::ComponentInfo* pruner = config.find(roles::pruner);
    const engine_dir::ComponentInfo* vision = config.find(roles::vision);
    std::vector<std::string> found;
    if (pruner == nullptr || vision == nullptr) return found;
    for (const auto& spec : pruner->inputs) {
        if (spec.name != names::image_features && has(vision->outputs, spec.name)) found.push_back(spec.name);
    }
    return found;
}

Pruner::Pruner(const Chain& chain)
    : chain_(chain), component_(chain.config().part(roles::pruner)), image_inputs_(image_inputs(chain.config())) {}

bool Pruner::reads_embeds() const {
    return reads(names::text_embeds);
}

bool Pruner::reads(const std::string& name) const {
    return has(component_.inputs, name);
}

std::pair<Ids, Tensor> Pruner::prune(const Features& features, const Tensor& text, std::int64_t keep, std::int64_t seed,
                                     const Tensors& others) const {
    if (auto settled = features.plan->without_choice(keep, chain_.config().vision.newlines)) {
        const bool whole = static_cast<std::int64_t>(settled->size()) == features.visual_tokens();
        Tensor rows = whole ? features.image : chain_.memory().take(features.image, *settled);
        return laid_out(features, std::move(*settled), std::move(rows));
    }
    const Ids candidates = features.plan->choices(chain_.config().vision.newlines);
    Tensors given = inputs(features, candidates);
    given[names::keep] = Tensor::of(Ids{keep});
    for (const auto& [name, array] : others) {
        if (reads(name)) given[name] = array.as_batch();
    }
    if (reads_embeds()) {
        given[names::text_embeds] = text.as_batch();
        given[names::text_mask] = Tensor::of(Ids(static_cast<std::size_t>(text.length()), 1), {1, text.length()});
    }
    if (reads(names::seed)) given[names::seed] = Tensor::of(Ids{seed});
    const Tensors out = chain_.session(roles::pruner).run(given);
    const Tensor places = chain_.memory().to_host(out.at(names::kept_indices)).at(0);
    Ids kept;
    for (std::int64_t i = 0; i < places.length(); ++i) {
        const std::int64_t place = places.data<std::int64_t>()[i];
        if (place >= static_cast<std::int64_t>(candidates.size())) {
            throw EngineDirError(chain_.config().root + ": the pruner keeps a token that the image does not have",
                                 "build the directory again");
        }
        // Below 0: no visual token, but one of the tower's own.
        kept.push_back(place < 0 ? place : candidates[static_cast<std::size_t>(place)]);
    }
    Tensor rows = out.at(names::pruned_features).at(0);
    if (rows.length() != places.length()) {
        throw EngineDirError(chain_.config().root + ": the pruner returns other rows than it keeps",
                             "build the directory again");
    }
    return laid_out(features, std::move(kept), std::move(rows));
}

// What the graph reads of an image: the rows of its candidates.
Tensors Pruner::inputs(const Features& features, const Ids& candidates) const {
    Tensors given{{names::image_features, features.image}};
    for (const auto& spec : component_.inputs) {
        if (std::find(image_inputs_.begin(), image_inputs_.end(), spec.name) == image_inputs_.end()) continue;
        given[spec.name] = (second_axis(spec) == "crops" ? features.crops : features.extras).at(spec.name);
    }
    if (static_cast<std::int64_t>(candidates.size()) < features.visual_tokens()) {
        for (const auto& spec : component_.inputs) {
            const auto found = given.find(spec.name);
            if (found != given.end() && by_token(spec)) {
                found->second = chain_.memory().take(found->second, candidates);
            }
        }
    }
    for (auto& [name, array] : given) array = array.as_batch();
    if (reads(names::grid)) {
        Ids grid;
        for (const std::int64_t token : candidates) {
            for (std::size_t axis = 0; axis < 3; ++axis) {
                grid.push_back(features.plan->grid[3 * static_cast<std::size_t>(token) + axis]);
            }
        }
        given[names::grid] = Tensor::of(grid, {1, static_cast<std::int64_t>(candidates.size()), 3});
    }
    return given;
}

// Kept indices and features, by the build's rule with the newline tokens of every line that keeps a token.
std::pair<Ids, Tensor> Pruner::laid_out(const Features& features, Ids kept, Tensor rows) const {
    if (chain_.config().vision.newlines != "keep") return {std::move(kept), std::move(rows)};
    std::set<std::int64_t> ends;
    for (const std::int64_t token : kept) {
        if (token < 0) continue;
        const std::int64_t end = features.plan->newline[static_cast<std::size_t>(token)];
        if (end >= 0) ends.insert(end);
    }
    for (const std::int64_t token : kept) ends.erase(token);
    if (ends.empty()) return {std::move(kept), std::move(rows)};
    const Ids added(ends.begin(), ends.end());
    Ids together = kept;
    together.insert(together.end(), added.begin(), added.end());
    const Tensor joined = chain_.memory().concatenate({rows, chain_.memory().take(features.image, added)});
    Ids order(together.size());
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return together[static_cast<std::size_t>(a)] < together[static_cast<std::size_t>(b)];
    });
    Tensor sorted = chain_.memory().take(joined, order);
    std::sort(together.begin(), together.end());
    return {std::move(together), std::move(sorted)};
}

}  // namespace trtprune::runtime
