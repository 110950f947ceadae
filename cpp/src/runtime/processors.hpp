#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/positions.hpp"

/// transformers' logits processors, one class each: they change logits before a token is chosen.
///
/// Names, order and arithmetic are transformers', so that a checkpoint's settings have the same meaning.
namespace trtprune::runtime {

/// Scores [V]; -inf excludes a token.
using Scores = std::vector<float>;

/// One step between logits and choice.
class LogitsProcessor {
  public:
    virtual ~LogitsProcessor() = default;

    /// Changes the scores.
    ///
    /// \param ids  The ids so far: the prompt, with its placeholder once for each visual token of an image, and the
    ///             answer.
    virtual void apply(const Ids& ids, Scores& scores) const = 0;
};

using Processors = std::vector<std::unique_ptr<LogitsProcessor>>;

/// Adds to the logit of a sequence's last id, if the ids so far end with the rest of the sequence.
class SequenceBias : public LogitsProcessor {
  public:
    /// \param biases  Each sequence of ids once, and the number to add.
    explicit SequenceBias(const std::vector<std::pair<Ids, double>>& biases);
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    struct Entry {
        Ids sequence;
        float bias;
    };
    std::vector<Entry> entries_;  // those of one length together, since numbers are added in that order
};

/// Excludes the last id of a sequence if the ids so far end with its rest; an end of sequence alone is not one.
class BadWords : public SequenceBias {
  public:
    BadWords(const std::vector<Ids>& words, const Ids& eos);
};

/// Makes earlier ids less likely (above 1) or likelier (below 1), once each.
class RepetitionPenalty : public LogitsProcessor {
  public:
    /// \param penalty  Divides a positive logit and multiplies a negative one.
    explicit RepetitionPenalty(double penalty) : penalty_(static_cast<float>(penalty)) {}
    /// The same for these ids, instead of all ids so far.
    RepetitionPenalty(double penalty, Ids only)
        : penalty_(static_cast<float>(penalty)), all_(false), only_(std::move(only)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float penalty_;
    bool all_ = true;
    Ids only_;
};

/// Excludes ids that would repeat a run of `size` ids.
class NoRepeatNGram : public LogitsProcessor {
  public:
    explicit NoRepeatNGram(std::int64_t size) : size_(size) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    std::int64_t size_;
};

/// Excludes ids that would repeat a run of `size` ids of the prompt.
class EncoderNoRepeatNGram : public LogitsProcessor {
  public:
    EncoderNoRepeatNGram(std::int64_t size, Ids prompt) : size_(size), prompt_(std::move(prompt)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    std::int64_t size_;
    Ids prompt_;
};

/// Excludes the end of the sequence before a length of `length` ids.
class MinLength : public LogitsProcessor {
  public:
    MinLength(std::int64_t length, Ids eos) : length_(length), eos_(std::move(eos)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    std::int64_t length_;
    Ids eos_;
};

/// Forces one of `tokens` at a length of `length` ids.
class Forced : public LogitsProcessor {
  public:
    Forced(std::int64_t length, Ids tokens) : length_(length), tokens_(std::move(tokens)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    std::int64_t length_;
    Ids tokens_;
};

/// Turns NaN into 0 and infinities into the largest finite numbers.
class RemoveInvalid : public LogitsProcessor {
  public:
    void apply(const Ids& ids, Scores& scores) const override;
};

/// Makes the end of the sequence likelier with each id after the first `start`.
class ExponentialDecay : public LogitsProcessor {
  public:
    ExponentialDecay(std::int64_t start, double factor, const Ids& eos);
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    std::int64_t start_;
    double factor_;
    Ids eos_;  // each once
};

/// Excludes tokens.
class Suppress : public LogitsProcessor {
  public:
    explicit Suppress(Ids tokens) : tokens_(std::move(tokens)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    Ids tokens_;
};

/// Excludes tokens at a length of `begin` ids: as the first one of the answer.
class BeginSuppress : public LogitsProcessor {
  public:
    BeginSuppress(Ids tokens, std::int64_t begin) : tokens_(std::move(tokens)), begin_(begin) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    Ids tokens_;
    std::int64_t begin_;
};

// -- before a draw

/// Divides the logits.
class Temperature : public LogitsProcessor {
  public:
    explicit Temperature(double temperature) : temperature_(static_cast<float>(temperature)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float temperature_;
};

/// Keeps the likeliest tokens whose entropy is below a fraction of the whole entropy.
class TopH : public LogitsProcessor {
  public:
    explicit TopH(double share) : share_(static_cast<float>(share)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float share_;
};

/// Keeps the `count` likeliest tokens, and ties with the last of them.
class TopK : public LogitsProcessor {
  public:
    explicit TopK(std::int64_t count) : count_(count) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    std::int64_t count_;
};

/// Keeps the likeliest tokens that together have this probability.
class TopP : public LogitsProcessor {
  public:
    explicit TopP(double share) : rest_(static_cast<float>(1 - share)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float rest_;
};

/// Keeps tokens with at least this fraction of the likeliest one's probability.
class MinP : public LogitsProcessor {
  public:
    explicit MinP(double share) : share_(static_cast<float>(share)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float share_;
};

/// Keeps the tokens whose surprise is nearest to the expected one, up to a total probability.
class Typical : public LogitsProcessor {
  public:
    explicit Typical(double share) : share_(static_cast<float>(share)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float share_;
};

/// Keeps tokens of at least this probability.
class Epsilon : public LogitsProcessor {
  public:
    explicit Epsilon(double cutoff) : cutoff_(static_cast<float>(cutoff)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float cutoff_;
};

/// Keeps tokens above a probability that is lower for a flatter distribution.
class Eta : public LogitsProcessor {
  public:
    explicit Eta(double cutoff) : cutoff_(static_cast<float>(cutoff)) {}
    void apply(const Ids& ids, Scores& scores) const override;

  private:
    float cutoff_;
};

}  // namespace trtprune::runtime
