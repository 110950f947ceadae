// The readers of an engine directory on any bytes.  The first byte says which: config.json with its schedule asked for
// counts, the text as JSON, or as a graph.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <trtprune/error.hpp>

#include "engine_dir/facts.hpp"
#include "engine_dir/graphs.hpp"
#include "engine_dir/reading.hpp"
#include "files/json.hpp"

namespace {

using namespace trtprune;

// A message is one line, of printable characters, and no longer than it may be.
void check_message(const Error& error) {
    if (error.message().empty() || error.message().find('\n') != std::string::npos) std::abort();
    if (error.message().size() > 4 * 500) std::abort();
}

void read_directory(const std::string& text) {
    const engine_dir::EngineDir directory = engine_dir::parse_config(text, "OUT");
    const Info info = engine_dir::info_of(directory, "cpu");
    directory.segments();
    if (!directory.pruning.schedule) return;
    const ScheduleInfo& schedule = *directory.pruning.schedule;
    for (const std::int64_t tokens : {info.visual_tokens.first, info.visual_tokens.second, std::int64_t{1}}) {
        try {
            const std::vector<std::int64_t> kept = schedule.kept(info.keep, tokens);
            for (const std::int64_t count : kept) {
                if (count < 1 || count > tokens + static_cast<std::int64_t>(kept.size())) std::abort();
            }
            schedule.rank_counts({0, tokens}, info.keep, tokens);
        } catch (const BudgetError& error) {
            check_message(error);
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        if (data[0] == 'j') {
            files::parse_json(text).plain();
        } else if (data[0] == 'g') {
            engine_dir::locations_in(text);
        } else {
            read_directory(text);
        }
    } catch (const Error& error) {
        check_message(error);
    } catch (const files::JsonError&) {
    } catch (const engine_dir::WireError&) {
    }
    return 0;
}
