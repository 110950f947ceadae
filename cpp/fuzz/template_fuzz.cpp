// A chat template's pieces and turns, drawn from any bytes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <trtprune/error.hpp>
#include <vector>

#include "text/pieces.hpp"
#include "text/utf8.hpp"

namespace {

using namespace trtprune::text;

/// Values drawn from bytes; zeros at their end.
class Source {
  public:
    Source(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    unsigned byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    std::size_t below(std::size_t limit) { return byte() % limit; }
    std::string text() {
        std::string bytes;
        for (std::size_t length = below(12); length > 0; --length)
            bytes.push_back(static_cast<char>(static_cast<unsigned char>(byte())));
        return lossy(bytes);
    }
    std::optional<bool> condition() {
        const std::size_t value = below(4);
        return value > 1 ? std::nullopt : std::optional<bool>(value == 1);
    }

  private:
    const std::uint8_t* data_;
    std::size_t left_;
};

std::vector<PieceInfo> pieces(Source& source) {
    const char* kinds[] = {"literal", "images", "text", "system", "open", "close", "other"};
    std::vector<PieceInfo> found;
    for (std::size_t count = source.below(6); count > 0; --count)
        found.push_back({kinds[source.below(7)], source.text(), source.text(), source.text()});
    return found;
}

std::vector<Rule> rules(Source& source) {
    std::vector<Rule> found;
    for (std::size_t count = source.below(3); count > 0; --count) {
        const auto system = source.condition(), first = source.condition();
        const auto last = source.condition(), images = source.condition();
        found.push_back({system, first, last, images, pieces(source)});
    }
    return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Source source(data, size);
    TemplateInfo info;
    info.begin = pieces(source);
    info.system = pieces(source);
    info.user = rules(source);
    info.assistant = rules(source);
    info.end = rules(source);
    if (source.below(4) == 0)
        info.refusals.push_back({source.condition(), source.condition(), "input", "refused", "ask in another way"});
    std::vector<Turn> turns;
    const char* roles[] = {"user", "assistant", "system"};
    for (std::size_t count = source.below(6); count > 0; --count) {
        const std::size_t place = turns.size();
        // Mostly turns in their order.
        const char* role = roles[source.below(8) == 0 ? source.below(3) : place % 2];
        turns.push_back({role, source.text(), static_cast<std::int64_t>(source.below(250) == 0 ? 1U << 30 : 1)});
    }
    try {
        const Rendered rendered = render(info, turns);
        if (rendered.start > rendered.end || rendered.end > rendered.text.size()) std::abort();
        if (rendered.text.size() > longest_prompt) std::abort();
    } catch (const trtprune::Error& error) {
        if (error.message().empty()) std::abort();
    }
    return 0;
}
