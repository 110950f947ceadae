// A conversation about images: a question a line on stdin, answers piece by piece on stdout.
//
//   chat OUT PICTURE [PICTURE ...]
//
// Ctrl-C ends an answer, not the conversation; Ctrl-D ends that.

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>
#include <trtprune/vlm.hpp>
#include <vector>

namespace {

volatile std::sig_atomic_t interrupted = 0;

void interrupt(int) {
    interrupted = 1;
}

bool show(std::string_view piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
    return interrupted == 0;
}

void report(const trtprune::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.message().c_str());
    if (!error.hint().empty()) std::fprintf(stderr, "hint:  %s\n", error.hint().c_str());
}

void converse(const std::string& directory, const std::vector<std::string>& paths) {
    std::vector<trtprune::Image> images;
    for (const std::string& path : paths) images.push_back(trtprune::Image::from_file(path));
    trtprune::Vlm vlm = trtprune::Vlm::load(directory);
    trtprune::Conversation conversation = vlm.chat(images);

    struct sigaction action = {};
    action.sa_handler = interrupt;
    action.sa_flags = SA_RESETHAND;  // a second Ctrl-C ends the program
    const bool terminal = isatty(STDIN_FILENO) != 0;
    std::string question;
    while (std::fputs(terminal ? "> " : "", stdout), std::fflush(stdout), std::getline(std::cin, question)) {
        if (question.empty()) continue;
        interrupted = 0;
        sigaction(SIGINT, &action, nullptr);
        try {
            conversation.ask(question, {}, show);
        } catch (const trtprune::Error& error) {
            report(error);  // the conversation goes on as it was before the question
        }
        signal(SIGINT, SIG_DFL);
        std::puts("");
    }
}

}  // namespace

int main(int count, char** words) {
    if (count < 3) {
        std::fputs("usage: chat OUT PICTURE [PICTURE ...]\n", stderr);
        return 2;
    }
    try {
        converse(words[1], std::vector<std::string>(words + 2, words + count));
        return 0;
    } catch (const trtprune::Error& error) {
        report(error);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
    }
    return 1;
}
