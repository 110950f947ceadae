#include "runtime/cut_decoder.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <trtprune/error.hpp>
#include <utility>

#include "backend/tensor_names.hpp"
#include "runtime/rank.hpp"
#include "runtime/segment_step.hpp"

namespace trtprune::runtime {

namespace roles = engine_dir::roles;

namespace {

SegmentCaches& segments_of(DecoderCache& cache) {
    return dynamic_cast<SegmentCaches&>(cache);
}

bool has_input(const engine_dir::ComponentInfo& component, const std::string& name) {
    return std::any_of(component.inputs.begin(), component.inputs.end(),
                       [&](const auto& spec) { return spec.name == name; });
}

const ScheduleInfo& schedule_of(const engine_dir::EngineDir& config) {
    if (!config.pruning.schedule) {
        throw EngineDirError(config.root + ": its decoder is cut, and config.pruning has no schedule for it");
    }
    return *config.pruning.schedule;
}

bool contains(const Ids& values, std::int64_t wanted) {
    return std::find(values.begin(), values.end(), wanted) != values.end();
}

Ids range(std::int64_t begin, std::int64_t end) {
    Ids values(static_cast<std::size_t>(end - begin));
    std::iota(values.begin(), values.end(), begin);
    return values;
}

Ids rows_with(const Ids& picture, std::int64_t number) {
    Ids rows;
    for (std::size_t i = 0; i < picture.size(); ++i) {
        if (picture[i] == number) rows.push_back(static_cast<std::int64_t>(i));
    }
    return rows;
}

}  // namespace

std::int64_t SegmentCaches::nbytes() const {
    std::int64_t total = 0;
    for (const auto& part : parts) total += part == nullptr ? 0 : part->nbytes();
    return total;
}

CutDecoder::CutDecoder(const Chain& chain)
    : chain_(chain),
      config_(chain.config()),
      schedule_(schedule_of(chain.config())),
      positions_(position_rule_of(chain.config())),
      count_(chain.config().segments().size()),
      rated_(has_input(*chain.config().segments().at(0), names::rater_index)) {
    for (std::size_t k = 0; k < count_; ++k) pools_.emplace_back(segment(k), config_.kv);
}

backend::Session& CutDecoder::segment(std::size_t k) const {
    return chain_.session(roles::decoder, static_cast<std::int64_t>(k));
}

std::int64_t CutDecoder::max_batch() const {
    std::int64_t most = segment(0).max_batch();
    for (std::size_t k = 1; k < count_; ++k) most = std::min(most, segment(k).max_batch());
    return most;
}

void CutDecoder::check_keep(std::int64_t keep) const {
    schedule_.check_keep(keep, config_.model.visual_tokens);
}

// -- caches

std::unique_ptr<DecoderCache> CutDecoder::take(std::int64_t batch, std::int64_t tokens) {
    auto cache = std::make_unique<SegmentCaches>();
    const Ids none(static_cast<std::size_t>(batch), 0);
    cache->tokens = tokens;
    cache->parts.push_back(pools_[0].take(batch, tokens));
    cache->parts.resize(count_);  // those of later segments follow in the prefill
    cache->dropped.assign(count_, none);
    cache->shift.assign(count_, none);
    return cache;
}

std::unique_ptr<DecoderCache> CutDecoder::grow(std::unique_ptr<DecoderCache> cache, std::int64_t tokens) {
    SegmentCaches& own = segments_of(*cache);
    if (tokens <= own.tokens) return cache;
    for (std::size_t k = 0; k < count_; ++k) {
        const std::int64_t least = *std::min_element(own.dropped[k].begin(), own.dropped[k].end());
        own.parts[k] = pools_[k].grow(std::move(own.parts[k]), tokens - least);
    }
    own.tokens = tokens;
    return cache;
}

void CutDecoder::give_back(std::unique_ptr<DecoderCache> cache) {
    SegmentCaches& own = segments_of(*cache);
    for (std::size_t k = 0; k < count_; ++k) pools_[k].give_back(std::move(own.parts[k]));
}

// -- prompts

Prefill CutDecoder::prefill(const std::vector<const Layout*>& layouts, DecoderCache& cache, const Ids& start) {
    SegmentCaches& own = segments_of(cache);
    // A prune point must see a whole image and all its raters at once: the cached part is kept only if it includes the
    // images.
    bool behind = true;
    for (std::size_t b = 0; b < layouts.size(); ++b) {
        for (const Places& places : layouts[b]->places) behind = behind && places.back().second <= start[b];
    }
    const bool any = std::any_of(start.begin(), start.end(), [](std::int64_t first) { return first != 0; });
    const bool fresh = !(behind && any);
    const Ids begins = fresh ? Ids(start.size(), 0) : start;
    std::vector<PromptRow> rows;
    for (std::size_t b = 0; b < layouts.size(); ++b) rows.push_back(begin(*layouts[b], begins[b], fresh));
    Tensor logits = pass(rows, own, begins, fresh);
    while (!logits) {
        // The ranks that share out the budget are known only after a layer's run.  Each pass knows one more of them.
        for (std::size_t b = 0; b < layouts.size(); ++b) {
            std::vector<Ids> ranks = std::move(rows[b].ranks);
            rows[b] = begin(*layouts[b], 0, fresh);
            rows[b].ranks = std::move(ranks);
        }
        logits = pass(rows, own, begins, fresh);
    }
    if (fresh) {
        own.kept.clear();
        for (const PromptRow& row : rows) own.kept.push_back(row.kept());
    }
    return {logits, own.kept, own.counts};
}

PromptRow CutDecoder::begin(const Layout& layout, std::int64_t first, bool fresh) const {
    Ids picture(layout.ids.size(), text_row);
    for (const std::int64_t marker : layout.markers) picture[static_cast<std::size_t>(marker)] = marker_row;
    for (std::size_t number = 0; number < layout.places.size(); ++number) {
        for (const auto& [from, to] : layout.places[number]) {
            std::fill(picture.begin() + from, picture.begin() + to, static_cast<std::int64_t>(number));
        }
    }
    PromptRow row;
    if (fresh) {
        for (std::size_t number = 0; number < layout.places.size(); ++number) {
            row.raters.push_back(raters(layout, picture, number));
        }
        row.places = layout.places;
        row.plans = layout.plans;
    }
    row.pieces = skip_rows(layout.embeds, first);
    for (const Ids& axis : layout.positions) row.positions.emplace_back(axis.begin() + first, axis.end());
    row.next_position = layout.next_position;
    row.picture.assign(picture.begin() + first, picture.end());
    row.source = range(first, layout.length());
    row.keeps = layout.keeps;
    row.ranks.resize(row.raters.size());
    row.counts.resize(row.raters.size());
    return row;
}

// The given rows, ascending, of pieces [n, D], which are counted together.
std::vector<Tensor> CutDecoder::pieces_at(const std::vector<Tensor>& pieces, const Ids& rows) const {
    std::vector<Tensor> found;
    std::int64_t first = 0;
    auto row = rows.begin();
    for (const Tensor& piece : pieces) {
        Ids own;
        for (; row != rows.end() && *row < first + piece.length(); ++row) own.push_back(*row - first);
        const bool whole = static_cast<std::int64_t>(own.size()) == piece.length();
        if (!own.empty()) found.push_back(whole ? piece : chain_.memory().take(piece, own));
        first += piece.length();
    }
    return found;
}

// Rows of the first segment that rate an image: some of the text behind it.
Ids CutDecoder::raters(const Layout& layout, const Ids& picture, std::size_t number) const {
    const std::int64_t stop = layout.places[number].back().second;
    Ids text;
    for (std::int64_t i = stop; i < layout.length(); ++i) {
        if (picture[static_cast<std::size_t>(i)] == text_row) text.push_back(i);
    }
    if (text.empty()) {
        throw InputError("there is no text behind an image of the prompt; with method " + config_.pruning.method +
                             " that text rates it",
                         "put the question behind the image, or build with another method");
    }
    if (config_.find(roles::raters) == nullptr) return {text.back()};
    const auto joined = [&](const Ids& rows) {
        return chain_.memory().join({pieces_at(layout.embeds, rows)}, static_cast<std::int64_t>(rows.size()));
    };
    const Tensors out =
        chain_.session(roles::raters)
            .run({{names::image_features, joined(rows_with(picture, static_cast<std::int64_t>(number)))},
                  {names::text_embeds, joined(text)}});
    const Tensor mask = chain_.memory().to_host(out.at(names::raters)).at(0);
    Ids chosen;
    for (std::int64_t i = 0; i < mask.length(); ++i) {
        const Tensor value = mask.at(i);
        const bool rates = std::any_of(value.bytes(), value.bytes() + value.nbytes(),
                                       [](std::byte part) { return part != std::byte{0}; });
        if (rates) chosen.push_back(text.at(static_cast<std::size_t>(i)));
    }
    return chosen;
}

// Logits [B, V], and the rows in the last segment; no logits if a row became stale.
Tensor CutDecoder::pass(std::vector<PromptRow>& rows, SegmentCaches& cache, const Ids& start, bool fresh) {
    std::vector<PromptRow> whole = rows;  // views; for lengths and positions in the first segment
    if (fresh) {
        cache.counts.clear();
        for (const PromptRow& row : rows) cache.counts.emplace_back(row.raters.size());
    }
    Tensors out;
    for (std::size_t k = 0; k < count_; ++k) {
        if (fresh) settle(k, rows, whole, cache);
        Ids slots(rows.size(), 0);
        if (!fresh) {
            for (std::size_t b = 0; b < rows.size(); ++b) slots[b] = start[b] - cache.dropped[k][b];
        }
        out = run(k, rows, *cache.parts[k], slots);
        if (k + 1 == count_) break;
        bool stale = false;
        for (std::size_t b = 0; b < rows.size(); ++b) {
            advance(k, b, rows[b], out);
            stale = stale || rows[b].stale;
            if (fresh) continue;
            // The images lie in the cached part: what they lost there moves the text behind them.
            const std::int64_t moved = cache.shift[k + 1][b] - cache.shift[k][b];
            for (Ids& axis : rows[b].positions) {
                for (std::int64_t& position : axis) position -= moved;
            }
        }
        if (stale) return {};
    }
    return last_logits(chain_.memory(), out.at(names::logits));
}

// Records the rows' lengths in segment `k`, and gets memory for them.
void CutDecoder::settle(std::size_t k, const std::vector<PromptRow>& rows, const std::vector<PromptRow>& whole,
                        SegmentCaches& cache) {
    for (std::size_t b = 0; b < rows.size(); ++b) {
        cache.dropped[k][b] = whole[b].length() - rows[b].length();
        cache.shift[k][b] = whole[b].next_position - rows[b].next_position;
        for (std::size_t number = 0; number < cache.counts[b].size(); ++number) {
            cache.counts[b][number].push_back(rows[b].tokens_of(number));
        }
    }
    if (k == 0) return;
    pools_[k].give_back(std::move(cache.parts[k]));
    const std::int64_t least = *std::min_element(cache.dropped[k].begin(), cache.dropped[k].end());
    cache.parts[k] = pools_[k].take(static_cast<std::int64_t>(rows.size()), cache.tokens - least);
}

Tensors CutDecoder::run(std::size_t k, const std::vector<PromptRow>& rows, backend::Cache& cache,
                        const Ids& slots) const {
    std::int64_t width = 0;
    Ids last;
    std::vector<std::vector<Tensor>> pieces;
    std::vector<const std::vector<Ids>*> positions;
    for (const PromptRow& row : rows) {
        width = std::max(width, row.length());
        last.push_back(row.length() - 1);
        pieces.push_back(row.pieces);
        positions.push_back(&row.positions);
    }
    Tensors inputs{{k != 0 ? names::hidden_states : names::inputs_embeds, chain_.memory().join(pieces, width)},
                   {names::position_ids, position_table(positions, Ids(rows.size(), 0), width)},
                   {names::write_index, Tensor::of(slots)}};
    if (k + 1 == count_) {
        inputs[names::logits_index] = Tensor::of(last, {static_cast<std::int64_t>(rows.size()), 1});
    } else if (rated_) {
        inputs[names::rater_index] = rating_table(rows);
    }
    return segment(k).run(inputs, &cache);
}

// Row `b` at the beginning of the segment behind `k`.
void CutDecoder::advance(std::size_t k, std::size_t b, PromptRow& row, const Tensors& out) const {
    const Tensor states = out.at(names::last_hidden_state).at(static_cast<std::int64_t>(b));
    std::vector<Tensor> pieces;
    Ids picture, source;
    const auto carry = [&](std::int64_t from, std::int64_t to) {
        if (from >= to) return;
        pieces.push_back(states.slice(from, to));
        picture.insert(picture.end(), row.picture.begin() + from, row.picture.begin() + to);
        source.insert(source.end(), row.source.begin() + from, row.source.begin() + to);
    };
    std::int64_t done = 0;
    for (std::size_t number = 0; number < row.raters.size(); ++number) {
        const Ids index = row.rows_of(number);
        const std::optional<Point> found = point(k, b, row, number, index, out);
        if (!found) continue;
        // The image's runs of rows, one for each of its spans that is left.
        auto kept = found->kept.begin();
        for (std::size_t begin = 0, end = 0; begin < index.size(); begin = end) {
            for (end = begin + 1; end < index.size() && index[end] == index[end - 1] + 1;) ++end;
            carry(done, index[begin]);
            const auto last = std::lower_bound(kept, found->kept.end(), static_cast<std::int64_t>(end));
            if (kept != last) {
                pieces.push_back(found->states.slice(kept - found->kept.begin(), last - found->kept.begin()));
            }
            for (; kept != last; ++kept) {
                const std::int64_t from = index[static_cast<std::size_t>(*kept)];
                source.push_back(row.source.at(static_cast<std::size_t>(from)));
            }
            picture.resize(source.size(), static_cast<std::int64_t>(number));
            done = index[end - 1] + 1;
        }
        if (found->merged && found->merged.length() != 0) {
            pieces.push_back(found->merged);
            source.insert(source.end(), static_cast<std::size_t>(found->merged.length()), merged_row);
            picture.resize(source.size(), static_cast<std::int64_t>(number));
        }
    }
    carry(done, row.length());
    row.pieces = std::move(pieces);
    row.picture = std::move(picture);
    row.source = std::move(source);
    if (row.raters.empty()) return;
    Positions positions = positions_.place(row.layout_pieces());
    row.positions = std::move(positions.of_tokens);
    row.next_position = positions.next;
}

// What stays of an image; nothing if all of its tokens do.
std::optional<CutDecoder::Point> CutDecoder::point(std::size_t k, std::size_t b, PromptRow& row, std::size_t number,
                                                   const Ids& index, const Tensors& out) const {
    const auto count_here = static_cast<std::int64_t>(index.size());
    const auto segment_number = static_cast<std::int64_t>(k);
    const auto place = static_cast<std::int64_t>(b);
    const Ids rating = row.rating(), mine = row.rating(number);
    const Tensor attention = rated_ ? out.at(names::rater_attention).slice(place, place + 1) : Tensor();
    const std::int64_t keep = keep_at(k, row, number, index, attention);
    if (keep >= count_here) return std::nullopt;
    const Tensor& states = out.at(names::last_hidden_state);
    const auto [recycled, merged] = schedule_.merged_counts(count_here - keep);
    Tensors inputs{
        {names::hidden_states, states.slice(place, place + 1)},
        {names::visual_index, Tensor::of(index, {1, count_here})},
        {names::rater_index, Tensor::of(mine, {1, static_cast<std::int64_t>(mine.size())})},
        {names::position_ids, position_table({&row.positions}, {0}, states.shape().at(1))},
        {names::keep, Tensor::of(Ids{keep})},
        {names::recycled, Tensor::of(Ids{recycled})},
        {names::merged, Tensor::of(Ids{merged})},
    };
    if (attention) {
        // Rows of other images' raters, and padding for rows with more raters, do not count.
        const std::int64_t count = attention.shape().at(attention.shape().size() - 2);
        const Tensor weights = Tensor::zeros(DType::float32, {1, count});
        const Tensor raters = Tensor::zeros(DType::int64, {1, count});
        for (std::size_t i = 0; i < rating.size(); ++i) {
            weights.data<float>()[i] = contains(mine, rating[i]) ? 1.0F : 0.0F;
            raters.data<std::int64_t>()[i] = rating[i];
        }
        inputs[names::rater_attention] = attention;
        inputs[names::rater_weights] = weights;
        inputs[names::rater_index] = raters;
    }
    const engine_dir::ComponentInfo& component = config_.part(roles::pruner, segment_number);
    for (auto input = inputs.begin(); input != inputs.end();) {
        input = has_input(component, input->first) ? std::next(input) : inputs.erase(input);
    }
    const Tensors found = chain_.session(roles::pruner, segment_number).run(inputs);
    const Tensor kept = chain_.memory().to_host(found.at(names::kept_indices)).at(0);
    Point result;
    result.kept.assign(kept.data<std::int64_t>(), kept.data<std::int64_t>() + kept.length());
    if (std::any_of(result.kept.begin(), result.kept.end(),
                    [&](std::int64_t token) { return token < 0 || token >= count_here; })) {
        throw EngineDirError(config_.root + ": a prune point keeps a token that the image does not have",
                             "build the directory again");
    }
    result.states = found.at(names::pruned_features).at(0);
    if (result.states.length() != kept.length()) {
        throw EngineDirError(config_.root + ": a prune point returns other rows than it keeps",
                             "build the directory again");
    }
    const auto vectors = found.find(names::merged_features);
    if (vectors != found.end()) result.merged = vectors->second.at(0);
    return result;
}

// The number of an image's tokens that stay at point `k`.
std::int64_t CutDecoder::keep_at(std::size_t k, PromptRow& row, std::size_t number, const Ids& index,
                                 const Tensor& attention) const {
    const std::int64_t tokens = row.plans[number]->tokens();
    if (!schedule_.ranked) return schedule_.kept(row.keeps[number], tokens).at(k);
    Ids& ranks = row.ranks[number];
    Ids& counts = row.counts[number];
    const bool fresh = k == ranks.size();
    if (fresh) {
        // The rows of the image's raters, the columns of its tokens.
        const Ids rating = row.rating(), mine = row.rating(number);
        const Tensor all = chain_.memory().to_host(attention).at(0);
        const Tensor block = Tensor::empty(
            DType::float32, {static_cast<std::int64_t>(mine.size()), static_cast<std::int64_t>(index.size())});
        if (all.shape().at(1) <= index.back() || all.length() < static_cast<std::int64_t>(rating.size())) {
            throw EngineDirError(config_.root + ": the attention of a prune point is too small",
                                 "build the directory again");
        }
        float* target = block.data<float>();
        for (std::size_t i = 0; i < rating.size(); ++i) {
            if (!contains(mine, rating[i])) continue;
            const float* line = all.at(static_cast<std::int64_t>(i)).data<float>();
            for (const std::int64_t column : index) *target++ = line[column];
        }
        ranks.push_back(rank(block));
    }
    const Ids found = schedule_.rank_counts(ranks, row.keeps[number], tokens);
    row.stale = row.stale || (fresh && !std::equal(counts.begin(), counts.end(), found.begin(),
                                                   found.begin() + static_cast<std::ptrdiff_t>(k)));
    counts.push_back(found.at(k));
    return counts.back();
}

std::int64_t CutDecoder::rank(const Tensor& block) const {
    if (config_.find(roles::rank) == nullptr) return matrix_rank(block);
    const Tensors out = chain_.session(roles::rank).run({{names::attention, block}});
    return chain_.memory().to_host(out.at(names::rank)).data<std::int64_t>()[0];
}

std::unique_ptr<backend::Step> CutDecoder::step(DecoderCache& cache) {
    std::vector<backend::Session*> sessions;
    for (std::size_t k = 0; k < count_; ++k) sessions.push_back(&segment(k));
    return std::make_unique<SegmentStep>(chain_.session(roles::embed), std::move(sessions), segments_of(cache),
                                         chain_.memory(), rated_);
}

}  // namespace trtprune::runtime
