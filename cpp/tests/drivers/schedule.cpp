// Schedules: {"do": NAME, "info": a ScheduleInfo, "keep": K, "tokens": N, "ranks": [...], "removed": M} → the result.

#include "schedule.hpp"

#include "json_fields.hpp"
#include "json_lines.hpp"

namespace {

using nlohmann::json;
using namespace trtprune;

json written(const Schedule& schedule) {
    return {{"kept", schedule.kept},
            {"after", schedule.after},
            {"per_layer", schedule.per_layer()},
            {"nominal", schedule.nominal()},
            {"processed", schedule.processed()}};
}

json answer(const files::Json& request) {
    ScheduleInfo info;
    engine_dir::decode(drivers::member(request, "info"), engine_dir::Where("info"), info);
    const std::string& what = drivers::text(request, "do");
    const auto number = [&](const char* name) { return *drivers::member(request, name).get<std::int64_t>(); };
    if (what == "wrong") {
        const std::optional<std::string> fault = wrong_schedule(info);
        return fault ? json(*fault) : json();
    }
    if (what == "merged") return info.merged_counts(number("removed"));
    const std::int64_t keep = number("keep");
    const std::int64_t tokens = number("tokens");
    if (what == "schedule") return written(info.schedule(keep, tokens));
    if (what == "kept") return info.kept(keep, tokens);
    if (what == "entering") {
        const auto numbers = info.entering(keep, tokens);
        return numbers ? json(*numbers) : json();
    }
    std::vector<std::int64_t> ranks;
    engine_dir::decode(drivers::member(request, "ranks"), engine_dir::Where("ranks"), ranks);
    return info.rank_counts(ranks, keep, tokens);
}

}  // namespace

int main() {
    return drivers::answer_lines(answer);
}
