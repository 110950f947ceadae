#include "text/detokenizer.hpp"

#include <algorithm>
#include <trtprune/error.hpp>
#include <utility>

#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

constexpr char replacement[] = "\xEF\xBF\xBD";

std::size_t first_of(const std::string& text, const std::vector<std::string>& stop) {
    std::size_t first = std::string::npos;
    for (const std::string& wanted : stop) first = std::min(first, text.find(wanted));
    return first;
}

/// Bytes of the longest ending of `text` [0, end) that begins a stop string.
std::size_t partial(const std::string& text, std::size_t end, const std::vector<std::string>& stop) {
    std::size_t longest = 0;
    for (const std::string& wanted : stop) {
        for (std::size_t length = std::min(wanted.size() - 1, end); length > longest; --length) {
            if (text.compare(end - length, length, wanted, 0, length) == 0) {
                longest = length;
                break;
            }
        }
    }
    return longest;
}

}  // namespace

Detokenizer::Detokenizer(Tokenizer tokenizer, std::vector<std::string> stop)
    : tokenizer_(std::move(tokenizer)), stop_(std::move(stop)) {
    for (const std::string& text : stop_) {
        if (text.empty())
            throw InputError("stop: an empty stop string would end every answer at once",
                             "leave it out, or give a text");
    }
    for (const std::int64_t id : tokenizer_.skipped_ids()) skipped_.insert(id);
    for (const std::int64_t id : tokenizer_.byte_ids()) bytes_.insert(id);
}

std::string Detokenizer::add(std::int64_t token) {
    if (stopped_ || skipped_.count(token) != 0) return "";
    ids_.push_back(token);
    loose_ = bytes_.count(token) != 0 ? loose_ + 1 : 0;
    // The whole answer each time: otherwise some tokenizers treat the first and last token differently.
    text_ = tokenizer_.decode(ids_);
    const std::size_t cut = first_of(text_, stop_);
    if (cut != std::string::npos) {
        text_.resize(cut);
        stopped_ = true;
        return send(cut);
    }
    std::size_t certain = text_.size();
    while (certain >= 3 && text_.compare(certain - 3, 3, replacement) == 0) certain -= 3;
    if (loose_ > 0) {
        // A run of byte tokens that is not UTF-8 is replaced as a whole, with its valid part.
        std::vector<std::int64_t> before(ids_.begin(), ids_.end() - static_cast<std::ptrdiff_t>(loose_));
        certain = std::min(certain, tokenizer_.decode(before).size());
    }
    return send(certain - partial(text_, certain, stop_));
}

std::string Detokenizer::finish() {
    return send(text_.size());
}

std::string Detokenizer::send(std::size_t end) {
    // Counted in characters: what was sent may have had another number of bytes.
    const std::size_t count = count_chars(std::string_view(text_).substr(0, end));
    if (count <= sent_) return "";
    std::size_t start = 0;
    for (std::size_t i = 0; i < sent_; ++i) start += char_length(text_[start]);
    sent_ = count;
    return text_.substr(start, end - start);
}

}  // namespace trtprune::text
