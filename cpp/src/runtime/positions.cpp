#include "runtime/positions.hpp"

#include <algorithm>
#include <trtprune/error.hpp>

#include "engine_dir/schema.hpp"

namespace trtprune::runtime {

PositionRule::PositionRule(const std::string& name, std::int64_t axes) : compact_(name == "compact"), axes_(axes) {
    if (!compact_ && name != "original") {
        throw EngineDirError("config.positions.rule: '" + name.substr(0, 100) + "' is unknown",
                             "one of compact, original");
    }
    if (axes != 1 && axes != 3) {
        throw EngineDirError("config.positions.axes: " + std::to_string(axes), "1 or 3");
    }
}

Positions PositionRule::place(const std::vector<Piece>& pieces) const {
    Positions positions;
    positions.of_tokens.resize(static_cast<std::size_t>(axes_));
    for (const Piece& piece : pieces) {
        if (const auto* image = std::get_if<ImageTokens>(&piece)) {
            positions.next += add_image(*image, positions);
            continue;
        }
        const std::int64_t count = std::get<std::int64_t>(piece);
        for (Ids& axis : positions.of_tokens) {
            for (std::int64_t i = 0; i < count; ++i) axis.push_back(positions.next + i);
        }
        positions.next += count;
    }
    return positions;
}

// Appends the positions of an image's tokens; returns the number of positions that it takes.
std::int64_t PositionRule::add_image(const ImageTokens& image, Positions& positions) const {
    const std::int64_t start = positions.next;
    if (axes_ == 1) {
        Ids& axis = positions.of_tokens[0];
        std::int64_t place = 0;
        for (const std::int64_t token : image.kept) axis.push_back(start + (compact_ ? place++ : token));
        return compact_ ? static_cast<std::int64_t>(image.kept.size()) : image.tokens;
    }
    const auto grid = image.plan->grid.begin() + 3 * image.first;
    std::int64_t most = -1;
    for (const std::int64_t token : image.kept) {
        for (std::size_t axis = 0; axis < 3; ++axis) {
            const std::int64_t place =
                token < 0 || token >= image.tokens ? -1 : grid[3 * token + static_cast<std::ptrdiff_t>(axis)];
            if (place < 0) {
                throw EngineDirError(
                    "a kept visual token has no row and column, which this model's positions consist of",
                    "build the directory again");
            }
            positions.of_tokens[axis].push_back(start + place);
            most = std::max(most, place);
        }
    }
    if (!compact_) most = image.tokens == 0 ? -1 : *std::max_element(grid, grid + 3 * image.tokens);
    return most + 1;
}

PositionRule position_rule_of(const engine_dir::EngineDir& config) {
    return PositionRule(config.positions.rule, config.positions.axes);
}

}  // namespace trtprune::runtime
