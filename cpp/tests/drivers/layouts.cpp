// What a run decides between the graphs.  A line in: a case of `layouts` or `budgets` of tests/conformance/chain.json;
// a line out: its result.

#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/error.hpp>

#include "runtime/budget.hpp"
#include "runtime/layout.hpp"

using nlohmann::json;
using namespace trtprune::runtime;

namespace {

json layout(const json& request) {
    trtprune::text::Prompt prompt;
    prompt.ids = request.at("prompt").get<Ids>();
    prompt.image_positions = request.at("image_positions").get<Ids>();
    prompt.markers = request.value("markers", Ids());
    Selection selection;
    for (const json& image : request.at("images")) {
        const Ids kept = image.at("kept").get<Ids>();
        auto plan = std::make_shared<trtprune::images::TokenPlan>();
        for (const json& place : image.value("grid", json::array())) {
            for (const json& number : place) plan->grid.push_back(number.get<std::int32_t>());
        }
        plan->spans = image.value("spans", Ids());
        std::size_t tokens = plan->grid.size() / 3;
        for (const std::int64_t length : plan->spans) tokens += static_cast<std::size_t>(length);
        plan->newline.assign(tokens, -1);
        selection.plans.push_back(plan);
        selection.kept.push_back(kept);
        selection.keeps.push_back(1);
        selection.rows.push_back(Tensor::zeros(DType::float32, {static_cast<std::int64_t>(kept.size()), 2}));
    }
    const Tensor words = Tensor::zeros(DType::float32, {static_cast<std::int64_t>(prompt.ids.size()), 2});
    const PositionRule rule(request.at("rule").get<std::string>(), request.at("axes").get<std::int64_t>());
    const Layout made = lay_out(prompt, words, selection, rule);
    std::int64_t rows = 0;
    for (const Tensor& piece : made.embeds) rows += piece.length();
    return {{"ids", made.ids},       {"positions", made.positions}, {"next_position", made.next_position},
            {"places", made.places}, {"marker_rows", made.markers}, {"rows", rows}};
}

json answer(const json& request) {
    if (request.contains("rule")) return layout(request);
    return Budget(1, request.at("keep_ratio").get<double>()).of(request.at("tokens").get<std::int64_t>());
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        json result;
        try {
            result = answer(json::parse(line));
        } catch (const trtprune::Error& error) {
            result = {{"error", error.message()}, {"hint", error.hint()}};
        }
        std::puts(result.dump().c_str());
    }
}
