// A tokenizer.json, a zero byte, and a text for it, all of them any bytes.  Seeds: `python -m
// tests.kit.tokenizer_styles FOLDER` writes a small file of each style.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <trtprune/error.hpp>

#include "text/detokenizer.hpp"
#include "text/tokenizer.hpp"
#include "text/utf8.hpp"

namespace {

using namespace trtprune;

// A message is one line, and no longer than it may be.
void check_message(const Error& error) {
    if (error.message().empty() || error.message().find('\n') != std::string::npos) std::abort();
    if (error.message().size() > 4 * 500) std::abort();
}

void use(const text::Tokenizer& tokenizer, std::string_view text) {
    const text::Encoding encoding = tokenizer.encode(text);
    if (encoding.ids.size() != encoding.offsets.size()) std::abort();
    if (!text::is_utf8(tokenizer.decode(encoding.ids, false))) std::abort();
    text::Detokenizer detokenizer(tokenizer, {"ab", "\xEF\xBF\xBD"});
    std::size_t count = 0;
    for (const std::int64_t id : encoding.ids) {
        if (!text::is_utf8(detokenizer.add(id))) std::abort();
        if (++count == 64) break;
    }
    if (!text::is_utf8(detokenizer.finish()) || !text::is_utf8(detokenizer.text())) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view all(reinterpret_cast<const char*>(data), size);
    const std::size_t end = all.find('\0');
    const std::string_view text = end == std::string_view::npos ? "a b" : all.substr(end + 1);
    try {
        text::Tokenizer tokenizer = text::Tokenizer::from_json(all.substr(0, end));
        try {
            use(tokenizer, text);
        } catch (const Error& error) {
            check_message(error);
        }
        tokenizer.add_tokens({{"ab", true, true, true, true, true}, {"b", false, true, false, false, false}});
        tokenizer.set_encode_special_tokens(true);
        use(tokenizer, text);
    } catch (const Error& error) {
        check_message(error);
    }
    return 0;
}
