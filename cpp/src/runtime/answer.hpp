#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <trtprune/vlm.hpp>
#include <vector>

#include "engine_dir/schema.hpp"
#include "runtime/clock.hpp"
#include "runtime/layout.hpp"
#include "runtime/sampling.hpp"
#include "text/prompt.hpp"

/// One row's answer: its settings, its growing text, and the result.
namespace trtprune::runtime {

/// Longest answer in tokens, if neither caller nor checkpoint set one.
constexpr std::int64_t default_max_new_tokens = 64;

/// Settings of an answer: a caller's, with the checkpoint's for those that are not set.
struct AnswerSettings {
    /// \throws InputError  for a setting out of range.
    AnswerSettings(const engine_dir::GenerationInfo& checkpoint, const GenerateOptions& options);

    Sampling sampling;
    std::optional<std::int64_t> max_new_tokens;  ///< longest answer; not set: the checkpoint's, as far as there is room
    std::vector<std::string> stop;               ///< texts that end the answer
    bool ignore_eos = false;                     ///< whether the answer goes on behind an end-of-sequence token
};

/// A row during its answer, with the text so far.
class Answer {
  public:
    /// \param config          The engine directory, for end-of-sequence ids and sizes; outlives the object.
    /// \param encoder         The tokenizer for decoding.
    /// \param prompt          The row's prompt.
    /// \param layout          The prompt as the decoder reads it.
    /// \param max_new_tokens  Longest answer.
    Answer(const engine_dir::EngineDir& config, const text::PromptEncoder& encoder, const text::Prompt& prompt,
           const Layout& layout, std::int64_t max_new_tokens, const AnswerSettings& settings);

    /// Tokens of the prompt.
    std::int64_t prompt_tokens() const noexcept { return prompt_tokens_; }
    /// The position of the first token of the answer.
    std::int64_t next_position() const noexcept { return next_position_; }
    /// Tokens of the row in the cache at the end; the answer's last one is never fed back.
    std::int64_t tokens() const { return prompt_tokens_ + max_new_tokens_ - 1; }
    /// All chosen ids.
    const Ids& token_ids() const noexcept { return token_ids_; }
    /// Whether the answer is complete.
    bool finished() const noexcept { return !finish_reason_.empty(); }

    /// Chooses the next token from logits float32 [V]; returns it.
    std::int64_t choose(const Tensor& logits);
    /// Text that is final since the last call.
    std::string take();
    /// Ends an answer that is not complete, as the caller asked.
    void end_early();
    /// What the decoder's pruning left of the row's images.
    void set_kept(std::vector<Ids> kept, std::vector<Ids> segment_tokens);
    /// The result of a finished row.
    Result result(const Clock& clock, std::int64_t cache_bytes) const;

  private:
    double per_layer() const;

    const engine_dir::EngineDir& config_;
    Ids eos_;
    std::string pieces_;
    std::vector<Ids> kept_;
    std::vector<Ids> segment_tokens_;
    text::Detokenizer text_;
    Sampler sampler_;
    std::int64_t prompt_tokens_;
    std::int64_t next_position_;
    std::int64_t visual_tokens_ = 0;
    std::int64_t max_new_tokens_;
    Ids token_ids_;
    std::string finish_reason_;
};

}  // namespace trtprune::runtime
