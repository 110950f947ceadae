#include "text/tokenizer_file.hpp"

#include <algorithm>
#include <limits>
#include <trtprune/error.hpp>

#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

using nlohmann::json;

constexpr std::int64_t most_characters = 64000000, most_objects = 100000, most_lists = 4000000, most_values = 10000000;
constexpr std::size_t deepest = 128;

std::string hint(const std::string& name) {
    return "correct the checkpoint's " + name + ", or save the tokenizer again with save_pretrained, and build again";
}

std::string grouped(std::int64_t value) {
    std::string digits = std::to_string(value);
    for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
    return digits;
}

void check_size(std::string_view text, const std::string& name) {
    const auto count = [&](char c) { return static_cast<std::int64_t>(std::count(text.begin(), text.end(), c)); };
    const struct {
        const char* what;
        std::int64_t count, limit;
    } counts[] = {{"objects", count('{'), most_objects},
                  {"lists", count('['), most_lists},
                  {"values", count(','), most_values},
                  {"characters", static_cast<std::int64_t>(count_chars(text)), most_characters}};
    for (const auto& row : counts) {
        if (row.count > row.limit)
            throw EngineDirError(name + ": " + grouped(row.count) + " " + row.what + ", more than a tokenizer has (" +
                                     grouped(row.limit) + ")",
                                 hint(name));
    }
}

/// Takes the members of a file as they come; vocabulary and merges are not kept as JSON.
class Reader : public nlohmann::json_sax<json> {
  public:
    Reader(TokenizerFile& file, const std::string& name) : file_(file), name_(name) {}

    bool null() override { return value(nullptr); }
    bool boolean(bool val) override { return value(val); }
    bool number_integer(number_integer_t val) override { return value(val); }
    bool number_unsigned(number_unsigned_t val) override {
        if (!in_vocabulary()) return value(val);
        if (val > std::numeric_limits<std::uint32_t>::max()) wrong("an id is no whole number of 32 bits");
        file_.vocabulary.add(key_, static_cast<std::uint32_t>(val));
        return true;
    }
    bool number_float(number_float_t val, const string_t&) override { return value(val); }
    bool string(string_t& val) override {
        if (in_merges() && stack_.size() == 3) return merge(val);
        if (in_merges() && stack_.size() == 4) return half(val);
        return value(std::move(val));
    }
    bool binary(binary_t&) override { return false; }
    bool key(string_t& val) override {
        key_ = std::move(val);
        return true;
    }
    bool start_object(std::size_t) override { return open(json::object()); }
    bool start_array(std::size_t) override { return open(json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool parse_error(std::size_t place, const std::string&, const nlohmann::detail::exception&) override {
        throw EngineDirError(name_ + " cannot be read: no JSON at byte " + std::to_string(place), hint(name_));
    }

  private:
    enum class Member { other, model, vocabulary, merges };

    bool in_vocabulary() const { return !stack_.empty() && stack_.back().member == Member::vocabulary; }
    bool in_merges() const { return stack_.size() > 2 && stack_[2].member == Member::merges; }

    [[noreturn]] void wrong(const std::string& why) const {
        throw EngineDirError(name_ + " cannot be read: " + why, hint(name_));
    }

    /// Puts a value at its place.
    bool value(json val) {
        if (stack_.empty()) wrong("it is no object");
        if (in_vocabulary()) wrong("an id of the vocabulary is no whole number");
        if (in_merges()) wrong("a merge is no pair of texts");
        put(std::move(val));
        return true;
    }

    json* put(json val) {
        json& parent = *stack_.back().place;
        if (parent.is_array()) {
            parent.push_back(std::move(val));
            return &parent.back();
        }
        json& member = parent[key_];
        member = std::move(val);
        return &member;
    }

    bool open(json empty) {
        const bool object = empty.is_object();
        if (stack_.size() >= deepest) wrong("it is nested too deeply");
        if (stack_.empty()) {
            if (!object) wrong("it is no object");
            file_.members = std::move(empty);
            stack_.push_back({&file_.members, Member::other});
            return true;
        }
        if (in_vocabulary()) wrong("an id of the vocabulary is no whole number");
        if (in_merges()) {
            if (object || stack_.size() != 3) wrong("a merge is no pair of texts");
            stack_.push_back({nullptr, Member::other});
            halves_ = 0;
            return true;
        }
        if (stack_.size() == 2 && stack_[1].member == Member::model) {
            if (key_ == "vocab" && object) return open_long(Member::vocabulary, file_.has_vocabulary);
            if (key_ == "merges" && !object) return open_long(Member::merges, file_.has_merges);
        }
        const bool model = stack_.size() == 1 && key_ == "model" && object;
        if (model && file_.members.contains("model")) wrong("duplicate member model");
        stack_.push_back({put(std::move(empty)), model ? Member::model : Member::other});
        return true;
    }

    bool open_long(Member member, bool& there) {
        if (there) wrong("duplicate member " + key_);
        there = true;
        stack_.push_back({nullptr, member});
        return true;
    }

    bool close() {
        if (in_merges() && stack_.size() == 4 && halves_ != 2) wrong("a merge is no pair of texts");
        stack_.pop_back();
        return true;
    }

    bool kind(bool pairs) {
        if (!file_.merge_ends.empty() && pairs != pairs_) wrong("some merges are pairs and some are texts");
        pairs_ = pairs;
        return true;
    }

    /// A merge as one text: two parts with a space between them.
    bool merge(const std::string& text) {
        if (text.compare(0, 8, "#version") == 0) return true;
        kind(false);
        const std::size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
            wrong("Merges text file invalid at line " + std::to_string(file_.merge_ends.size() + 1));
        append_text(std::string_view(text).substr(0, space));
        const std::uint32_t middle = end();
        append_text(std::string_view(text).substr(space + 1));
        file_.merge_ends.emplace_back(middle, end());
        return true;
    }

    bool half(const std::string& text) {
        if (++halves_ > 2) wrong("a merge is no pair of texts");
        if (halves_ == 1) kind(true);
        append_text(text);
        if (halves_ == 1)
            file_.merge_ends.emplace_back(end(), 0);
        else
            file_.merge_ends.back().second = end();
        return true;
    }

    void append_text(std::string_view text) {
        if (text.size() > std::numeric_limits<std::uint32_t>::max() - file_.merge_texts.size())
            wrong("more than 4 GB of merges");
        file_.merge_texts += text;
    }
    std::uint32_t end() const { return static_cast<std::uint32_t>(file_.merge_texts.size()); }

    struct Level {
        json* place;  // none of vocabulary and merges
        Member member;
    };

    TokenizerFile& file_;
    const std::string& name_;
    std::vector<Level> stack_;
    std::string key_;
    int halves_ = 0;
    bool pairs_ = false;
};

}  // namespace

std::vector<std::pair<std::string_view, std::string_view>> TokenizerFile::merges() const {
    std::vector<std::pair<std::string_view, std::string_view>> found;
    found.reserve(merge_ends.size());
    const std::string_view texts = merge_texts;
    std::size_t start = 0;
    for (const auto& [middle, end] : merge_ends) {
        found.emplace_back(texts.substr(start, middle - start), texts.substr(middle, end - middle));
        start = end;
    }
    return found;
}

TokenizerFile read_tokenizer_file(std::string_view text, const std::string& name) {
    check_size(text, name);
    TokenizerFile file;
    Reader reader(file, name);
    json::sax_parse(text.begin(), text.end(), &reader);
    if (!file.members.is_object()) throw EngineDirError(name + " cannot be read: it is no object", hint(name));
    file.vocabulary.finish(name);
    return file;
}

}  // namespace trtprune::text
