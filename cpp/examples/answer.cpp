// Answers a question about images, as `trtprune run` does.
//
//   answer OUT --image a.png --prompt "What is on the table?" [--keep K] [--max-new-tokens N] [--threads N] [--json]

#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <trtprune/vlm.hpp>
#include <vector>

namespace {

constexpr const char* usage =
    "usage: answer OUT --image PICTURE [--image PICTURE ...] --prompt TEXT\n"
    "              [--keep K] [--max-new-tokens N] [--threads N] [--json]\n";

struct UsageError {
    std::string message;
};

struct Arguments {
    std::string directory;
    std::vector<std::string> images;
    std::string prompt;
    trtprune::LoadOptions loading;
    trtprune::GenerateOptions answer;
    bool json = false;
};

template <class Integer>
Integer integer(const std::string& flag, const std::string& text) {
    Integer value = 0;
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || rest != end) throw UsageError{flag + ": '" + text + "' is not a valid integer"};
    return value;
}

Arguments parse(int count, char** words) {
    Arguments arguments;
    bool prompt = false;
    for (int i = 1; i < count; ++i) {
        const std::string flag = words[i];
        if (flag == "--json") {
            arguments.json = true;
        } else if (flag.rfind("--", 0) != 0) {
            if (!arguments.directory.empty()) throw UsageError{"unexpected argument '" + flag + "'"};
            arguments.directory = flag;
        } else if (i + 1 == count) {
            throw UsageError{flag + " needs a value, or is unknown"};
        } else {
            const std::string value = words[++i];
            if (flag == "--image") {
                arguments.images.push_back(value);
            } else if (flag == "--prompt") {
                arguments.prompt = value;
                prompt = true;
            } else if (flag == "--keep") {
                arguments.answer.keep = integer<std::int64_t>(flag, value);
            } else if (flag == "--max-new-tokens") {
                arguments.answer.max_new_tokens = integer<std::int64_t>(flag, value);
            } else if (flag == "--threads") {
                arguments.loading.threads = integer<int>(flag, value);
            } else {
                throw UsageError{"no such option: " + flag};
            }
        }
    }
    if (arguments.directory.empty()) throw UsageError{"the engine directory is missing"};
    if (arguments.images.empty()) throw UsageError{"--image is missing"};
    if (!prompt) throw UsageError{"--prompt is missing"};
    return arguments;
}

void answer(const Arguments& arguments) {
    std::vector<trtprune::Image> images;
    for (const std::string& path : arguments.images) images.push_back(trtprune::Image::from_file(path));
    trtprune::Vlm vlm = trtprune::Vlm::load(arguments.directory, arguments.loading);
    const trtprune::Result result = vlm.generate(images, arguments.prompt, arguments.answer);
    std::printf("%s\n", (arguments.json ? result.to_json() : result.text).c_str());
}

}  // namespace

int main(int count, char** words) {
    try {
        answer(parse(count, words));
        return 0;
    } catch (const UsageError& error) {
        std::fprintf(stderr, "%serror: %s\n", usage, error.message.c_str());
        return 2;
    } catch (const trtprune::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.message().c_str());
        if (!error.hint().empty()) std::fprintf(stderr, "hint:  %s\n", error.hint().c_str());
    } catch (const std::exception& error) {  // no memory
        std::fprintf(stderr, "error: %s\n", error.what());
    }
    return 1;
}
