// Answers for benchmarks/bench_cpp.py: `bench_answers DIRECTORY THREADS` answers a request a line with an answer a
// line.
//
// A request is {"image": FILE, "prompt": TEXT, "keep": K or null, "max_new_tokens": N}; the answer is that of
// `trtprune run --json` with the process's peak memory.  With a third argument `first` the first piece of the first
// answer is printed as it is, and the process ends.

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/vlm.hpp>

namespace {

/// The largest resident memory so far, in KiB.
long peak_memory() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.rfind("VmHWM:", 0) == 0) return std::atol(line.c_str() + 6);
    }
    return -1;
}

trtprune::Result answer(trtprune::Vlm& vlm, const nlohmann::json& request, const trtprune::TextCallback& on_text) {
    const trtprune::Image image = trtprune::Image::from_file(request.at("image").get<std::string>());
    trtprune::GenerateOptions options;
    options.max_new_tokens = request.at("max_new_tokens").get<std::int64_t>();
    options.ignore_eos = true;
    if (!request.at("keep").is_null()) options.keep = request.at("keep").get<std::int64_t>();
    return vlm.generate({image}, request.at("prompt").get<std::string>(), options, on_text);
}

bool print_piece(std::string_view piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
    return piece.empty();
}

}  // namespace

int main(int count, char** words) {
    if (count < 3) return 2;
    try {
        trtprune::LoadOptions options;
        options.threads = std::atoi(words[2]);
        trtprune::Vlm vlm = trtprune::Vlm::load(words[1], options);
        for (std::string line; std::getline(std::cin, line);) {
            const nlohmann::json request = nlohmann::json::parse(line);
            if (count > 3) {
                answer(vlm, request, print_piece);
                return 0;
            }
            nlohmann::json result = nlohmann::json::parse(answer(vlm, request, {}).to_json());
            result["peak_kib"] = peak_memory();
            std::cout << result.dump() << std::endl;
        }
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
