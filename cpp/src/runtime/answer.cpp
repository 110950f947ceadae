#include "runtime/answer.hpp"

#include <algorithm>
#include <trtprune/error.hpp>
#include <utility>

#include "arguments.hpp"

namespace trtprune::runtime {

using arguments::arg;

namespace {

// As Python prints a list of texts.
std::string listed(const std::vector<std::string>& texts) {
    std::string list;
    for (const std::string& text : texts) list += (list.empty() ? "" : ", ") + arg("", text).substr(1);
    return "[" + list + "]";
}

std::vector<std::string> stops_of(const engine_dir::GenerationInfo& checkpoint, const GenerateOptions& options) {
    // In a measurement of a fixed length the checkpoint's own texts must not end an answer either.
    if (!options.stop) return options.ignore_eos ? std::vector<std::string>{} : checkpoint.stop_strings;
    if (std::any_of(options.stop->begin(), options.stop->end(), [](const auto& text) { return text.empty(); })) {
        throw InputError("stop=" + listed(*options.stop) + ": must be a text that is not empty, or a list of such");
    }
    return *options.stop;
}

Ids eos_of(const engine_dir::EngineDir& config, bool ignored) {
    return ignored ? Ids{} : config.model.eos_token_ids;
}

}  // namespace

AnswerSettings::AnswerSettings(const engine_dir::GenerationInfo& checkpoint, const GenerateOptions& options)
    : sampling(checkpoint, options), ignore_eos(options.ignore_eos) {
    if (options.max_new_tokens) max_new_tokens = arguments::whole("max_new_tokens", *options.max_new_tokens, 1);
    stop = stops_of(checkpoint, options);
}

Answer::Answer(const engine_dir::EngineDir& config, const text::PromptEncoder& encoder, const text::Prompt& prompt,
               const Layout& layout, std::int64_t max_new_tokens, const AnswerSettings& settings)
    : config_(config),
      eos_(eos_of(config, settings.ignore_eos)),
      kept_(layout.kept),
      text_(encoder.detokenizer(settings.stop)),
      // transformers penalises every id of the prompt, the image placeholder's too.
      sampler_(settings.sampling, unpruned_ids(prompt, layout), eos_, max_new_tokens),
      prompt_tokens_(layout.length()),
      next_position_(layout.next_position),
      max_new_tokens_(max_new_tokens) {
    for (const Plan& plan : layout.plans) visual_tokens_ += plan->tokens();
}

std::int64_t Answer::choose(const Tensor& logits) {
    const std::int64_t token = sampler_.choose(logits);
    token_ids_.push_back(token);
    pieces_ += text_.add(token);
    if (text_.stopped() || std::find(eos_.begin(), eos_.end(), token) != eos_.end()) {
        finish_reason_ = "stop";
    } else if (static_cast<std::int64_t>(token_ids_.size()) >= max_new_tokens_) {
        finish_reason_ = "length";
    }
    return token;
}

std::string Answer::take() {
    if (finished()) pieces_ += text_.finish();
    return std::exchange(pieces_, {});
}

void Answer::end_early() {
    if (!finished()) finish_reason_ = "callback";
}

void Answer::set_kept(std::vector<Ids> kept, std::vector<Ids> segment_tokens) {
    kept_ = std::move(kept);
    segment_tokens_ = std::move(segment_tokens);
}

Result Answer::result(const Clock& clock, std::int64_t cache_bytes) const {
    Result result;
    result.text = text_.text();
    result.token_ids = token_ids_;
    result.finish_reason = finish_reason_;
    result.method = config_.pruning.method;
    result.visual_tokens = visual_tokens_;
    for (const Ids& kept : kept_) result.kept_tokens += static_cast<std::int64_t>(kept.size());
    result.kept_indices = kept_;
    result.timings = clock.read();
    const auto steps = static_cast<double>(token_ids_.size()) - 1;
    const double ms = result.timings.at("decode");
    result.tokens_per_second = steps > 0 && ms > 0 ? rounded(1000 * steps / ms) : 0.0;
    result.kv_cache_bytes = cache_bytes;
    result.prompt_tokens = prompt_tokens_;
    result.segment_tokens = segment_tokens_;
    result.tokens_per_layer = per_layer();
    return result;
}

// Visual tokens per layer, processed and cached, on average over the layers; for all images together.
double Answer::per_layer() const {
    std::int64_t tokens = 0, depth = 0;
    if (segment_tokens_.empty()) {
        for (const Ids& kept : kept_) tokens += static_cast<std::int64_t>(kept.size());
        return static_cast<double>(tokens);
    }
    const Ids& layers = config_.kv.segment_layers;
    for (const std::int64_t count : layers) depth += count;
    for (const Ids& counts : segment_tokens_) {
        for (std::size_t k = 0; k < std::min(layers.size(), counts.size()); ++k) tokens += layers[k] * counts[k];
    }
    return depth == 0 ? 0.0 : rounded(static_cast<double>(tokens) / static_cast<double>(depth));
}

}  // namespace trtprune::runtime
