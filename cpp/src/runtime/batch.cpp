#include "runtime/batch.hpp"

#include <algorithm>
#include <memory>
#include <utility>

namespace trtprune::runtime {

namespace {

// A checked request with its own settings.
struct Row {
    const Request* request;
    Budget budget;
    AnswerSettings settings;
};

Row row_of(const Pipeline& pipeline, const Request& request, const GenerateOptions& options) {
    const bool own = request.keep || request.keep_ratio;
    const Budget budget =
        own ? pipeline.budget(request.keep, request.keep_ratio) : pipeline.budget(options.keep, options.keep_ratio);
    GenerateOptions settings = options;
    if (request.max_new_tokens) settings.max_new_tokens = request.max_new_tokens;
    if (request.seed) settings.seed = request.seed;
    Pipeline::check_images(request.images);
    return {&request, budget, AnswerSettings(pipeline.config().generation, settings)};
}

std::vector<text::Turn> turns_of(const Request& request) {
    return runtime::turns_of(request.prompt, request.images.size(), request.system);
}

}  // namespace

std::function<void()> telling(Answer& answer, const TextCallback& on_text) {
    if (!on_text) return [] {};
    return [&answer, &on_text] {
        const std::string piece = answer.take();
        if (piece.empty()) return;
        bool going = true;
        try {
            going = on_text(piece);
        } catch (...) {
            throw CallbackFailure{std::current_exception()};
        }
        if (!going) answer.end_early();
    };
}

std::vector<Result> run_batch(const Pipeline& pipeline, const std::vector<Request>& requests,
                              const GenerateOptions& options, const TextCallback& on_text) {
    const AnswerSettings common(pipeline.config().generation, options);  // checked even without a request
    std::vector<Row> rows;
    for (const Request& request : requests) rows.push_back(row_of(pipeline, request, options));
    if (rows.empty()) return {};
    Clock clock;
    pipeline.check_batch(rows.size());
    // 1. The prompts first: they are cheap, and a bad one is reported before the vision tower runs.
    std::vector<text::Prompt> prompts;
    std::vector<Image> images;
    std::vector<std::size_t> together;
    {
        const auto stage = clock.stage("preprocess");
        for (const Row& row : rows) {
            prompts.push_back(pipeline.encoder().encode(turns_of(*row.request), row.request->raw_prompt));
            images.insert(images.end(), row.request->images.begin(), row.request->images.end());
            together.insert(together.end(), row.request->images.size(), row.request->images.size());
        }
    }
    // 2. All images of all rows, each once.
    const std::vector<Features> features = pipeline.features(images, together, clock);
    // 3. Select, and lay the rows out.
    std::vector<Layout> layouts;
    Answers answers;
    auto next = features.begin();
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const Row& row = rows[i];
        const auto stop = next + static_cast<std::ptrdiff_t>(row.request->images.size());
        const std::vector<Features> seen(next, stop);
        next = stop;
        prompts[i] =
            pipeline.written_out(std::move(prompts[i]), turns_of(*row.request), seen, clock, row.request->raw_prompt);
        const Tensor embeds = pipeline.embed(prompts[i], clock);
        const Selection selection =
            pipeline.select(prompts[i], embeds, seen, row.budget, row.settings.sampling.seed().value_or(0), clock);
        layouts.push_back(pipeline.lay_out(prompts[i], embeds, selection));
        answers.push_back(pipeline.answer(prompts[i], layouts.back(), row.settings));
    }
    // 4. One cache for all of them, for the largest possible length of a row.
    std::vector<const Layout*> pointers;
    std::int64_t tokens = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        pointers.push_back(&layouts[i]);
        tokens = std::max(tokens, answers[i]->tokens());
    }
    const auto count = static_cast<std::int64_t>(rows.size());
    Decoder& decoder = pipeline.decoder();
    std::unique_ptr<DecoderCache> cache = decoder.take(count, tokens);
    try {
        pipeline.run(answers, pointers, *cache, Ids(rows.size(), 0), clock, telling(*answers[0], on_text));
    } catch (...) {
        decoder.give_back(std::move(cache));
        throw;
    }
    std::vector<Result> results;
    for (const auto& answer : answers) results.push_back(answer->result(clock, cache->nbytes() / count));
    decoder.give_back(std::move(cache));
    return results;
}

}  // namespace trtprune::runtime
