#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string_view>

namespace trtprune::engine_dir {

/// Bytes that are no protobuf message.
class WireError : public std::runtime_error {
  public:
    WireError() : std::runtime_error("not a protobuf message") {}
};

/// One field of a protobuf message.
struct WireField {
    std::uint32_t number = 0;
    /// The content of a field with a length; not set for numbers and groups, which are skipped.
    std::optional<std::string_view> content;
};

/// The fields of a protobuf message in their order; the wire format of
/// https://protobuf.dev/programming-guides/encoding, as far as a reader of texts and messages needs it.
class WireReader {
  public:
    /// \param depth  Messages that may still lie inside this one.
    WireReader(std::string_view message, int depth) : rest_(message), depth_(depth) {}

    /// The next field; not set at the end.
    ///
    /// \throws WireError  for a message that is cut off, or nested too deeply.
    std::optional<WireField> next();

    /// Refuses the content of a packed field that does not hold whole numbers of `width` bytes, 0 for varints.
    static void check_packed(std::string_view content, int width);

  private:
    std::uint64_t varint(std::size_t longest);
    void skip(std::uint64_t size);
    void skip_group(std::uint32_t number, int depth);
    // Reads what is behind a tag; groups are skipped.
    WireField field(std::uint64_t tag, int depth);

    std::string_view rest_;
    int depth_;
};

}  // namespace trtprune::engine_dir
