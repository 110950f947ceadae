// Describes a camera's frame, here one of made-up pixels: `describe OUT`.

#include <cstdint>
#include <cstdio>
#include <trtprune/vlm.hpp>
#include <vector>

int main(int count, char** words) {
    if (count != 2) {
        std::fputs("usage: describe OUT\n", stderr);
        return 2;
    }
    try {
        // Frames often have rows longer than their pixels.
        constexpr std::int64_t width = 320, height = 240, stride = 1024;
        std::vector<std::uint8_t> frame(static_cast<std::size_t>(height * stride), 200);
        trtprune::Vlm vlm = trtprune::Vlm::load(words[1]);
        const trtprune::Image image = trtprune::Image::from_rgb(frame.data(), width, height, stride);
        trtprune::GenerateOptions options;
        options.max_new_tokens = 16;
        const trtprune::Result result = vlm.generate({image}, "What is in the picture?", options);
        std::printf("%s\n%zu tokens; %s; %lld of %lld visual tokens\n", result.text.c_str(), result.token_ids.size(),
                    vlm.info().model_id.c_str(), static_cast<long long>(result.kept_tokens),
                    static_cast<long long>(result.visual_tokens));
        return 0;
    } catch (const trtprune::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
