#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <trtprune/vlm.hpp>
#include <vector>

#include "engine_dir/opening.hpp"
#include "engine_dir/schema.hpp"
#include "images/processor.hpp"
#include "runtime/answer.hpp"
#include "runtime/budget.hpp"
#include "runtime/chain.hpp"
#include "runtime/clip_text.hpp"
#include "runtime/decoder.hpp"
#include "runtime/generation.hpp"
#include "runtime/pruner.hpp"
#include "text/prompt.hpp"

/// The exchange that every answer goes through: prompt → features → selection → layout → cache → prefill → decode.
///
/// A batch and a conversation differ only in what they keep between two exchanges.  No arithmetic on tensors here:
/// `chain`, `pruner` and `decoder` do that.
namespace trtprune::runtime {

/// The turns of a single question.
std::vector<text::Turn> turns_of(const std::string& prompt, std::size_t images,
                                 const std::optional<std::string>& system);

/// The stages of an engine directory.  One thread at a time.
class Pipeline {
  public:
    /// Opens everything, so that a provider that does not load fails here and not at the first question.
    ///
    /// \throws EngineDirError  for weights that are not those of the build, before any other error.
    Pipeline(engine_dir::Opening opening, const LoadOptions& options);

    const engine_dir::EngineDir& config() const noexcept { return config_; }
    /// Name of the runtime.
    const std::string& provider() const { return backend_->name(); }
    const text::PromptEncoder& encoder() const noexcept { return *encoder_; }
    Decoder& decoder() const noexcept { return *decoder_; }

    // -- limits of a request

    /// The budget of every image of a request; the build's default if neither is set.
    ///
    /// \throws BudgetError  if the build does not serve it.  A share is checked when the image's tokens are known.
    /// \throws InputError   for both at once, or a share out of range.
    Budget budget(std::optional<std::int64_t> keep, std::optional<double> keep_ratio) const;
    /// Refuses more rows than the decoder can run at once; raises InputError.
    void check_batch(std::size_t rows) const;
    /// Refuses a request without an image; raises InputError.
    static void check_images(const std::vector<Image>& images);

    // -- the stages, in their order

    /// Features of each image; one that occurs twice is looked at once.
    ///
    /// \param together  For each image, how many stand in its prompt.
    /// \param clock     Counts the time as `preprocess` and `vision`.
    /// \throws InputError  for an image that the processor makes nothing of.
    std::vector<Features> features(const std::vector<Image>& images, const std::vector<std::size_t>& together,
                                   Clock& clock) const;
    /// A prompt with the markers of its images, which follow from their sizes; without any, the prompt itself.
    ///
    /// \param prompt    The encoded turns, with one placeholder an image.
    /// \param features  Features of each image.
    /// \param raw       Whether the last turn's text is the whole prompt.
    text::Prompt written_out(text::Prompt prompt, const std::vector<text::Turn>& turns,
                             const std::vector<Features>& features, Clock& clock, bool raw = false) const;
    /// Embeddings [T, D] of a prompt's ids; those at placeholders have no meaning.
    Tensor embed(const text::Prompt& prompt, Clock& clock) const;
    /// The visual tokens of a prompt's images that enter the decoder; all of them without a pruner before it.
    ///
    /// \param seed   Seed of methods that draw at random; images of one prompt have different seeds.
    /// \param clock  Counts the time as `prune`.
    Selection select(const text::Prompt& prompt, const Tensor& embeds, const std::vector<Features>& features,
                     const Budget& budget, std::uint64_t seed, Clock& clock) const;
    /// The prompt's text and selected features in one row.
    Layout lay_out(const text::Prompt& prompt, const Tensor& embeds, const Selection& selection) const;
    /// A new answer, before its first token.
    ///
    /// \throws InputError  if prompt and answer do not fit in the cache, the model's positions or the checkpoint's
    /// limit.
    std::unique_ptr<Answer> answer(const text::Prompt& prompt, const Layout& layout,
                                   const AnswerSettings& settings) const;
    /// Prefill and decode: completes the answers.
    ///
    /// \param layouts  Their prompts.
    /// \param cache    A cache of the decoder with room for the longest row.
    /// \param start    For each row, the number of its tokens in the cache.
    /// \param told     Called after each round of tokens.
    void run(const Answers& answers, const std::vector<const Layout*>& layouts, DecoderCache& cache, const Ids& start,
             Clock& clock, const std::function<void()>& told) const;

  private:
    std::int64_t check_keep(std::int64_t keep) const;
    BudgetError out_of_range(std::int64_t keep) const;
    std::int64_t longest(const text::Prompt& prompt, const Layout& layout) const;

    engine_dir::EngineDir config_;
    std::unique_ptr<backend::Backend> backend_;
    std::optional<text::PromptEncoder> encoder_;  // opened beside the sessions
    Chain chain_;
    ClipText clip_text_;
    std::unique_ptr<images::Processor> processor_;
    PositionRule positions_;
    std::unique_ptr<Decoder> decoder_;
    std::optional<Pruner> pruner_;
};

}  // namespace trtprune::runtime
