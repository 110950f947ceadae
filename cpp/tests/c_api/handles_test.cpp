#include "c_api/handles.hpp"

#include <doctest/doctest.h>
#include <trtprune/trtprune.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

namespace {

const std::uint8_t pixels[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

trtprune_image* make_image() {
    trtprune_image* image = nullptr;
    REQUIRE(trtprune_image_from_rgb(pixels, 2, 2, 0, &image, nullptr) == TRTPRUNE_OK);
    return image;
}

}  // namespace

TEST_CASE("a handle serves until it is freed, and is an error afterwards") {
    trtprune_image* image = make_image();
    CHECK(trtprune_image_width(image) == 2);
    CHECK(trtprune_image_height(image) == 2);
    CHECK(std::memcmp(trtprune_image_data(image), pixels, sizeof pixels) == 0);
    CHECK(trtprune_image_free(image) == TRTPRUNE_OK);

    CHECK(trtprune_image_free(image) == TRTPRUNE_INPUT);
    CHECK(trtprune_image_width(image) == -1);
    CHECK(trtprune_image_data(image) == nullptr);
    trtprune_image* next = make_image();
    CHECK(next != image);  // numbers are not used again
    CHECK(trtprune_image_width(image) == -1);
    trtprune_image_free(next);
}

TEST_CASE("what is no handle of the kind is not read") {
    trtprune_image* image = make_image();
    int local = 0;
    const std::vector<void*> wrong = {nullptr, image, &local, reinterpret_cast<void*>(1),
                                      reinterpret_cast<void*>(~std::uintptr_t{0})};
    for (void* handle : wrong) {
        CAPTURE(handle);
        const auto* error = static_cast<const trtprune_error*>(handle);
        const auto* result = static_cast<const trtprune_result*>(handle);
        std::size_t count = 7;
        CHECK(trtprune_error_code(error) == -1);
        CHECK(trtprune_error_message(error) == nullptr);
        CHECK(trtprune_error_hint(error) == nullptr);
        CHECK(trtprune_result_text(result) == nullptr);
        CHECK(trtprune_result_json(result) == nullptr);
        CHECK(trtprune_result_token_ids(result, &count) == nullptr);
        CHECK(count == 0);
        CHECK(trtprune_result_kept_indices(result, 0, &count) == nullptr);
        CHECK(trtprune_result_image_count(result) == -1);
        CHECK(trtprune_result_timing_ms(result, "total") == -1);
        trtprune_error* failure = nullptr;
        trtprune_info info{};
        info.struct_size = sizeof info;
        CHECK(trtprune_vlm_info(static_cast<trtprune_vlm*>(handle), &info, &failure) == TRTPRUNE_INPUT);
        CHECK(std::string(trtprune_error_message(failure)) == (handle ? "vlm: no such handle" : "vlm=NULL"));
        trtprune_error_free(failure);
        const std::int32_t freed = handle == nullptr ? TRTPRUNE_OK : TRTPRUNE_INPUT;
        CHECK(trtprune_vlm_free(static_cast<trtprune_vlm*>(handle)) == freed);
        CHECK(trtprune_conversation_free(static_cast<trtprune_conversation*>(handle)) == freed);
        CHECK(trtprune_result_free(static_cast<trtprune_result*>(handle)) == freed);
        CHECK(trtprune_error_free(static_cast<trtprune_error*>(handle)) == freed);
    }
    CHECK(trtprune_image_free(image) == TRTPRUNE_OK);
}

TEST_CASE("an error has code, message and hint, and clears what a call returns") {
    auto* image = reinterpret_cast<trtprune_image*>(1);
    trtprune_error* error = nullptr;
    CHECK(trtprune_image_from_rgb(nullptr, 2, 2, 0, &image, &error) == TRTPRUNE_INPUT);
    CHECK(image == nullptr);
    REQUIRE(error != nullptr);
    CHECK(trtprune_error_code(error) == TRTPRUNE_INPUT);
    CHECK(std::strlen(trtprune_error_message(error)) > 0);
    CHECK(trtprune_error_hint(error) != nullptr);
    CHECK(trtprune_error_free(error) == TRTPRUNE_OK);
    CHECK(trtprune_error_free(error) == TRTPRUNE_INPUT);

    CHECK(trtprune_image_from_rgb(pixels, 2, 2, 0, nullptr, &error) == TRTPRUNE_INPUT);
    CHECK(std::string(trtprune_error_message(error)) == "image=NULL");
    trtprune_error_free(error);
    CHECK(trtprune_image_from_file(nullptr, nullptr, &image, &error) == TRTPRUNE_INPUT);
    CHECK(std::string(trtprune_error_message(error)) == "path=NULL");
    trtprune_error_free(error);
    CHECK(trtprune_image_from_memory(nullptr, 3, nullptr, &image, nullptr) == TRTPRUNE_INPUT);

    image = make_image();
    CHECK(trtprune_image_from_rgb(pixels, 2, 2, 0, &image, &error) == TRTPRUNE_OK);
    CHECK(error == nullptr);  // not that of the call before
}

TEST_CASE("threads make, read and free handles side by side") {
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&wrong] {
            for (int i = 0; i < 500; ++i) {
                trtprune_image* image = nullptr;
                if (trtprune_image_from_rgb(pixels, 1, 2, 6, &image, nullptr) != TRTPRUNE_OK) ++wrong;
                if (trtprune_image_height(image) != 2) ++wrong;
                if (trtprune_image_free(image) != TRTPRUNE_OK) ++wrong;
                if (trtprune_image_free(image) != TRTPRUNE_INPUT) ++wrong;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
}

TEST_CASE("versions") {
    CHECK(trtprune_abi_version() == TRTPRUNE_ABI_VERSION);
    CHECK(std::string(trtprune_version()).find('.') != std::string::npos);
}
