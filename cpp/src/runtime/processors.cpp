#include "runtime/processors.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "runtime/numerics.hpp"

namespace trtprune::runtime {

namespace {

constexpr float never = -std::numeric_limits<float>::infinity();
constexpr float largest_float = std::numeric_limits<float>::max();
constexpr std::size_t top_h_tokens = 100;

std::int64_t length_of(const Ids& ids) {
    return static_cast<std::int64_t>(ids.size());
}

// Ids without a logit are skipped: a placeholder's may be above the vocabulary.
void exclude(Scores& scores, const Ids& tokens) {
    for (const std::int64_t token : tokens) {
        if (token >= 0 && token < static_cast<std::int64_t>(scores.size())) {
            scores[static_cast<std::size_t>(token)] = never;
        }
    }
}

void force(Scores& scores, const Ids& tokens) {
    std::fill(scores.begin(), scores.end(), never);
    for (const std::int64_t token : tokens) {
        if (token >= 0 && token < static_cast<std::int64_t>(scores.size())) scores[static_cast<std::size_t>(token)] = 0;
    }
}

// Whether the ids end with the first `count` ids of the sequence.
bool ends_with(const Ids& ids, const Ids& sequence, std::size_t count) {
    return count <= ids.size() && std::equal(sequence.begin(), sequence.begin() + static_cast<std::ptrdiff_t>(count),
                                             ids.end() - static_cast<std::ptrdiff_t>(count));
}

void exclude_repeats(const Ids& said, const Ids& ids, std::int64_t size, Scores& scores) {
    if (length_of(ids) + 1 < size || length_of(said) < size) return;
    const auto before = static_cast<std::ptrdiff_t>(size - 1);
    const auto last = ids.end() - before;
    Ids found;
    for (auto window = said.begin(); said.end() - window > before; ++window) {
        if (std::equal(last, ids.end(), window)) found.push_back(window[before]);
    }
    exclude(scores, found);
}

void keep_above(Scores& scores, float limit) {
    const Scores chances = softmax(scores);
    const float most = largest(scores);
    for (std::size_t i = 0; i < scores.size(); ++i) {
        if (chances[i] < limit && scores[i] < most) scores[i] = never;
    }
}

float sum_without_nan(Scores values) {
    for (float& value : values) {
        if (std::isnan(value)) value = 0;
    }
    return pairwise_sum(values);
}

}  // namespace

SequenceBias::SequenceBias(const std::vector<std::pair<Ids, double>>& biases) {
    std::vector<std::size_t> lengths;
    for (const auto& [sequence, bias] : biases) {
        if (std::find(lengths.begin(), lengths.end(), sequence.size()) == lengths.end()) {
            lengths.push_back(sequence.size());
        }
    }
    for (const std::size_t length : lengths) {
        for (const auto& [sequence, bias] : biases) {
            if (sequence.size() == length) entries_.push_back({sequence, static_cast<float>(bias)});
        }
    }
}

void SequenceBias::apply(const Ids& ids, Scores& scores) const {
    Scores added(scores.size(), 0.0F);
    for (const auto& [sequence, bias] : entries_) {
        const auto place = static_cast<std::size_t>(sequence.back());
        if (place < added.size() && ends_with(ids, sequence, sequence.size() - 1)) added[place] += bias;
    }
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] += added[i];
}

namespace {

std::vector<std::pair<Ids, double>> biases_of(const std::vector<Ids>& words, const Ids& eos) {
    std::vector<std::pair<Ids, double>> biases;
    std::set<Ids> known;
    for (const Ids& word : words) {
        const bool end = word.size() == 1 && std::find(eos.begin(), eos.end(), word[0]) != eos.end();
        if (!end && known.insert(word).second) biases.emplace_back(word, -std::numeric_limits<double>::infinity());
    }
    return biases;
}

}  // namespace

BadWords::BadWords(const std::vector<Ids>& words, const Ids& eos) : SequenceBias(biases_of(words, eos)) {}

void RepetitionPenalty::apply(const Ids& ids, Scores& scores) const {
    std::vector<bool> done(scores.size(), false);
    for (const std::int64_t id : all_ ? ids : only_) {
        const auto place = static_cast<std::size_t>(id);
        if (place >= scores.size() || done[place]) continue;
        done[place] = true;
        scores[place] = scores[place] < 0 ? scores[place] * penalty_ : scores[place] / penalty_;
    }
}

void NoRepeatNGram::apply(const Ids& ids, Scores& scores) const {
    exclude_repeats(ids, ids, size_, scores);
}

void EncoderNoRepeatNGram::apply(const Ids& ids, Scores& scores) const {
    exclude_repeats(prompt_, ids, size_, scores);
}

void MinLength::apply(const Ids& ids, Scores& scores) const {
    if (length_of(ids) < length_) exclude(scores, eos_);
}

void Forced::apply(const Ids& ids, Scores& scores) const {
    if (length_of(ids) == length_) force(scores, tokens_);
}

void RemoveInvalid::apply(const Ids& /*ids*/, Scores& scores) const {
    for (float& score : scores) {
        if (std::isnan(score)) score = 0;
        score = std::clamp(score, -largest_float, largest_float);
    }
}

ExponentialDecay::ExponentialDecay(std::int64_t start, double factor, const Ids& eos) : start_(start), factor_(factor) {
    const std::set<std::int64_t> once(eos.begin(), eos.end());
    eos_.assign(once.begin(), once.end());
}

void ExponentialDecay::apply(const Ids& ids, Scores& scores) const {
    const std::int64_t behind = length_of(ids) - start_;
    if (behind <= 0) return;
    const double power = std::pow(factor_, static_cast<double>(behind)) - 1;
    const auto grown = static_cast<float>(std::min(power, static_cast<double>(largest_float)));
    for (const std::int64_t id : eos_) {
        if (id < 0 || id >= static_cast<std::int64_t>(scores.size())) continue;
        float& score = scores[static_cast<std::size_t>(id)];
        if (std::isfinite(score)) score = score + std::abs(score) * grown;
    }
}

void Suppress::apply(const Ids& /*ids*/, Scores& scores) const {
    exclude(scores, tokens_);
}

void BeginSuppress::apply(const Ids& ids, Scores& scores) const {
    if (length_of(ids) == begin_) exclude(scores, tokens_);
}

void Temperature::apply(const Ids& /*ids*/, Scores& scores) const {
    for (float& score : scores) score /= temperature_;
}

void TopH::apply(const Ids& /*ids*/, Scores& scores) const {
    Scores negative;
    negative.reserve(scores.size());
    for (const float score : scores) negative.push_back(-score);
    std::vector<std::size_t> order = argsort(negative);
    order.resize(std::min(order.size(), top_h_tokens));
    Scores terms = softmax(at(scores, order));
    // An excluded token gives NaN and is not kept.
    for (float& term : terms) term = -term * std::log(term);
    const float limit = sum_without_nan(terms) * share_;
    const Scores total = cumulative(terms);
    Scores changed(scores.size(), never);
    for (std::size_t i = 0; i < order.size(); ++i) {
        if (i == 0 || total[i] <= limit) changed[order[i]] = scores[order[i]];
    }
    scores = std::move(changed);
}

void TopK::apply(const Ids& /*ids*/, Scores& scores) const {
    if (count_ >= static_cast<std::int64_t>(scores.size())) return;
    Scores ordered = scores;
    const auto place = ordered.end() - static_cast<std::ptrdiff_t>(count_);
    std::nth_element(ordered.begin(), place, ordered.end(), before<float>);
    const float least = *place;
    for (float& score : scores) {
        if (score < least) score = never;
    }
}

void TopP::apply(const Ids& /*ids*/, Scores& scores) const {
    const std::vector<std::size_t> order = argsort(scores);
    const Scores total = cumulative(softmax(at(scores, order)));
    for (std::size_t i = 0; i + 1 < order.size(); ++i) {
        if (total[i] <= rest_) scores[order[i]] = never;
    }
}

void MinP::apply(const Ids& /*ids*/, Scores& scores) const {
    const Scores chances = softmax(scores);
    const auto best = static_cast<std::size_t>(argmax(chances));
    const float limit = share_ * largest(chances);
    for (std::size_t i = 0; i < scores.size(); ++i) {
        if (chances[i] < limit && i != best) scores[i] = never;
    }
}

void Typical::apply(const Ids& /*ids*/, Scores& scores) const {
    const float most = largest(scores);
    Scores logs, chances, terms, distance;
    for (const float score : scores) logs.push_back(score - most);
    for (const float log : logs) chances.push_back(std::exp(log));
    const float total = std::log(pairwise_sum(chances));
    for (float& log : logs) {
        log -= total;
        terms.push_back(log * std::exp(log));
    }
    const float entropy = -sum_without_nan(terms);
    for (const float log : logs) distance.push_back(std::abs(-log - entropy));
    const std::vector<std::size_t> order = argsort(distance);
    const Scores sums = cumulative(softmax(at(scores, order)));
    std::size_t last = 0;
    for (const float sum : sums) last += sum < share_ ? 1 : 0;
    last = std::min(last, scores.size() - 1);
    const float limit = distance[order[last]];
    for (std::size_t i = 1; i < order.size(); ++i) {
        if (distance[order[i]] > limit) scores[order[i]] = never;
    }
}

void Epsilon::apply(const Ids& /*ids*/, Scores& scores) const {
    keep_above(scores, cutoff_);
}

void Eta::apply(const Ids& /*ids*/, Scores& scores) const {
    Scores terms = softmax(scores);
    for (float& term : terms) term *= std::log(std::max(term, std::numeric_limits<float>::min()));
    const float entropy = -pairwise_sum(terms);
    keep_above(scores, std::min(cutoff_, std::sqrt(cutoff_) * std::exp(-entropy)));
}

}  // namespace trtprune::runtime
