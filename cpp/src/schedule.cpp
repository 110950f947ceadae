#include "schedule.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <trtprune/error.hpp>

#include "arguments.hpp"
#include "files/integers.hpp"

namespace trtprune {

namespace {

using arguments::arg;
using files::Wide;
using Counts = std::vector<std::int64_t>;

constexpr std::size_t most_points = 64;
constexpr std::int64_t most_tokens = 1 << 20;

std::string decimals(const char* format, double number) {
    char buffer[400];  // a float has up to 309 digits in front of the point
    std::snprintf(buffer, sizeof buffer, format, number);
    return buffer;
}

std::string joined(const Counts& numbers) {
    std::string text;
    for (const std::int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
    return text;
}

// A natural number of any size, in limbs of 32 bits from the smallest.
using Natural = std::vector<std::uint32_t>;

Natural product(const Natural& number, std::int64_t factor) {
    Natural result;
    Wide carry = 0;
    for (const std::uint32_t limb : number) {
        carry += static_cast<Wide>(limb) * factor;
        result.push_back(static_cast<std::uint32_t>(carry & 0xFFFFFFFF));
        carry >>= 32;
    }
    for (; carry > 0; carry >>= 32) result.push_back(static_cast<std::uint32_t>(carry & 0xFFFFFFFF));
    while (!result.empty() && result.back() == 0) result.pop_back();
    return result;
}

bool is_at_most(const Natural& a, const Natural& b) {
    if (a.size() != b.size()) return a.size() < b.size();
    return !std::lexicographical_compare(b.rbegin(), b.rend(), a.rbegin(), a.rend());
}

// max(1, ⌊f · (f/N)^i⌋) for the first points i; exact.
Counts powers(std::int64_t f, std::int64_t tokens, std::size_t points) {
    Counts counts;
    Natural numerator = product({1}, f);
    Natural denominator{1};
    // Falls from point to point, as f is below N.
    std::int64_t most = f;
    for (std::size_t i = 0; i < points; ++i) {
        std::int64_t low = 0;
        while (low < most) {
            const std::int64_t middle = low + (most - low + 1) / 2;
            if (is_at_most(product(denominator, middle), numerator)) {
                low = middle;
            } else {
                most = middle - 1;
            }
        }
        most = low;
        counts.push_back(std::max<std::int64_t>(1, low));
        numerator = product(numerator, f);
        denominator = product(denominator, tokens);
    }
    return counts;
}

// The counts of all points but the first, divided by that of the first, at an average of tokens.
std::vector<double> ratios_at(const std::vector<Counts>& rows, double average) {
    const Counts* low = &rows.front();
    const Counts* high = &rows.back();
    for (const Counts& row : rows) {
        if (static_cast<double>(row[0]) <= average) low = &row;
    }
    for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
        if (static_cast<double>((*row)[0]) >= average) high = &*row;
    }
    const auto ratio = [](const Counts& row, std::size_t i) {
        return static_cast<double>(row[i]) / static_cast<double>(row[1]);
    };
    double share = 0.0;
    if ((*low)[0] != (*high)[0]) {
        share = (average - static_cast<double>((*low)[0])) / static_cast<double>((*high)[0] - (*low)[0]);
    }
    std::vector<double> ratios;
    for (std::size_t i = 2; i < low->size(); ++i) {
        ratios.push_back((1 - share) * ratio(*low, i) + share * ratio(*high, i));
    }
    return ratios;
}

// Free number → schedule, of a rule that meets the budget.
std::function<Schedule(std::int64_t)> family(const ScheduleInfo& info, std::int64_t keep, std::int64_t tokens) {
    const std::size_t points = info.points.size();
    if (info.rule == "powers") {
        return [&info, tokens, points](std::int64_t f) { return info.with_counts(tokens, powers(f, tokens, points)); };
    }
    if (info.rule == "equal") {
        return [&info, tokens, points](std::int64_t f) { return info.with_counts(tokens, Counts(points, f)); };
    }
    // Exact before the division: neither factor is above 2^20.
    const double average = static_cast<double>(info.ratio_tokens * keep) / static_cast<double>(tokens);
    return [&info, tokens, others = ratios_at(info.ratios, average)](std::int64_t f) {
        Counts counts{f};
        for (const double ratio : others) {
            // Halves to even, the default of the rounding mode.
            const double count = std::nearbyint(ratio * static_cast<double>(f));
            counts.push_back(std::max<std::int64_t>(1, static_cast<std::int64_t>(count)));
        }
        return info.with_counts(tokens, counts);
    };
}

std::array<double, 3> scale_of(const ScheduleInfo& info, std::int64_t keep) {
    std::string known;
    for (const std::array<double, 3>& row : info.scales) {
        if (row[0] == 0 || row[0] == static_cast<double>(keep)) return row;
        known += (known.empty() ? "" : ", ") + decimals("%g", row[0]);
    }
    throw BudgetError(arg("keep", keep) + ": no scale is published for it, only for " + known,
                      "another keep; options={'scale': 'budget'}, which meets any; or scale=NUMBER");
}

BudgetError out_of_reach(std::int64_t keep, const Schedule& least, const Schedule& most, const ScheduleInfo& info) {
    const bool below = static_cast<double>(keep) < least.nominal();
    const std::string bound = (below ? "at least " : "at most ") + decimals("%.0f", (below ? least : most).nominal());
    return BudgetError(arg("keep", keep) + ": the decoder of " + std::to_string(info.depth) +
                           " layers prunes behind layers " + joined(info.points) +
                           ", and the average over all layers is then " + bound + " of " +
                           std::to_string(least.visual_tokens) + " visual tokens",
                       "such a keep, or other layers with options " + info.option);
}

Schedule fixed_schedule(const ScheduleInfo& info, std::int64_t keep, std::int64_t tokens) {
    if (info.counts[0] >= tokens) {
        const std::string size = std::to_string(tokens);
        throw BudgetError(arg("keep", keep) + ": this schedule keeps " + std::to_string(info.counts[0]) +
                              " tokens of an image of " + size + ": counts must fall, from below " + size,
                          "smaller counts with options " + info.option);
    }
    Schedule own = info.with_counts(tokens, info.counts);
    const std::int64_t average = static_cast<std::int64_t>(std::nearbyint(own.nominal()));
    if (keep != average) {
        throw BudgetError(
            arg("keep", keep) + ": this schedule averages " + decimals("%.1f", own.nominal()) + " tokens a layer",
            "leave out keep, or " + arg("keep", average));
    }
    return own;
}

bool is_ascending(const Counts& numbers) {
    return std::adjacent_find(numbers.begin(), numbers.end(), [](auto a, auto b) { return a >= b; }) == numbers.end();
}

bool are_ratios(const ScheduleInfo& info) {
    Counts averages;
    for (const Counts& row : info.ratios) {
        if (row.size() != info.points.size() + 1 || *std::min_element(row.begin(), row.end()) < 1) return false;
        averages.push_back(row[0]);
    }
    return !averages.empty() && is_ascending(averages) && info.ratio_tokens >= 1;
}

bool has_large_number(const ScheduleInfo& info) {
    const auto large = [](std::int64_t number) { return number > most_tokens; };
    return large(info.ratio_tokens) || std::any_of(info.counts.begin(), info.counts.end(), large) ||
           std::any_of(info.ratios.begin(), info.ratios.end(),
                       [&](const Counts& row) { return std::any_of(row.begin(), row.end(), large); });
}

}  // namespace

Counts Schedule::per_layer() const {
    Counts counts;
    std::int64_t current = visual_tokens;
    std::size_t point = 0;
    for (std::int64_t layer = 0; layer < depth; ++layer) {
        if (point < points.size() && layer - 1 == points[point]) current = after[point++];
        counts.push_back(current);
    }
    return counts;
}

double Schedule::processed() const {
    std::int64_t sum = 0;
    for (const std::int64_t count : per_layer()) sum += count;
    return static_cast<double>(sum) / static_cast<double>(depth);
}

double Schedule::nominal() const {
    Wide sum = 0;
    std::int64_t first = 0;
    std::int64_t current = visual_tokens;
    for (std::size_t i = 0; i < points.size(); ++i) {
        const std::int64_t stop = points[i] + nominal_shift;
        sum += static_cast<Wide>(current) * (stop - first);
        first = stop;
        current = after[i];
    }
    sum += static_cast<Wide>(current) * (depth - first);
    return static_cast<double>(sum) / static_cast<double>(depth);
}

Schedule ScheduleInfo::schedule(std::int64_t keep, std::int64_t tokens, bool at_most) const {
    if (!scales.empty()) {
        scale_of(*this, keep);
        return with_counts(tokens, Counts(points.size(), tokens - 1));
    }
    if (rule == "fixed") return fixed_schedule(*this, keep, tokens);
    for (std::size_t i = 0; exact && tokens == ratio_tokens && i + 1 < ratios.size(); ++i) {
        if (ratios[i][0] == keep) return with_counts(tokens, Counts(ratios[i].begin() + 1, ratios[i].end()));
    }
    const auto make = family(*this, keep, tokens);
    const Schedule least = make(1);
    const Schedule most = make(std::max<std::int64_t>(1, tokens - 1));
    const double budget = static_cast<double>(keep);
    const bool above = budget > most.nominal() + 0.5;
    if (budget < least.nominal() - 0.5 || (above && !at_most)) throw out_of_reach(keep, least, most, *this);
    return nearest(make, keep, tokens);
}

void ScheduleInfo::check_keep(std::int64_t keep, std::int64_t tokens) const {
    schedule(keep, tokens);
}

Counts ScheduleInfo::kept(std::int64_t keep, std::int64_t tokens) const {
    if (keep >= tokens) return Counts(points.size(), tokens);
    return rule == "fixed" ? with_counts(tokens, counts).kept : schedule(keep, tokens, true).kept;
}

Counts ScheduleInfo::rank_counts(const Counts& ranks, std::int64_t keep, std::int64_t tokens) const {
    if (!scales.empty()) {
        const auto [budget, scale, bias] = scale_of(*this, keep);
        std::int64_t before = tokens;
        Counts found;
        for (const std::int64_t rank : ranks) {
            std::int64_t count = before;  // all tokens stay if the rank is full
            if (rank < before) {
                const double scaled = static_cast<double>(rank) * scale + bias;
                count = static_cast<std::int64_t>(std::max(1.0, std::min(scaled, static_cast<double>(before - 1))));
            }
            before = count + merged_counts(before - count).second;
            found.push_back(count);
        }
        return found;
    }
    if (keep >= tokens) return Counts(ranks.size(), tokens);
    Counts expected;
    for (const std::int64_t rank : ranks) expected.push_back(std::max<std::int64_t>(1, rank));
    expected.resize(std::max(points.size(), expected.size()), expected.back());
    const std::int64_t most = *std::max_element(expected.begin(), expected.end());
    const auto make = [&](std::int64_t largest) {
        Counts limits;
        for (const std::int64_t rank : expected) {
            const Wide count = static_cast<Wide>(largest) * rank / most;
            limits.push_back(std::max<std::int64_t>(1, static_cast<std::int64_t>(count)));
        }
        return with_counts(tokens, limits);
    };
    // Up to the number at which even the lowest rank keeps all tokens.
    Counts found = nearest(make, keep, tokens * most).kept;
    found.resize(ranks.size());
    return found;
}

std::pair<std::int64_t, std::int64_t> ScheduleInfo::merged_counts(std::int64_t removed) const {
    if (removed < 1 || recycled[0] == 0) return {0, 0};
    const Wide share = static_cast<Wide>(removed) * recycled[0] / recycled[1] + 1;
    const std::int64_t merged = share < removed ? static_cast<std::int64_t>(share) : removed;
    return {merged, merged / per_vector + 1};
}

Schedule ScheduleInfo::with_counts(std::int64_t tokens, const Counts& limits) const {
    Schedule schedule{tokens, depth, points, {}, {}, nominal_shift};
    std::int64_t before = tokens;
    for (const std::int64_t limit : limits) {
        // At least one token is removed at every point, if there is one.
        const std::int64_t count = std::max<std::int64_t>(1, std::min(limit, before - 1));
        before = count + merged_counts(before - count).second;
        schedule.kept.push_back(count);
        schedule.after.push_back(before);
    }
    return schedule;
}

std::optional<Counts> ScheduleInfo::entering(std::int64_t keep, std::int64_t tokens) const {
    if (!meets_keep()) return std::nullopt;
    const Schedule own = schedule(keep, tokens);
    Counts numbers{tokens};
    numbers.insert(numbers.end(), own.after.begin(), own.after.end());
    return numbers;
}

Schedule nearest(const std::function<Schedule(std::int64_t)>& make, std::int64_t keep, std::int64_t limit) {
    const double budget = static_cast<double>(keep);
    std::int64_t low = 1;
    std::int64_t high = limit - 1;
    while (low < high) {
        const std::int64_t middle = low + (high - low) / 2;
        if (make(middle).nominal() < budget) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Schedule reached = make(low);
    if (low == 1) return reached;
    Schedule below = make(low - 1);
    return std::abs(reached.nominal() - budget) < std::abs(below.nominal() - budget) ? reached : below;
}

std::optional<std::string> wrong_schedule(const ScheduleInfo& info) {
    const std::string many = std::to_string(info.points.size());
    const Wide last = static_cast<Wide>(info.depth) - 1;
    if (info.points.empty() || !is_ascending(info.points) || info.points.front() < 0 || info.points.back() >= last) {
        return "points must be ascending layers from 0 to " + files::wide_text(last - 1);
    }
    if (info.points.size() > most_points) return "points must be at most " + std::to_string(most_points);
    if (info.rule != "fixed" && info.rule != "powers" && info.rule != "ratios" && info.rule != "equal") {
        return "rule must be one of fixed, powers, ratios, equal";
    }
    const auto below_one = [](std::int64_t count) { return count < 1; };
    if (info.rule == "fixed" &&
        (info.counts.size() != info.points.size() || std::any_of(info.counts.begin(), info.counts.end(), below_one))) {
        return "counts must be " + many + " numbers from 1 on";
    }
    if (info.rule == "ratios" && !are_ratios(info)) {
        return "ratios must be rows of " + std::to_string(info.points.size() + 1) +
               " numbers from 1 on, the first of each ascending";
    }
    if (has_large_number(info)) {
        return "counts, ratios and ratio_tokens must be at most " + std::to_string(most_tokens);
    }
    if (info.nominal_shift != 0 && info.nominal_shift != 1) return "nominal_shift must be 0 or 1";
    const auto [part, whole] = info.recycled;
    if (part < 0 || part > whole || whole < 1 || info.per_vector < 1) {
        return "recycled must be a share from 0 to 1, and per_vector at least 1";
    }
    if (!info.scales.empty() && !info.ranked) return "scales are those of ranks";
    return std::nullopt;
}

}  // namespace trtprune
