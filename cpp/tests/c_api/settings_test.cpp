#include "c_api/settings.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <trtprune/error.hpp>

using namespace trtprune;
using namespace trtprune::c_api;

namespace {

trtprune_generate_options sized() {
    trtprune_generate_options options{};
    options.struct_size = sizeof options;
    return options;
}

template <class Call>
std::string message(Call&& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.message();
    }
    return "no error";
}

std::int32_t go_on(const char*, std::size_t, void*) {
    return 1;
}
std::int32_t end(const char*, std::size_t, void*) {
    return 0;
}
std::int32_t fail(const char*, std::size_t, void*) {
    return -3;
}
std::int32_t throw_text(const char*, std::size_t, void*) {
    throw std::runtime_error("disk full");
}
std::int32_t throw_number(const char*, std::size_t, void*) {
    throw 5;
}

}  // namespace

TEST_CASE("settings that are NULL stay unset, others are taken") {
    const GenerateOptions unset = generate_options(nullptr);
    CHECK(!unset.keep);
    CHECK(!unset.stop);
    CHECK(!unset.temperature);

    trtprune_generate_options given = sized();
    const std::int64_t keep = 0;  // a number like others; the runtime refuses it
    const std::uint64_t seed = ~std::uint64_t{0};
    const double temperature = 0;
    const char* stop[] = {"\n", "ä"};
    given.keep = &keep;
    given.seed = &seed;
    given.temperature = &temperature;
    given.stop = stop;
    given.stop_count = 2;
    given.system = "";
    given.ignore_eos = 1;
    const GenerateOptions options = generate_options(&given);
    CHECK(options.keep == 0);
    CHECK(options.seed == seed);
    CHECK(options.temperature == 0.0);
    CHECK(options.stop == std::vector<std::string>{"\n", "ä"});
    CHECK(options.system == "");
    CHECK(options.ignore_eos);
    CHECK(!options.raw_prompt);

    given.stop_count = 0;  // no stop texts, where the directory may have some
    CHECK(generate_options(&given).stop == std::vector<std::string>{});
}

TEST_CASE("the size of a structure tells its version") {
    trtprune_generate_options given = sized();
    const std::int64_t keep = 5;
    const double ratio = 0.5;
    given.keep = &keep;
    given.keep_ratio = &ratio;
    given.struct_size = offsetof(trtprune_generate_options, keep_ratio);  // an earlier version's, without keep_ratio
    CHECK(generate_options(&given).keep == 5);
    CHECK(!generate_options(&given).keep_ratio);

    struct {
        trtprune_generate_options known;
        const void* more;
    } later{sized(), nullptr};
    later.known.struct_size = sizeof later;
    later.known.keep = &keep;
    CHECK(generate_options(&later.known).keep == 5);
    later.more = &keep;
    CHECK(message([&] { generate_options(&later.known); }) ==
          "options has a setting that this version of trtprune does not know");

    // Sizes within a pointer: half of it would be followed.
    const std::size_t within = offsetof(trtprune_generate_options, keep_ratio) + 4;
    for (const std::size_t size : {std::size_t{0}, std::size_t{7}, within, std::size_t{5000}, ~std::size_t{0}}) {
        given.struct_size = size;
        CHECK(message([&] { generate_options(&given); }) ==
              "options.struct_size=" + std::to_string(size) + " is of no known version");
    }
}

TEST_CASE("arrays have a pointer and a bounded count") {
    trtprune_generate_options given = sized();
    given.stop_count = 2;
    CHECK(message([&] { generate_options(&given); }) == "stop=NULL with a count of 2");
    const char* stop[] = {"a", nullptr};
    given.stop = stop;
    CHECK(message([&] { generate_options(&given); }) == "stop=NULL");
    given.stop_count = ~std::size_t{0};
    CHECK(message([&] { generate_options(&given); }).find("are too many") != std::string::npos);
    CHECK(message([] { images(nullptr, 1); }) == "images=NULL with a count of 1");
    CHECK(images(nullptr, 0).empty());
    const trtprune_image* none[] = {nullptr};
    CHECK(message([&] { images(none, 1); }) == "image=NULL");
    const trtprune_request* rows[] = {nullptr};
    CHECK(message([&] { requests(rows, 1); }) == "requests[0]=NULL");
}

TEST_CASE("settings of loading and of images") {
    const trtprune_pair pairs[] = {{"device_id", "1"}};
    trtprune_load_options given{};
    given.struct_size = sizeof given;
    given.provider = "cuda";
    given.threads = 3;
    given.provider_options = pairs;
    given.provider_option_count = 1;
    const LoadOptions options = load_options(&given);
    CHECK(options.provider == "cuda");
    CHECK(options.threads == 3);
    CHECK(options.verify == "auto");
    CHECK(options.provider_options.at("device_id") == "1");

    trtprune_image_options limits{};
    limits.struct_size = sizeof limits;
    CHECK(image_options(&limits).max_pixels == 0);
    const std::int64_t nothing = 0;
    limits.max_pixels = &nothing;
    CHECK(message([&] { image_options(&limits); }) == "max_pixels=0 must be at least 1");
}

TEST_CASE("a callback goes on, ends, or fails") {
    CHECK(!callback(nullptr, nullptr));
    CHECK(callback(go_on, nullptr)("a"));
    CHECK(!callback(end, nullptr)("a"));
    CHECK(message([] { callback(fail, nullptr)("a"); }) == "on_text returned -3");
    CHECK(message([] { callback(throw_text, nullptr)("a"); }) == "on_text threw: disk full");
    CHECK(message([] { callback(throw_number, nullptr)("a"); }) == "on_text threw");

    std::string seen;
    const auto collect = [](const char* piece, std::size_t length, void* user_data) -> std::int32_t {
        static_cast<std::string*>(user_data)->append(piece, length);
        return std::strlen(piece) == length ? 1 : -1;
    };
    // A piece need not end where its memory does.
    CHECK(callback(collect, &seen)(std::string_view("pieces", 5)));
    CHECK(seen == "piece");
}

TEST_CASE("facts fill a structure of the caller's size") {
    Info facts;
    facts.model_id = "model";
    facts.keep_range = {1, 9};
    facts.max_batch_size = 4;
    trtprune_info info{};
    info.struct_size = sizeof info;
    info.max_batch_size = -1;
    fill(&info, facts);
    CHECK(std::string(info.model_id) == "model");
    CHECK(info.keep_most == 9);
    CHECK(info.max_batch_size == 4);

    info.max_batch_size = -1;
    info.struct_size = offsetof(trtprune_info, max_batch_size);
    fill(&info, facts);
    CHECK(info.max_batch_size == -1);
    info.struct_size = sizeof info + 8;
    CHECK(message([&] { fill(&info, facts); }).find("info.struct_size=") == 0);
    CHECK(message([&] { fill(nullptr, facts); }) == "info=NULL");
}
