#include "runtime/generation.hpp"

#include <algorithm>

namespace trtprune::runtime {

void generate(const Answers& rows, Tensor logits, backend::Step& step, std::int64_t capacity, std::int64_t axes,
              Clock& clock, const std::function<void()>& told) {
    Ids length, place, token(rows.size(), 0);
    for (const auto& row : rows) {
        length.push_back(row->prompt_tokens());
        place.push_back(row->next_position());
    }
    while (true) {
        {  // 1. Choose a token for every row that is not done, each with its own settings.
            const auto stage = clock.stage("decode");
            for (std::size_t i = 0; i < rows.size(); ++i) {
                if (!rows[i]->finished()) token[i] = rows[i]->choose(logits.at(static_cast<std::int64_t>(i)));
            }
        }
        told();
        if (std::all_of(rows.begin(), rows.end(), [](const auto& row) { return row->finished(); })) return;
        const auto stage = clock.stage("decode");
        // 2. Feed them back.  A row that is done stays in the batch: it writes to its last place again.
        Ids position, slot;
        for (std::size_t i = 0; i < rows.size(); ++i) {
            position.insert(position.end(), static_cast<std::size_t>(axes), place[i]);
            slot.push_back(std::min(length[i], capacity - 1));
        }
        logits = step.run(token, position, slot);
        // 3. Step on.
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const std::int64_t going = rows[i]->finished() ? 0 : 1;
            length[i] += going;
            place[i] += going;
        }
    }
}

}  // namespace trtprune::runtime
