#include "runtime/pipeline.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <trtprune/error.hpp>
#include <utility>

#include "arguments.hpp"

namespace trtprune::runtime {

using arguments::arg;

std::vector<text::Turn> turns_of(const std::string& prompt, std::size_t images,
                                 const std::optional<std::string>& system) {
    std::vector<text::Turn> turns;
    if (system) turns.push_back({"system", *system, 0});
    turns.push_back({"user", prompt, static_cast<std::int64_t>(images)});
    return turns;
}

Pipeline::Pipeline(engine_dir::Opening opening, const LoadOptions& options)
    : config_(std::move(opening.directory)),
      backend_(backend::open_backend(config_, options)),
      chain_(config_, *backend_, opening.checks, [this] { encoder_.emplace(config_); }),
      clip_text_(chain_),
      processor_(images::processor_from_settings(config_.vision.processor, config_.vision.settings,
                                                 config_.root + "/" + engine_dir::config_name)),
      positions_(position_rule_of(config_)),
      decoder_(open_decoder(chain_)) {
    if (config_.find(engine_dir::roles::pruner) != nullptr) pruner_.emplace(chain_);
}

// -- limits of a request

std::int64_t Pipeline::check_keep(std::int64_t keep) const {
    const auto [low, high] = config_.pruning.keep_range;
    if (keep < low || keep > high) throw out_of_range(keep);
    decoder_->check_keep(keep);
    return keep;
}

Budget Pipeline::budget(std::optional<std::int64_t> keep, std::optional<double> keep_ratio) const {
    if (!keep_ratio) return Budget(keep ? check_keep(*keep) : config_.pruning.keep);
    if (keep) {
        throw InputError(arg("keep", *keep) + " and " + arg("keep_ratio", *keep_ratio) + " exclude each other",
                         "leave out one");
    }
    return Budget(config_.pruning.keep, *keep_ratio);
}

BudgetError Pipeline::out_of_range(std::int64_t keep) const {
    const engine_dir::PruningInfo& info = config_.pruning;
    const std::int64_t total = config_.model.visual_tokens;
    const auto [low, high] = info.keep_range;
    if (low == total) {
        return BudgetError(
            arg("keep", keep) + ": method " + info.method + " keeps all " + std::to_string(high) + " visual tokens",
            "leave out keep, or build with a method that prunes");
    }
    std::string hint = keep >= 1 && keep <= total ? "build with a wider keep_range"
                                                  : "an image has " + std::to_string(total) + " visual tokens";
    if (info.schedule && info.schedule->rule == "fixed") {
        hint = "leave out keep; this build's schedule makes it " + std::to_string(low);
    }
    return BudgetError(arg("keep", keep) + ": outside " + std::to_string(low) + " to " + std::to_string(high) +
                           ", the keep_range of this build",
                       hint);
}

void Pipeline::check_batch(std::size_t rows) const {
    const std::int64_t limit = decoder_->max_batch();
    if (static_cast<std::int64_t>(rows) <= limit) return;
    throw InputError(
        "batch_size: " + std::to_string(rows) + " rows at once; the engines were built for " + std::to_string(limit),
        "a smaller batch, or build with a larger max_batch_size");
}

void Pipeline::check_images(const std::vector<Image>& images) {
    if (!images.empty()) return;
    throw InputError("no image given", arg("images", "PICTURE") + "; the engines were built for questions on images");
}

// -- the stages, in their order

std::vector<Features> Pipeline::features(const std::vector<Image>& images, const std::vector<std::size_t>& together,
                                         Clock& clock) const {
    // Copies of an image share their pixels.
    std::map<std::pair<const void*, std::size_t>, std::size_t> known;
    std::vector<images::Prepared> prepared;
    std::vector<std::size_t> places;
    {
        const auto stage = clock.stage("preprocess");
        for (std::size_t i = 0; i < images.size(); ++i) {
            const auto [entry, fresh] = known.emplace(std::pair(images[i].data(), together[i]), prepared.size());
            if (fresh) {
                images::check_prepared_size(*processor_, images[i]);
                prepared.push_back(processor_->prepare(images[i], static_cast<std::int64_t>(together[i])));
            }
            places.push_back(entry->second);
        }
    }
    const auto stage = clock.stage("vision");
    std::vector<const images::Prepared*> once;
    for (const images::Prepared& image : prepared) once.push_back(&image);
    const std::vector<Features> seen = chain_.look(once);
    std::vector<Features> all;
    for (const std::size_t place : places) all.push_back(seen[place]);
    return all;
}

text::Prompt Pipeline::written_out(text::Prompt prompt, const std::vector<text::Turn>& turns,
                                   const std::vector<Features>& features, Clock& clock, bool raw) const {
    const std::vector<std::string> none{"", ""};
    text::Markers markers;
    for (const Features& seen : features) markers.push_back(seen.plan->span_texts());
    if (std::all_of(markers.begin(), markers.end(), [&](const auto& texts) { return texts == none; })) return prompt;
    const auto stage = clock.stage("preprocess");
    return encoder_->encode(turns, raw, &markers);
}

Tensor Pipeline::embed(const text::Prompt& prompt, Clock& clock) const {
    const auto stage = clock.stage("prefill");
    return chain_.embed(prompt.ids, [this](std::int64_t id) { return encoder_->token(id); });
}

Selection Pipeline::select(const text::Prompt& prompt, const Tensor& embeds, const std::vector<Features>& features,
                           const Budget& budget, std::uint64_t seed, Clock& clock) const {
    Selection selection;
    for (const Features& seen : features) {
        const std::int64_t keep = budget.of(seen.visual_tokens());
        if (budget.ratio() && keep < seen.visual_tokens()) check_keep(keep);
        selection.keeps.push_back(keep);
        selection.plans.push_back(seen.plan);
    }
    if (!pruner_) {
        for (const Features& seen : features) {
            Ids all(static_cast<std::size_t>(seen.visual_tokens()));
            std::iota(all.begin(), all.end(), std::int64_t{0});
            selection.kept.push_back(std::move(all));
            selection.rows.push_back(seen.image);
        }
        return selection;
    }
    const auto stage = clock.stage("prune");
    Tensor text;
    if (pruner_->reads_embeds()) text = chain_.memory().take(embeds, prompt.span(config_.pruning.text_span));
    const Tensors others = clip_text_.read(prompt);
    for (std::size_t i = 0; i < features.size(); ++i) {
        auto [kept, rows] =
            pruner_->prune(features[i], text, selection.keeps[i], static_cast<std::int64_t>(seed + i), others);
        selection.kept.push_back(std::move(kept));
        selection.rows.push_back(std::move(rows));
    }
    return selection;
}

Layout Pipeline::lay_out(const text::Prompt& prompt, const Tensor& embeds, const Selection& selection) const {
    return runtime::lay_out(prompt, embeds, selection, positions_);
}

std::unique_ptr<Answer> Pipeline::answer(const text::Prompt& prompt, const Layout& layout,
                                         const AnswerSettings& settings) const {
    const std::int64_t most = settings.max_new_tokens ? *settings.max_new_tokens : longest(prompt, layout);
    check_length(layout.length(), most, {config_.kv.capacity, Limit::Kind::capacity, decoder_->prunes()});
    check_length(layout.next_position, most, {config_.model.max_positions, Limit::Kind::positions, false});
    return std::make_unique<Answer>(config_, *encoder_, prompt, layout, most, settings);
}

// Longest answer without a caller's limit: the checkpoint's, as far as there is room, else 64 tokens.
std::int64_t Pipeline::longest(const text::Prompt& prompt, const Layout& layout) const {
    const engine_dir::GenerationInfo& info = config_.generation;
    std::optional<std::int64_t> most = info.max_new_tokens;
    if (!most && info.max_length) {
        const auto whole = static_cast<std::int64_t>(unpruned_ids(prompt, layout).size());
        most = *info.max_length - whole;
        if (*most < 1) {
            throw InputError("the prompt has " + std::to_string(whole) +
                                 " tokens with all of its visual ones, and the checkpoint's generation_config.json "
                                 "allows " +
                                 std::to_string(*info.max_length) + " with the answer",
                             arg("max_new_tokens", default_max_new_tokens) + " goes before that");
        }
    }
    if (!most) return default_max_new_tokens;
    const std::int64_t room =
        std::min(config_.kv.capacity - layout.length(), config_.model.max_positions - layout.next_position) + 1;
    return std::max<std::int64_t>(1, std::min(*most, room));
}

void Pipeline::run(const Answers& answers, const std::vector<const Layout*>& layouts, DecoderCache& cache,
                   const Ids& start, Clock& clock, const std::function<void()>& told) const {
    Prefill prefill;
    {
        const auto stage = clock.stage("prefill");
        prefill = decoder_->prefill(layouts, cache, start);
    }
    for (std::size_t b = 0; b < answers.size(); ++b) {
        answers[b]->set_kept(std::move(prefill.kept[b]), std::move(prefill.segment_tokens[b]));
    }
    const std::unique_ptr<backend::Step> step = decoder_->step(cache);
    generate(answers, prefill.logits, *step, cache.capacity(), positions_.axes(), clock, told);
}

}  // namespace trtprune::runtime
