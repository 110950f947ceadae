#include "runtime/conversation.hpp"

#include <algorithm>
#include <trtprune/error.hpp>
#include <utility>

#include "arguments.hpp"
#include "runtime/batch.hpp"

namespace trtprune::runtime {

using arguments::arg;

namespace {

// Length of the common beginning, where the last of `second` does not count.
std::int64_t common(const Ids& first, const Ids& second) {
    const auto end = second.empty() ? second.end() : second.end() - 1;
    return std::mismatch(first.begin(), first.end(), second.begin(), end).first - first.begin();
}

}  // namespace

Turns::Turns(const Pipeline& pipeline, std::vector<Image> images, const std::optional<std::string>& system)
    : pipeline_(pipeline), images_(std::move(images)) {
    Pipeline::check_images(images_);
    if (system) turns_.push_back({"system", *system, 0});
}

Result Turns::ask(const std::string& prompt, const GenerateOptions& options, const TextCallback& on_text, bool repick) {
    const AnswerSettings settings(pipeline_.config().generation, options);
    Budget budget = pipeline_.budget(options.keep, options.keep_ratio);
    const bool chosen = options.keep || options.keep_ratio;
    Clock clock;
    // 1. The whole conversation as one prompt.
    std::vector<text::Turn> turns = turns_;
    turns.push_back({"user", prompt, asked_ ? 0 : static_cast<std::int64_t>(images_.size())});
    text::Prompt encoded;
    {
        const auto stage = clock.stage("preprocess");
        encoded = pipeline_.encoder().encode(turns);
    }
    // 2. The vision tower runs once.
    if (features_.empty()) {
        features_ = pipeline_.features(images_, std::vector<std::size_t>(images_.size(), images_.size()), clock);
    }
    encoded = pipeline_.written_out(std::move(encoded), turns, features_, clock);
    // 3. The selection: the question's own, or the earlier one.
    const bool before = !repick && selection_;
    if (before && chosen && !(budget == *budget_)) {
        const std::string name = budget.ratio() ? arg("keep_ratio", *budget.ratio()) : arg("keep", budget.keep());
        throw InputError(name + ": the selection was made with another", arg("repick", true) + " selects anew");
    }
    const Tensor embeds = pipeline_.embed(encoded, clock);
    if (before) budget = *budget_;
    const Selection selection =
        before ? *selection_
               : pipeline_.select(encoded, embeds, features_, budget, settings.sampling.seed().value_or(0), clock);
    const Layout layout = pipeline_.lay_out(encoded, embeds, selection);
    Answers answers;
    answers.push_back(pipeline_.answer(encoded, layout, settings));
    Answer& answer = *answers[0];
    // 4. The cached part of the prompt.  Equal ids are not enough: the features must be the same, too.
    std::int64_t known = 0;
    // Until the answer is complete, the cache has no owner: after a failure it must not be used.
    std::unique_ptr<DecoderCache> cache = std::move(cache_);
    if (cache != nullptr && before) {
        known = common(cached_, layout.ids);
        cache = pipeline_.decoder().grow(std::move(cache), answer.tokens());
    } else {
        if (cache != nullptr) pipeline_.decoder().give_back(std::move(cache));
        cache = pipeline_.decoder().take(1, answer.tokens());
    }
    // 5. The answer.
    pipeline_.run(answers, {&layout}, *cache, {known}, clock, telling(answer, on_text));
    Result result = answer.result(clock, cache->nbytes());
    turns.push_back({"assistant", result.text, 0});
    turns_ = std::move(turns);
    asked_ = true;
    selection_ = selection;
    cache_ = std::move(cache);
    budget_ = budget;
    cached_ = layout.ids;
    cached_.insert(cached_.end(), result.token_ids.begin(), result.token_ids.end() - 1);
    return result;
}

}  // namespace trtprune::runtime
