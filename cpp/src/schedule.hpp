#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

/// Places and token counts of pruning between the decoder's layers; the twin of `trtprune.schedules`.
///
/// Whole numbers are exact; ratios are float64, computed in the order of the Python code, and rounded half to even.
namespace trtprune {

/// The visual tokens of one image in each layer of the decoder.
struct Schedule {
    std::int64_t visual_tokens = 0;    ///< N
    std::int64_t depth = 0;            ///< layers of the decoder
    std::vector<std::int64_t> points;  ///< layers behind which tokens are pruned, ascending from 0
    std::vector<std::int64_t> kept;    ///< tokens kept at each point
    std::vector<std::int64_t> after;   ///< tokens behind each point: the kept ones and the merged vectors
    std::int64_t nominal_shift = 1;    ///< 0 if the literature counts a pruning layer with its pruned tokens, 1 if not

    /// Visual tokens that each layer processes and caches.
    std::vector<std::int64_t> per_layer() const;
    /// Visual tokens processed and cached, averaged over the layers.
    double processed() const;
    /// The average as the method's literature counts it, the meaning of `keep`.
    double nominal() const;
};

/// The schedule of a method at all budgets and for images of all sizes; docs/engine-directory.md has its rules.
struct ScheduleInfo {
    std::int64_t depth = 0;
    std::vector<std::int64_t> points;
    std::string rule;  ///< `fixed`, `powers`, `ratios` or `equal`
    std::vector<std::int64_t> counts;
    std::vector<std::vector<std::int64_t>> ratios;  ///< rows of an average and the counts of the points there
    std::int64_t ratio_tokens = 0;
    bool exact = false;
    std::int64_t nominal_shift = 1;
    std::array<std::int64_t, 2> recycled{0, 1};  ///< (p, q): of m removed tokens, min(m, ⌊m · p/q⌋ + 1) are merged
    std::int64_t per_vector = 10;                ///< v: M merged tokens become ⌊M / v⌋ + 1 vectors
    bool ranked = false;                         ///< whether the counts follow the rank of each point's attention block
    std::vector<std::array<double, 3>> scales;   ///< rows (budget, scale, bias), where ranks decide alone
    std::string option;                          ///< the build option that moves the points, for messages

    /// Whether the average over the layers is the budget; false if the prompt alone decides the number of tokens.
    bool meets_keep() const { return scales.empty(); }

    /// The counts for an average of `keep` of an image of `tokens` visual tokens; for a ranked schedule, with equal
    /// ranks.
    ///
    /// \param at_most  Whether a budget above the largest average has the counts of that.  An image with hardly more
    ///                 tokens than the budget cannot reach it: each point removes a token.
    /// \throws BudgetError  if the average cannot be reached.
    Schedule schedule(std::int64_t keep, std::int64_t tokens, bool at_most = false) const;

    /// Refuses a budget that `schedule` cannot reach for an image of so many tokens; raises BudgetError.
    void check_keep(std::int64_t keep, std::int64_t tokens) const;

    /// Tokens kept at each point: all of them if the image has at most `keep`, and the most that can be if `keep` is
    /// above what the points leave on average.
    ///
    /// \throws BudgetError  if `keep` is below every average, as `schedule`.
    std::vector<std::int64_t> kept(std::int64_t keep, std::int64_t tokens) const;

    /// Tokens of an image that are kept at each point so far, for a ranked schedule.
    ///
    /// \param ranks   The ranks of the attention blocks of these points; at least one.
    /// \param keep    As in `schedule`.
    /// \param tokens  N.
    /// \return One count for each rank.  The count of an earlier point may change with the ranks of later ones.
    /// \throws BudgetError  if there are scales, and none for this budget.
    std::vector<std::int64_t> rank_counts(const std::vector<std::int64_t>& ranks, std::int64_t keep,
                                          std::int64_t tokens) const;

    /// The numbers of merged tokens and of their vectors for `removed` tokens; (0, 0) if they are dropped.
    std::pair<std::int64_t, std::int64_t> merged_counts(std::int64_t removed) const;

    /// The schedule with `counts`, each limited to the possible ones at its point.
    Schedule with_counts(std::int64_t tokens, const std::vector<std::int64_t>& limits) const;

    /// The tokens of an image that enter each segment; not set if they are known only in the run.
    std::optional<std::vector<std::int64_t>> entering(std::int64_t keep, std::int64_t tokens) const;
};

/// The schedule with the nominal average nearest to `keep`, at any distance.
///
/// \param make   Function of a number from 1 to below `limit` to a schedule whose average does not fall with it.
/// \param keep   The requested average.
/// \param limit  One more than the largest number.
Schedule nearest(const std::function<Schedule(std::int64_t)>& make, std::int64_t keep, std::int64_t limit);

/// The first fault of a schedule from a file, a text which begins with the field; not set if there is none.
std::optional<std::string> wrong_schedule(const ScheduleInfo& info);

}  // namespace trtprune
