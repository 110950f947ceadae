#include "runtime/chain.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <trtprune/error.hpp>
#include <utility>

#include "arguments.hpp"
#include "backend/tensor_names.hpp"
#include "runtime/half.hpp"
#include "together.hpp"

namespace trtprune::runtime {

namespace roles = engine_dir::roles;

namespace {

// The largest number of crops in one vision run: more needs more memory for activations and is not faster.
constexpr std::int64_t vision_batch = 8;

// Float32 numbers as elements of an array of the build's type.
void store(const float* values, std::int64_t count, const Tensor& target, std::int64_t start) {
    const std::int64_t size = backend::item_size(target.dtype());
    std::byte* place = target.bytes() + start * size;
    if (target.dtype() == DType::float32) {
        std::memcpy(place, values, static_cast<std::size_t>(count * size));
        return;
    }
    const bool half = target.dtype() == DType::float16;
    for (std::int64_t i = 0; i < count; ++i) {
        const std::uint16_t bits = half ? to_float16(values[i]) : to_bfloat16(values[i]);
        std::memcpy(place + i * size, &bits, sizeof bits);
    }
}

// Crops `first` to `last` of all images behind one another, [n, 3, H, W].
Tensor crops(const std::vector<const images::Prepared*>& images, std::int64_t first, std::int64_t last, DType dtype) {
    const images::Prepared& any = *images.at(0);
    const std::int64_t width = 3 * any.height * any.width;
    const Tensor batch = Tensor::empty(dtype, {last - first, 3, any.height, any.width});
    std::int64_t start = 0;
    for (const images::Prepared* image : images) {
        if (image->height != any.height || image->width != any.width) {
            throw EngineDirError("config.vision.settings: crops of different sizes", "build the directory again");
        }
        const std::int64_t begin = std::max(first, start), end = std::min(last, start + image->crops);
        if (begin < end) {
            store(image->pixel_values.data() + (begin - start) * width, (end - begin) * width, batch,
                  (begin - first) * width);
        }
        start += image->crops;
    }
    return batch;
}

}  // namespace

Chain::Chain(const engine_dir::EngineDir& config, backend::Backend& backend,
             const std::vector<engine_dir::Check>& checks, const std::function<void()>& beside)
    : config_(config), backend_(backend), dtype_(backend::dtype_from_name(config.dtype)) {
    std::vector<std::function<void()>> jobs(checks.begin(), checks.end());
    for (const std::string& name : config.chain) {
        const engine_dir::ComponentInfo& component = config.component(name);
        std::unique_ptr<backend::Session>& session = sessions_[component.part()];
        jobs.emplace_back([&] { session = backend.session(component, config.root); });
    }
    jobs.push_back(beside);
    const int threads = backend.opening_threads();
    if (threads == 1) {
        for (const auto& job : jobs) job();
        return;
    }
    // The decoder takes longest and stands last.  Which failure is told must not depend on which work ends first.
    std::reverse(jobs.begin(), jobs.end());
    std::vector<std::exception_ptr> failures = run_together(jobs, threads);
    std::reverse(failures.begin(), failures.end());
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

backend::Session& Chain::session(const std::string& role, std::optional<std::int64_t> segment) const {
    return *sessions_.at(config_.part(role, segment).part());
}

std::unique_ptr<backend::Step> Chain::step(backend::Cache& cache) const {
    return backend_.step(session(roles::embed), session(roles::decoder), cache);
}

std::vector<Features> Chain::look(const std::vector<const images::Prepared*>& images) const {
    if (images.empty()) return {};
    if (images[0]->patches > 0) return look_packed(images);
    backend::Session& vision = session(roles::vision);
    const std::int64_t size = std::min(vision_batch, vision.max_batch());
    std::int64_t total = 0;
    for (const images::Prepared* image : images) total += image->crops;
    std::vector<Tensors> runs;
    for (std::int64_t start = 0; start < total; start += size) {
        runs.push_back(
            vision.run({{names::pixel_values, crops(images, start, std::min(start + size, total), dtype_)}}));
    }
    std::vector<Features> features;
    std::int64_t first = 0;
    for (const images::Prepared* image : images) {
        Tensors own;
        for (const auto& [name, array] : runs[0]) own[name] = rows(runs, name, first, image->crops, size);
        features.push_back(pack(std::move(own), image->plan));
        first += image->crops;
    }
    memory().wait();
    return features;
}

// Features of images by a packed tower, one image a run; its outputs are those of one crop.
std::vector<Features> Chain::look_packed(const std::vector<const images::Prepared*>& images) const {
    std::vector<Features> features;
    for (const images::Prepared* image : images) {
        const Tensor patches = Tensor::empty(dtype_, {image->patches, image->width});
        store(image->pixel_values.data(), image->patches * image->width, patches, 0);
        Tensors inputs{{names::pixel_values, patches}};
        for (const auto& [name, array] : image->arrays) inputs[name] = Tensor::of(array.values, array.shape);
        features.push_back(pack(session(roles::vision).run(inputs), image->plan));
    }
    memory().wait();
    return features;
}

// Rows `first` to `first + count` of an output that came in runs of `size` rows.
Tensor Chain::rows(const std::vector<Tensors>& runs, const std::string& name, std::int64_t first, std::int64_t count,
                   std::int64_t size) const {
    std::vector<Tensor> pieces;
    for (std::int64_t number = first / size; number <= (first + count - 1) / size; ++number) {
        const Tensor& run = runs[static_cast<std::size_t>(number)].at(name);
        const std::int64_t start = number * size;
        pieces.push_back(run.slice(std::max<std::int64_t>(first - start, 0), std::min(first + count - start, size)));
    }
    return memory().concatenate(pieces);
}

// The visual tokens of an image, from the outputs of the vision graph for its crops.
Features Chain::pack(Tensors rows, const std::shared_ptr<const images::TokenPlan>& plan) const {
    Features features{{}, plan, {}, {}};
    const engine_dir::ComponentInfo* component = config_.find(roles::pack);
    if (component == nullptr) {
        for (const auto& [name, array] : rows) features.extras[name] = array.at(0);
        features.crops = rows;
        features.crops.erase(names::image_features);
    } else {
        const std::int64_t tokens = plan->tokens();
        rows[names::pack_index] =
            Tensor::of(Ids(plan->pack_index.begin(), plan->pack_index.end()), {tokens, plan->taps});
        rows[names::pack_weight] = Tensor::of(plan->pack_weight, {tokens, plan->taps});
        Tensors inputs;
        for (const auto& spec : component->inputs) {
            const auto found = rows.find(spec.name);
            if (found != rows.end()) inputs.insert(*found);
        }
        for (const auto& [name, array] : session(roles::pack).run(inputs)) {
            const bool packed = name.compare(0, names::packed.size(), names::packed) == 0;
            features.extras[packed ? name.substr(names::packed.size()) : name] = array;
        }
        rows.erase(names::pack_index);
        rows.erase(names::pack_weight);
        // Outputs that do not belong to patches are taken from the overview, which shows the whole image.
        for (const auto& [name, array] : rows) {
            if (features.extras.count(name) != 0) continue;
            features.crops[name] = array;
            features.extras[name] = array.at(std::max<std::int64_t>(plan->overview, 0));
        }
    }
    const auto image = features.extras.find(names::image_features);
    if (image == features.extras.end() || image->second.length() != plan->tokens()) {
        throw EngineDirError(config_.root + ": the vision graph does not give the image's visual tokens",
                             "build the directory again");
    }
    features.image = image->second;
    features.extras.erase(image);
    return features;
}

Tensor Chain::embed(const Ids& ids, const std::function<std::string(std::int64_t)>& name) const {
    const engine_dir::ModelInfo& model = config_.model;
    Ids known = ids;
    for (std::int64_t& id : known) {
        if (id >= 0 && id < model.vocab_size) continue;
        if (id != model.image_token_id) {
            const std::string text = arguments::arg("", name(id)).substr(1);
            throw InputError("the prompt holds " + text + ", token " + std::to_string(id) +
                                 ", and the model has embeddings of " + std::to_string(model.vocab_size) +
                                 " tokens only",
                             "leave it out; or give the checkpoint the tokens of its tokenizer (in transformers, "
                             "resize_token_embeddings), and build again");
        }
        // In some checkpoints the image placeholder's id is above the vocabulary; its embedding is never used.
        id = 0;
    }
    const auto count = static_cast<std::int64_t>(known.size());
    return session(roles::embed).run({{names::input_ids, Tensor::of(known, {1, count})}}).at(names::text_embeds).at(0);
}

}  // namespace trtprune::runtime
