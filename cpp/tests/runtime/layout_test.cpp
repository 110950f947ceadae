#include "runtime/layout.hpp"

#include <doctest/doctest.h>

#include <memory>
#include <trtprune/error.hpp>
#include <vector>

#include "runtime/kv_cache.hpp"
#include "runtime/segment_rows.hpp"

using namespace trtprune::runtime;
using trtprune::backend::DType;
using trtprune::backend::Tensor;

namespace {

// An image of 2 × 3 tokens, row by row.
Plan image_of_six() {
    auto plan = std::make_shared<trtprune::images::TokenPlan>();
    for (std::int32_t row = 0; row < 2; ++row) {
        for (std::int32_t column = 0; column < 3; ++column) {
            plan->grid.insert(plan->grid.end(), {0, row, column});
            plan->newline.push_back(-1);
        }
    }
    return plan;
}

trtprune::text::Prompt prompt_of(std::vector<std::int64_t> ids, std::vector<std::int64_t> places) {
    trtprune::text::Prompt prompt;
    prompt.ids = std::move(ids);
    prompt.image_positions = std::move(places);
    return prompt;
}

Selection selection_of(std::vector<Ids> kept) {
    Selection selection;
    for (Ids& indices : kept) {
        selection.rows.push_back(Tensor::zeros(DType::float32, {static_cast<std::int64_t>(indices.size()), 4}));
        selection.plans.push_back(image_of_six());
        selection.keeps.push_back(static_cast<std::int64_t>(indices.size()));
        selection.kept.push_back(std::move(indices));
    }
    return selection;
}

}  // namespace

TEST_CASE("kept tokens take the place of their image's placeholder") {
    const auto prompt = prompt_of({1, 5, 7, 5, 8, 9}, {1, 3});
    const Tensor words = Tensor::zeros(DType::float32, {6, 4});
    const Layout compact = lay_out(prompt, words, selection_of({{1, 4}, {0}}), PositionRule("compact", 1));
    CHECK(compact.ids == Ids{1, 5, 5, 7, 5, 8, 9});
    CHECK(compact.places == std::vector<Places>{{{1, 3}}, {{4, 5}}});
    CHECK(compact.positions == std::vector<Ids>{{0, 1, 2, 3, 4, 5, 6}});
    CHECK(compact.next_position == 7);
    CHECK(compact.embeds.size() == 5);
    CHECK(unpruned_ids(prompt, compact) == Ids{1, 5, 5, 5, 5, 5, 5, 7, 5, 5, 5, 5, 5, 5, 8, 9});

    const Layout original = lay_out(prompt, words, selection_of({{1, 4}, {0}}), PositionRule("original", 1));
    CHECK(original.positions == std::vector<Ids>{{0, 2, 5, 7, 8, 14, 15}});
    CHECK(original.next_position == 16);
}

TEST_CASE("with three axes kept tokens stay at their row and column") {
    const auto prompt = prompt_of({1, 5, 7}, {1});
    const Tensor words = Tensor::zeros(DType::float32, {3, 4});
    const Layout compact = lay_out(prompt, words, selection_of({{1, 3}}), PositionRule("compact", 3));
    CHECK(compact.positions == std::vector<Ids>{{0, 1, 1, 3}, {0, 1, 2, 3}, {0, 2, 1, 3}});
    CHECK(compact.next_position == 4);
    const Layout original = lay_out(prompt, words, selection_of({{1, 3}}), PositionRule("original", 3));
    CHECK(original.positions == std::vector<Ids>{{0, 1, 1, 4}, {0, 1, 2, 4}, {0, 2, 1, 4}});
    CHECK_THROWS_AS(lay_out(prompt, words, selection_of({{-1}}), PositionRule("compact", 3)), trtprune::EngineDirError);
    CHECK_THROWS_AS(PositionRule("other", 1), trtprune::EngineDirError);
}

TEST_CASE("an image of several spans") {
    // A text in front of each span and behind the last: 7 and 8 are markers, 9 is the question.
    auto plan = std::make_shared<trtprune::images::TokenPlan>(*image_of_six());
    plan->spans = {2, 3, 1};
    Selection selection = selection_of({{1, 5}});
    selection.plans = {plan};
    auto prompt = prompt_of({1, 7, 5, 7, 5, 8, 7, 5, 8, 9}, {2, 4, 7});
    prompt.markers = {1, 3, 5, 6, 8};
    const Tensor words = Tensor::zeros(DType::float32, {10, 4});
    const Layout compact = lay_out(prompt, words, selection, PositionRule("compact", 1));
    CHECK(compact.ids == Ids{1, 7, 5, 7, 8, 7, 5, 8, 9});
    CHECK(compact.places == std::vector<Places>{{{2, 3}, {4, 4}, {6, 7}}});
    CHECK(compact.markers == Ids{1, 3, 4, 5, 7});
    CHECK(compact.next_position == 9);
    CHECK(prompt.span("all") == Ids{0, 9});
    CHECK(unpruned_ids(prompt, compact) == Ids{1, 7, 5, 5, 7, 5, 5, 5, 8, 7, 5, 8, 9});
    const Layout original = lay_out(prompt, words, selection, PositionRule("original", 1));
    CHECK(original.positions == std::vector<Ids>{{0, 1, 3, 4, 8, 9, 10, 11, 12}});
    CHECK(original.next_position == 13);
    // Before a segment: all tokens are there, then tokens 1 and 5, and one that is merged.
    PromptRow row;
    row.places = {{{2, 4}, {5, 8}, {10, 11}}};
    row.plans = {plan};
    row.picture = {text_row, marker_row, 0, marker_row, marker_row, marker_row, 0, 0, marker_row, text_row};
    row.source = {0, 1, 3, 4, 8, 9, 10, merged_row, 11, 12};
    CHECK(row.kept() == std::vector<Ids>{{1, 5}});
    CHECK(PositionRule("original", 1).place(row.layout_pieces()).of_tokens ==
          std::vector<Ids>{{0, 1, 3, 4, 8, 9, 10, 11, 12, 13}});
}

TEST_CASE("rows before a segment of the decoder know their images and raters") {
    PromptRow row;
    row.picture = {text_row, 0, 0, 0, text_row, text_row};
    row.source = {0, 1, 3, merged_row, 7, 8};
    row.raters = {{7}};
    row.plans = {image_of_six()};
    row.places = {{{1, 7}}};
    CHECK(row.rows_of(0) == Ids{1, 2, 3});
    CHECK(row.rating(0) == Ids{4});
    CHECK(row.tokens_of(0) == 3);
    CHECK(row.kept() == std::vector<Ids>{{0, 2}});
    const Tensor table = rating_table({row});
    CHECK(table.shape() == trtprune::backend::Shape{1, 1});
    CHECK(table.data<std::int64_t>()[0] == 4);
}

TEST_CASE("capacities are rounded up, so that similar requests share one shape") {
    CHECK(round_capacity(1, 1000) == 16);
    CHECK(round_capacity(256, 1000) == 256);
    CHECK(round_capacity(257, 1000) == 320);
    CHECK(round_capacity(999, 1000) == 1000);
    CHECK_NOTHROW(check_length(10, 7, {16}));
    CHECK_THROWS_WITH_AS(check_length(10, 8, {16}),
                         "the prompt has 10 tokens and max_new_tokens is 8; the KV cache was built for 16 "
                         "(max_new_tokens up to 7, a smaller keep, or build with a larger max_seq_len)",
                         trtprune::InputError);
    CHECK_THROWS_WITH_AS(check_length(16, 2, {16, Limit::Kind::positions}),
                         "the prompt takes 16 positions and max_new_tokens is 2; the model's positions end at 16 "
                         "(shorten the prompt or max_new_tokens)",
                         trtprune::InputError);
}

TEST_CASE("rows that are skipped may end inside a piece") {
    const std::vector<Tensor> pieces{Tensor::zeros(DType::float32, {3, 2}), Tensor::zeros(DType::float32, {2, 2})};
    CHECK(skip_rows(pieces, 0).size() == 2);
    CHECK(skip_rows(pieces, 2).at(0).length() == 1);
    CHECK(skip_rows(pieces, 3).size() == 1);
    CHECK(skip_rows(pieces, 5).empty());
}
