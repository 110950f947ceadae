// A main() for fuzzers where the compiler brings none: changes files of a corpus at random, always the same way for the
// same seed.
//
//     NAME_fuzz [-runs=N] [-max_total_time=SECONDS] [-seed=N] [-artifact_prefix=FOLDER/] CORPUS... | INPUT
//
// The flags are those of libFuzzer.  A folder is a corpus, a single file is run as it is.  The input that ends the
// process is left in the file `crash`.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
/// Of the sanitizers, which end the process without a signal; not there without them.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

namespace {

constexpr std::size_t longest = 1U << 16U;

using Bytes = std::vector<std::uint8_t>;

// For the handler of signals, which may use nothing that allocates.
const Bytes* running = nullptr;
std::string crash_path = "crash";

void save_input() {
    if (running == nullptr) return;
    const int file = open(crash_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return;
    const auto written = write(file, running->data(), running->size());
    const char text[] = "the input is in the file `crash`\n";
    if (written >= 0 && write(STDERR_FILENO, text, sizeof text - 1) > 0) running = nullptr;
    close(file);
}

void on_signal(int number) {
    save_input();
    std::signal(number, SIG_DFL);
    std::raise(number);
}

/// Changes inputs.
class Mutator {
  public:
    Mutator(std::uint64_t seed, const std::vector<Bytes>& corpus) : random_(seed), corpus_(corpus) {}

    Bytes next() {
        Bytes input = corpus_[below(corpus_.size())];
        for (std::size_t changes = 1 + below(1U << below(5)); changes > 0; --changes) change(input);
        if (input.size() > longest) input.resize(longest);
        return input;
    }

  private:
    // Not std::uniform_int_distribution, whose numbers depend on the library.
    std::size_t below(std::size_t limit) { return limit == 0 ? 0 : static_cast<std::size_t>(random_() % limit); }
    std::uint8_t byte() {
        const std::uint8_t some[] = {0, 1, 0x7F, 0x80, 0xFF, '"', '{', '}', '[', ']', ',', ':', '0', '-', ' ', '\n'};
        return below(2) == 0 ? some[below(sizeof some)] : static_cast<std::uint8_t>(random_());
    }

    void change(Bytes& input) {
        const std::size_t place = below(input.size() + 1);
        const auto at = input.begin() + static_cast<std::ptrdiff_t>(place);
        const std::size_t rest = input.size() - place;
        switch (below(7)) {
            case 0:
                if (rest > 0) *at = static_cast<std::uint8_t>(*at ^ (1U << below(8)));
                break;
            case 1:
                if (rest > 0) *at = byte();
                break;
            case 2: {
                Bytes more(1 + below(16));
                std::generate(more.begin(), more.end(), [this] { return byte(); });
                input.insert(at, more.begin(), more.end());
                break;
            }
            case 3:
                input.erase(at, at + static_cast<std::ptrdiff_t>(below(std::min<std::size_t>(rest, 64) + 1)));
                break;
            case 4:
                insert_part(input, place, input);
                break;
            case 5:
                insert_part(input, place, corpus_[below(corpus_.size())]);
                break;
            default:
                change_number(input, place);
        }
    }

    void insert_part(Bytes& input, std::size_t place, const Bytes& other) {
        const std::size_t begin = below(other.size() + 1);
        const std::size_t length = below(std::min<std::size_t>(other.size() - begin, 256) + 1);
        const Bytes part(other.begin() + static_cast<std::ptrdiff_t>(begin),
                         other.begin() + static_cast<std::ptrdiff_t>(begin + length));
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(place), part.begin(), part.end());
    }

    // The next number of a text becomes another one.
    void change_number(Bytes& input, std::size_t place) {
        const char* const some[] = {"0",    "1",   "-1", "2147483647", "-2147483649", "9223372036854775807", "1e999",
                                    "null", "0.5", "64", "4294967296", "1e-320",      "9223372036854775808", "NaN"};
        const auto digit = [](std::uint8_t c) { return c >= '0' && c <= '9'; };
        const auto first = std::find_if(input.begin() + static_cast<std::ptrdiff_t>(place), input.end(), digit);
        const auto last = std::find_if_not(first, input.end(), digit);
        if (first == input.end()) return;
        const std::string number = some[below(std::size(some))];
        input.insert(input.erase(first, last), number.begin(), number.end());
    }

    std::mt19937_64 random_;
    const std::vector<Bytes>& corpus_;
};

Bytes content(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return Bytes{std::istreambuf_iterator<char>(file), {}};
}

void run(const Bytes& input) {
    running = &input;
    LLVMFuzzerTestOneInput(input.data(), input.size());
    running = nullptr;
}

struct Flags {
    std::uint64_t runs = ~std::uint64_t{0};
    std::uint64_t seconds = 0;
    std::uint64_t seed = 1;
    std::vector<std::filesystem::path> paths;
};

bool take(const std::string& word, const std::string& name, std::uint64_t& value) {
    if (word.compare(0, name.size(), name) != 0) return false;
    value = std::strtoull(word.c_str() + name.size(), nullptr, 10);
    return true;
}

Flags flags_of(int count, char** words) {
    Flags flags;
    const std::string prefix = "-artifact_prefix=";
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        if (word.compare(0, prefix.size(), prefix) == 0)
            crash_path = word.substr(prefix.size()) + "crash";
        else if (take(word, "-runs=", flags.runs) || take(word, "-max_total_time=", flags.seconds) ||
                 take(word, "-seed=", flags.seed))
            continue;
        else if (word[0] != '-')
            flags.paths.emplace_back(word);
    }
    return flags;
}

std::vector<Bytes> corpus_of(const std::vector<std::filesystem::path>& folders) {
    std::vector<std::filesystem::path> files;
    for (const auto& folder : folders) {
        for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    std::vector<Bytes> corpus;
    for (const auto& file : files) corpus.push_back(content(file));
    if (corpus.empty()) corpus.emplace_back();
    return corpus;
}

}  // namespace

int main(int count, char** words) {
    const Flags flags = flags_of(count, words);
    for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(number, on_signal);
    if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(save_input);
    if (flags.paths.size() == 1 && !std::filesystem::is_directory(flags.paths[0])) {
        run(content(flags.paths[0]));
        return 0;
    }
    const std::vector<Bytes> corpus = corpus_of(flags.paths);
    for (const Bytes& input : corpus) run(input);
    Mutator mutator(flags.seed, corpus);
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t done = 0;
    for (; done < flags.runs; ++done) {
        if (flags.seconds > 0 && std::chrono::steady_clock::now() - start >= std::chrono::seconds(flags.seconds)) break;
        run(mutator.next());
    }
    std::fprintf(stderr, "Done %llu runs\n", static_cast<unsigned long long>(done));
    return 0;
}
