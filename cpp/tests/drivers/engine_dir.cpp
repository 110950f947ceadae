// Engine directories: {"do": "open", "root": PATH, "verify": LEVEL} or {"do": "read", "root": PATH}
// → {"ok": the config as JSON, "info": its facts, "parts": the chain's parts}, or an error.

#include "engine_dir/facts.hpp"
#include "engine_dir/opening.hpp"
#include "engine_dir/reading.hpp"
#include "json_fields.hpp"
#include "json_lines.hpp"

namespace {

using nlohmann::json;
using namespace trtprune;
using namespace trtprune::engine_dir;

json facts_of(const EngineDir& directory) {
    const Info info = info_of(directory, "cpu");
    return {{"model_id", info.model_id},     {"family", info.family},
            {"backend", info.backend},       {"provider", info.provider},
            {"dtype", info.dtype},           {"weight_dtype", info.weight_dtype},
            {"method", info.method},         {"keep", info.keep},
            {"keep_range", info.keep_range}, {"visual_tokens", info.visual_tokens},
            {"capacity", info.capacity},     {"max_batch_size", info.max_batch_size}};
}

json parts_of(const EngineDir& directory) {
    json parts = json::object();
    for (const ComponentInfo& component : directory.components) {
        const ComponentInfo* found = directory.find(component.role, component.segment);
        parts[component.part().name()] = found == nullptr ? json() : json(found->name);
    }
    json segments = json::array();
    for (const ComponentInfo* segment : directory.segments()) segments.push_back(segment->name);
    return {{"found", parts}, {"segments", segments}};
}

json answer(const files::Json& request) {
    const std::string& root = drivers::text(request, "root");
    EngineDir directory = drivers::text(request, "do") == "open"
                              ? open_engine_dir(root, drivers::text(request, "verify"))
                              : read_config(root);
    return {{"ok", drivers::to_json(directory)},
            {"root", directory.root},
            {"info", facts_of(directory)},
            {"parts", parts_of(directory)}};
}

}  // namespace

int main() {
    return drivers::answer_lines(answer);
}
