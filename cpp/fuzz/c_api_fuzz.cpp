// Any sequence of calls of the C interface: handles that live, were freed, are of another kind or made up; structures
// of any size; NULL; texts of any bytes; callbacks that end, fail, throw, or call their own model.
//
// `TRTPRUNE_FUZZ_MODEL` names an engine directory, whose model answers; without one no call gets that far.

#include <trtprune/trtprune.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

/// Values drawn from bytes; zeros at their end.
class Source {
  public:
    Source(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    std::size_t left() const { return left_; }
    unsigned byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    std::size_t below(std::size_t limit) { return byte() % limit; }
    std::uint64_t number() {
        std::uint64_t value = 0;
        for (int i = 0; i < 8; ++i) value = (value << 8U) | byte();
        return value;
    }
    std::int64_t integer() {
        const std::int64_t some[] = {0, 1, 2, 3, 5, 16, -1, INT64_MIN, INT64_MAX, 1000000};
        const std::size_t place = below(11);
        return place < 10 ? some[place] : static_cast<std::int64_t>(number());
    }
    double real() {
        const std::uint64_t bits = number();
        const double some[] = {0, 0.5, 1, -1, 2};
        double value = 0;
        std::memcpy(&value, &bits, sizeof value);
        return below(2) == 0 ? some[below(5)] : value;
    }
    std::string text() {
        const char* some[] = {"", "What is it?", "<image>\nWhat?", "auto", "cpu", "none"};
        if (const std::size_t place = below(8); place < 6) return some[place];
        std::string bytes;
        for (std::size_t length = below(24); length > 0; --length) bytes.push_back(static_cast<char>(byte()));
        return bytes;
    }

  private:
    const std::uint8_t* data_;
    std::size_t left_;
};

enum Kind : std::size_t { error_kind, image_kind, vlm_kind, conversation_kind, result_kind, kinds };

/// Memory that what it was lent to may read until the input's end; each block of its own, so that none reaches another.
class Lent {
  public:
    void* block(std::size_t size) {
        blocks_.push_back(std::make_unique<unsigned char[]>(std::max<std::size_t>(size, 1)));
        return blocks_.back().get();
    }
    template <class Value>
    const Value* value(Value value) {
        auto* place = static_cast<Value*>(block(sizeof value));
        std::memcpy(place, &value, sizeof value);
        return place;
    }
    const char* text(const std::string& text) {
        return static_cast<const char*>(std::memcpy(block(text.size() + 1), text.c_str(), text.size() + 1));
    }

  private:
    std::vector<std::unique_ptr<unsigned char[]>> blocks_;
};

/// One input's calls.
class Session {
  public:
    explicit Session(Source source) : source_(source) {
        for (std::size_t kind = 0; kind < kinds; ++kind) handles_.push_back(nullptr);
        add_model();
    }

    void run() {
        for (int calls = 0; calls < 40 && source_.left() > 0; ++calls) call();
        while (!live_.empty()) free(live_.begin()->first, live_.begin()->second);
    }

  private:
    // -- handles

    template <class Handle>
    Handle* any(Kind wanted) {
        // Mostly the last of the kind.
        if (source_.below(4) != 0) {
            for (auto handle = handles_.rbegin(); handle != handles_.rend(); ++handle) {
                const auto known = live_.find(*handle);
                if (known != live_.end() && known->second == wanted) return static_cast<Handle*>(*handle);
            }
        }
        if (source_.below(4) == 0) return reinterpret_cast<Handle*>(static_cast<std::uintptr_t>(source_.number()));
        return static_cast<Handle*>(handles_[source_.byte() % handles_.size()]);
    }

    bool lives(const void* handle, Kind kind) const {
        const auto known = live_.find(const_cast<void*>(handle));
        return known != live_.end() && known->second == kind;
    }

    void keep(void* handle, Kind kind) {
        require(handle != nullptr && live_.emplace(handle, kind).second);
        handles_.push_back(handle);
    }

    std::int32_t free_of(void* handle, Kind kind) {
        switch (kind) {
            case error_kind:
                return trtprune_error_free(static_cast<trtprune_error*>(handle));
            case image_kind:
                return trtprune_image_free(static_cast<trtprune_image*>(handle));
            case vlm_kind:
                return trtprune_vlm_free(static_cast<trtprune_vlm*>(handle));
            case conversation_kind:
                return trtprune_conversation_free(static_cast<trtprune_conversation*>(handle));
            default:
                return trtprune_result_free(static_cast<trtprune_result*>(handle));
        }
    }

    void free(void* handle, Kind kind) {
        const bool known = lives(handle, kind);
        require(free_of(handle, kind) == (known || handle == nullptr ? TRTPRUNE_OK : TRTPRUNE_INPUT));
        if (known) live_.erase(handle);
    }

    // -- what a call must leave behind

    static void check_line(const char* text, bool empty_is_fine) {
        require(text != nullptr);
        const std::size_t length = std::strlen(text);
        require(length <= 2000 && (length > 0 || empty_is_fine));
        for (std::size_t i = 0; i < length; ++i) require(static_cast<unsigned char>(text[i]) >= ' ');
    }

    /// The call's code agrees with its error and its handle.
    void check(std::int32_t code, trtprune_error* error, bool wanted, void* made, Kind kind) {
        require(code >= TRTPRUNE_OK && code <= TRTPRUNE_STOPPED);
        require((error != nullptr) == (wanted && code != TRTPRUNE_OK));
        require((made != nullptr) == (code == TRTPRUNE_OK && kind != kinds));
        if (made != nullptr) keep(made, kind);
        if (error == nullptr) return;
        require(trtprune_error_code(error) == code);
        check_line(trtprune_error_message(error), false);
        check_line(trtprune_error_hint(error), true);
        keep(error, error_kind);
    }

    /// A call that makes a handle.
    template <class Handle, class Call>
    void making(Kind kind, const Call& call) {
        Handle* made = reinterpret_cast<Handle*>(8);
        trtprune_error* error = reinterpret_cast<trtprune_error*>(8);
        const bool wanted = source_.below(4) != 0, placed = source_.below(32) != 0;
        const std::int32_t code = call(placed ? &made : nullptr, wanted ? &error : nullptr);
        require(placed || code != TRTPRUNE_OK);
        check(code, wanted ? error : nullptr, wanted, placed ? made : nullptr, kind);
    }

    // -- arguments

    const char* text() { return source_.below(16) == 0 ? nullptr : lent_.text(source_.text()); }

    /// A structure of a drawn size: its beginning, or more than it, in memory of just that size.
    template <class Settings>
    Settings* sized(const Settings& settings) {
        std::size_t size = sizeof settings;
        const std::size_t kind = source_.below(16);
        if (kind == 0) size = source_.below(sizeof settings + 24);
        if (kind == 1) size = static_cast<std::size_t>(source_.number());
        const std::size_t room = std::max(sizeof size, std::min<std::size_t>(size, 4096));
        auto* block = static_cast<unsigned char*>(lent_.block(room));
        std::memcpy(block, &settings, std::min(room, sizeof settings));
        if (room > sizeof settings && source_.below(4) == 0) block[room - 1] = 1;
        std::memcpy(block, &size, sizeof size);
        return reinterpret_cast<Settings*>(block);
    }

    template <class Settings>
    const Settings* or_null(const Settings* settings) {
        return source_.below(8) == 0 ? nullptr : settings;
    }

    const std::int64_t* integer() { return source_.below(4) != 0 ? nullptr : lent_.value(source_.integer()); }
    const double* real() { return source_.below(4) != 0 ? nullptr : lent_.value(source_.real()); }

    /// A count for an array of so many; seldom one that no array has.
    std::size_t count(std::size_t length) {
        return source_.below(32) == 0 ? ~static_cast<std::size_t>(source_.below(4)) : length;
    }

    const trtprune_image* const* images(std::size_t& number) {
        // Mostly one.
        const std::size_t length = source_.below(4) == 0 ? source_.below(3) : 1;
        auto** array = static_cast<const trtprune_image**>(lent_.block(length * sizeof(void*)));
        for (std::size_t i = 0; i < length; ++i) array[i] = any<trtprune_image>(image_kind);
        number = count(length);
        return source_.below(16) == 0 ? nullptr : array;
    }

    const trtprune_image_options* image_options() {
        trtprune_image_options options{};
        // Small, so that an image of a few bytes does not take the memory of a large one.
        options.max_pixels = lent_.value(std::min<std::int64_t>(source_.integer(), 1 << 16));
        options.strict = static_cast<std::int32_t>(source_.below(2));
        return sized(options);
    }

    const trtprune_load_options* load_options() {
        trtprune_load_options options{};
        const char* libraries[] = {nullptr, nullptr, "", "/dev/null", "none"};
        options.provider = source_.below(4) == 0 ? text() : nullptr;
        options.threads = source_.below(4) == 0 ? static_cast<std::int32_t>(source_.integer()) : 1;
        if (options.threads > 4) options.threads = 4;
        options.verify = source_.below(4) == 0 ? text() : nullptr;
        options.library = libraries[source_.below(5)];
        if (source_.below(4) == 0) {
            options.provider_options = lent_.value(trtprune_pair{text(), text()});
            options.provider_option_count = count(1);
        }
        return or_null(sized(options));
    }

    const trtprune_generate_options* generate_options() {
        trtprune_generate_options options{};
        options.keep = integer();
        options.keep_ratio = real();
        // Short answers: 3 tokens, or a drawn number that is mostly refused.
        options.max_new_tokens = source_.below(4) == 0 ? lent_.value(source_.integer()) : lent_.value<std::int64_t>(3);
        options.temperature = real();
        options.top_k = integer();
        options.top_p = real();
        options.repetition_penalty = real();
        if (source_.below(2) == 0) options.seed = lent_.value(source_.number());
        if (source_.below(4) == 0) {
            const char* texts[] = {text()};
            options.stop = static_cast<const char* const*>(std::memcpy(lent_.block(sizeof texts), texts, sizeof texts));
            options.stop_count = count(1);
        }
        options.system = source_.below(4) == 0 ? text() : nullptr;
        options.ignore_eos = static_cast<std::int32_t>(source_.below(2));
        options.raw_prompt = static_cast<std::int32_t>(source_.below(8) == 0);
        // Without settings the model answers at length.
        const auto* settings = sized(options);
        return settings->struct_size > offsetof(trtprune_generate_options, max_new_tokens) + 7 ? settings
                                                                                               : lent(options);
    }

    const trtprune_generate_options* lent(trtprune_generate_options options) {
        options.struct_size = sizeof options;
        return lent_.value(options);
    }

    const trtprune_request* const* requests(std::size_t& number) {
        const std::size_t length = source_.below(3);
        auto** array = static_cast<const trtprune_request**>(lent_.block(length * sizeof(void*)));
        for (std::size_t i = 0; i < length; ++i) {
            trtprune_request row{};
            row.images = images(row.image_count);
            row.prompt = text();
            row.keep = integer();
            row.keep_ratio = real();
            row.system = source_.below(4) == 0 ? text() : nullptr;
            row.raw_prompt = static_cast<std::int32_t>(source_.below(8) == 0);
            row.max_new_tokens = source_.below(4) == 0 ? lent_.value(source_.integer()) : nullptr;
            if (source_.below(2) == 0) row.seed = lent_.value(source_.number());
            array[i] = or_null(sized(row));
        }
        number = count(length);
        return source_.below(16) == 0 ? nullptr : array;
    }

    static std::int32_t on_text(const char* piece, std::size_t length, void* user_data) {
        require(std::strlen(piece) <= length && piece[length] == '\0');
        auto& session = *static_cast<Session*>(user_data);
        switch (session.source_.below(6)) {
            case 0:
                return 0;
            case 1:
                return -5;
            case 2:
                throw std::runtime_error("a\nb");
            case 3:
                throw 5;
            case 4:
                session.call();  // of any kind; of the model in use, an error
                return 1;
            default:
                return 1;
        }
    }
    trtprune_text_callback callback() { return source_.below(2) == 0 ? nullptr : on_text; }

    // -- calls

    void add_model() {
        static const char* const directory = std::getenv("TRTPRUNE_FUZZ_MODEL");
        if (directory == nullptr) return;
        // Loaded once, and again only after an input that made its number up.
        static trtprune_vlm* model = nullptr;
        trtprune_info info{};
        info.struct_size = sizeof info;
        if (trtprune_vlm_info(model, &info, nullptr) != TRTPRUNE_OK) {
            trtprune_load_options options{};
            options.struct_size = sizeof options;
            options.threads = 1;
            require(trtprune_vlm_load(directory, &options, &model, nullptr) == TRTPRUNE_OK);
        }
        trtprune_conversation* turns = nullptr;
        trtprune_image* image = nullptr;
        const std::uint8_t pixels[12] = {1, 2, 3, 40, 50, 60, 200, 210, 220, 4, 5, 6};
        require(trtprune_image_from_rgb(pixels, 2, 2, 0, &image, nullptr) == TRTPRUNE_OK);
        require(trtprune_vlm_chat(model, &image, 1, nullptr, &turns, nullptr) == TRTPRUNE_OK);
        keep(image, image_kind);
        keep(turns, conversation_kind);
        handles_.push_back(model);
        model_ = model;
    }

    trtprune_vlm* vlm() { return model_ != nullptr && source_.below(4) != 0 ? model_ : any<trtprune_vlm>(vlm_kind); }

    void make_image() {
        making<trtprune_image>(image_kind, [&](trtprune_image** place, trtprune_error** error) {
            if (source_.below(3) == 0) return trtprune_image_from_file(text(), image_options(), place, error);
            if (source_.below(2) == 0) {
                const std::size_t size = std::min<std::size_t>(source_.byte() * 4, source_.left());
                auto* data = static_cast<unsigned char*>(lent_.block(size));
                for (std::size_t i = 0; i < size; ++i) data[i] = static_cast<unsigned char>(source_.byte());
                return trtprune_image_from_memory(or_null(data), size, image_options(), place, error);
            }
            // Sizes and strides that the data has, or that no data has.
            const std::int64_t none[] = {0, -1, INT64_MIN, INT64_MAX, INT64_MAX / 3};
            std::int64_t width = 1 + static_cast<std::int64_t>(source_.below(9));
            std::int64_t height = 1 + static_cast<std::int64_t>(source_.below(9));
            const std::int64_t gap = static_cast<std::int64_t>(source_.below(3));
            const auto size = static_cast<std::size_t>((width * 3 + gap) * (height - 1) + width * 3);
            std::int64_t stride = gap == 0 && source_.below(2) == 0 ? 0 : width * 3 + gap;
            const std::size_t wrong = source_.below(16);
            if (wrong == 0) width = none[source_.below(5)];
            if (wrong == 1) height = none[source_.below(3)];
            if (wrong == 2) stride = -1 - static_cast<std::int64_t>(source_.below(99));
            if (wrong == 3) stride = 1;
            const auto* data = static_cast<const std::uint8_t*>(lent_.block(size));
            return trtprune_image_from_rgb(or_null(data), width, height, stride, place, error);
        });
    }

    void generate_batch() {
        std::size_t number = 0;
        const trtprune_request* const* rows = requests(number);
        const std::size_t room = std::min<std::size_t>(number, 8);
        auto** results = static_cast<trtprune_result**>(lent_.block(room * sizeof(void*)));
        const bool placed = source_.below(16) != 0, wanted = source_.below(4) != 0;
        trtprune_error* error = nullptr;
        const auto code = trtprune_vlm_generate_batch(vlm(), rows, number, generate_options(),
                                                      placed ? results : nullptr, wanted ? &error : nullptr);
        for (std::size_t i = 0; placed && i < room; ++i) {
            require((results[i] != nullptr) == (code == TRTPRUNE_OK));
            if (results[i] != nullptr) keep(results[i], result_kind);
        }
        check(code, error, wanted, nullptr, kinds);
    }

    void ask() {
        // Drawn before the call: handles may change within it.
        const auto function = callback();
        if (source_.below(2) == 0) {
            making<trtprune_result>(result_kind, [&](trtprune_result** place, trtprune_error** error) {
                return trtprune_conversation_ask(any<trtprune_conversation>(conversation_kind), text(),
                                                 generate_options(), static_cast<std::int32_t>(source_.below(2)),
                                                 function, this, place, error);
            });
            return;
        }
        making<trtprune_result>(result_kind, [&](trtprune_result** place, trtprune_error** error) {
            std::size_t number = 0;
            const auto* const* all = images(number);
            return trtprune_vlm_generate(vlm(), all, number, text(), generate_options(), function, this, place, error);
        });
    }

    void load_or_chat() {
        if (source_.below(2) == 0) {
            making<trtprune_vlm>(vlm_kind, [&](trtprune_vlm** place, trtprune_error** error) {
                return trtprune_vlm_load(text(), load_options(), place, error);
            });
            return;
        }
        making<trtprune_conversation>(conversation_kind, [&](trtprune_conversation** place, trtprune_error** error) {
            std::size_t number = 0;
            const auto* const* all = images(number);
            return trtprune_vlm_chat(vlm(), all, number, source_.below(2) == 0 ? nullptr : text(), place, error);
        });
    }

    void read() {
        const auto* image = any<trtprune_image>(image_kind);
        require((trtprune_image_width(image) > 0) == lives(image, image_kind));
        require((trtprune_image_data(image) != nullptr) == lives(image, image_kind));
        const auto* error = any<trtprune_error>(error_kind);
        require((trtprune_error_code(error) > 0) == lives(error, error_kind));
        const auto* result = any<trtprune_result>(result_kind);
        const bool lives_on = lives(result, result_kind);
        std::size_t length = 99;
        std::size_t* place = source_.below(4) == 0 ? nullptr : &length;
        require((trtprune_result_text(result) != nullptr) == lives_on);
        require((trtprune_result_json(result) != nullptr) == lives_on);
        require((trtprune_result_kept_tokens(result) >= 0) == lives_on);
        const std::int64_t* ids = trtprune_result_token_ids(result, place);
        require((ids != nullptr) == lives_on);
        if (place != nullptr && lives_on) require(length >= 1 && ids[length - 1] >= 0);
        if (place != nullptr && !lives_on) require(length == 0);
        trtprune_result_kept_indices(result, static_cast<std::size_t>(source_.integer()), place);
        trtprune_result_segment_tokens(result, static_cast<std::size_t>(source_.integer()), place);
        trtprune_result_timing_ms(result, text());
        auto* info = sized(trtprune_info{});
        trtprune_error* failure = nullptr;
        const std::int32_t code = trtprune_vlm_info(vlm(), source_.below(16) == 0 ? nullptr : info, &failure);
        check(code, failure, true, nullptr, kinds);
    }

    void call() {
        // Callbacks call, too.
        if (++depth_ > 3) {
            --depth_;
            return;
        }
        switch (source_.below(6)) {
            case 0:
                make_image();
                break;
            case 1:
                load_or_chat();
                break;
            case 2:
                ask();
                break;
            case 3:
                generate_batch();
                break;
            case 4:
                read();
                break;
            default: {
                const auto kind = static_cast<Kind>(source_.below(kinds));
                void* handle = any<void>(kind);
                if (handle != model_) free(handle, kind);
            }
        }
        --depth_;
    }

    Source source_;
    Lent lent_;
    std::vector<void*> handles_;
    std::map<void*, Kind> live_;
    trtprune_vlm* model_ = nullptr;
    int depth_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Session(Source(data, size)).run();
    return 0;
}
