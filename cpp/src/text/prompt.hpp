#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/detokenizer.hpp"
#include "text/info.hpp"
#include "text/pieces.hpp"

namespace trtprune::engine_dir {
struct EngineDir;
}

namespace trtprune::text {

/// A tokenised prompt.
struct Prompt {
    std::vector<std::int64_t> ids;              ///< with one placeholder for each span of an image
    std::vector<std::int64_t> image_positions;  ///< indices into `ids` of the placeholders, ascending
    std::vector<std::int64_t> question;         ///< indices into `ids` of the last user turn's text; may be empty
    std::string text;                           ///< that text, without placeholders
    std::vector<std::int64_t> markers;  ///< indices into `ids` of the text around and between the spans of an image

    /// Indices into `ids` of the text tokens that a method selects by.
    ///
    /// `question`: the user's words; `after_image`: every text token behind the last image; `all`: every text token.
    /// Placeholders and the markers of images are never part of it.
    std::vector<std::int64_t> span(const std::string& name) const;
};

/// For each image the text in front of its first span, between two, and behind the last.
using Markers = std::vector<std::vector<std::string>>;

/// Tokenizer and chat template of an engine directory; ids are those of the Python package.
class PromptEncoder {
  public:
    /// \throws EngineDirError  if a file is broken, or tokenizer and model disagree on the placeholder.
    explicit PromptEncoder(const engine_dir::EngineDir& directory);

    /// \param tokenizer       The content of tokenizer.json.
    /// \param info            What `config.json` says of tokenizer and template.
    /// \param image_token     The placeholder's text.
    /// \param image_token_id  Its id in the model.
    /// \param video_token     Text that stands for a video, which no prompt may hold; none without one.
    PromptEncoder(std::string_view tokenizer, TextInfo info, std::string image_token, std::int64_t image_token_id,
                  std::optional<std::string> video_token = std::nullopt);

    PromptEncoder(PromptEncoder&&) noexcept;
    PromptEncoder& operator=(PromptEncoder&&) noexcept;
    ~PromptEncoder();

    /// Tokenises turns through the chat template, or with `raw` the last turn's text as it is.
    ///
    /// \param turns    The last is the user's.
    /// \param markers  For each image of the conversation the text around and between its spans, UTF-8; nullptr: one
    ///                 span an image, and no such text.
    /// \throws InputError  if the text is not UTF-8, holds another number of placeholders than there are images, or
    ///                     the chat template does not take these turns.
    Prompt encode(const std::vector<Turn>& turns, bool raw = false, const Markers* markers = nullptr) const;

    /// Text of an answer, without special tokens.
    std::string decode(const std::vector<std::int64_t>& ids) const;

    /// The text of one token, as far as possible.
    std::string token(std::int64_t id) const;

    /// A detokenizer for one growing answer.
    ///
    /// \param stop  Texts that end the answer, UTF-8.
    Detokenizer detokenizer(const std::vector<std::string>& stop = {}) const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace trtprune::text
