#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "images/decoder.hpp"

// The first frame of a GIF on its canvas.
namespace trtprune::images {

namespace {

constexpr std::size_t table_size = 4096;
constexpr int most_bits = 12;

// The indices of an LZW stream in blocks.
class Lzw {
  public:
    Lzw(std::string_view data, int bits) : reader_(data), bits_(bits), clear_(1U << bits), end_(clear_ + 1) { reset(); }

    // The next string of indices; empty at the end of the stream.
    //
    // Throws Damaged for a code that stands for nothing.
    std::basic_string_view<std::uint8_t> next() {
        for (;;) {
            const std::uint32_t code = next_code();
            if (code == clear_) {
                reset();
                continue;
            }
            if (code == end_) return {};
            if (fresh_) {
                if (code > clear_) throw Damaged(broken_stream);
                first_ = static_cast<std::uint8_t>(code);
                last_ = code;
                fresh_ = false;
                return {&first_, 1};
            }
            return expanded(code);
        }
    }

  private:
    void reset() {
        next_ = clear_ + 2;
        size_ = bits_ + 1;
        fresh_ = true;
    }

    std::uint32_t next_code() {
        while (held_ < size_) {
            if (block_.empty()) {
                const std::string_view length = reader_.exactly<Damaged>(1);
                // As Pillow, which takes a block of no bytes for one of many.
                block_ = reader_.exactly<Damaged>(byte_at(length, 0));
                continue;
            }
            buffer_ |= byte_at(block_, 0) << held_;
            block_.remove_prefix(1);
            held_ += 8;
        }
        const std::uint32_t code = buffer_ & ((1U << size_) - 1);
        buffer_ >>= size_;
        held_ -= size_;
        return code;
    }

    // The string of a code, written from its end.
    std::basic_string_view<std::uint8_t> expanded(std::uint32_t code) {
        if (code > next_) throw Damaged(broken_stream);
        std::size_t place = string_.size();
        std::uint32_t part = code;
        if (part == next_) {  // the string before, with its first index once more
            string_[--place] = first_;
            part = last_;
        }
        while (part >= clear_) {
            if (place == 0 || part >= table_size) throw Damaged(broken_stream);
            string_[--place] = index_[part];
            part = link_[part];
        }
        if (place == 0) throw Damaged(broken_stream);
        first_ = static_cast<std::uint8_t>(part);
        string_[--place] = first_;
        if (next_ < table_size) {
            index_[next_] = first_;
            link_[next_] = static_cast<std::uint16_t>(last_);
            if (next_ == (1U << size_) - 1 && size_ < most_bits) ++size_;
            ++next_;
        }
        last_ = code;
        return {string_.data() + place, string_.size() - place};
    }

    Reader reader_;
    std::string_view block_;
    std::uint32_t buffer_ = 0;
    int held_ = 0;
    int bits_;
    std::uint32_t clear_;
    std::uint32_t end_;
    std::uint32_t next_ = 0;
    int size_ = 0;
    bool fresh_ = true;
    std::uint8_t first_ = 0;
    std::uint32_t last_ = 0;
    std::array<std::uint8_t, table_size> index_{};
    std::array<std::uint16_t, table_size> link_{};
    std::array<std::uint8_t, table_size + 2> string_{};
};

// The frames' parts that matter.
struct Frame {
    std::int64_t left = 0;
    std::int64_t top = 0;
    std::int64_t width = 0;
    std::int64_t height = 0;
    bool interlaced = false;
    bool own_colours = false;
    std::string_view colours;
    std::optional<std::uint32_t> transparent;
    int bits = 0;
    std::size_t data = 0;  ///< where its blocks begin
};

// A palette that counts up is none: the indices are shades.
bool is_needed(std::string_view colours) {
    for (std::size_t i = 0; i < colours.size(); i += 3) {
        if (i + 3 > colours.size()) throw Unreadable(truncated_read);
        for (std::size_t c = 0; c < 3; ++c) {
            if (byte_at(colours, i + c) != i / 3) return true;
        }
    }
    return false;
}

class Gif : public Decoder {
  public:
    explicit Gif(std::string_view data) : data_(data), reader_(data) {
        const std::string_view screen = reader_.exactly<Unreadable>(13);
        width = u16le(screen, 6);
        height = u16le(screen, 8);
        const std::uint32_t flags = byte_at(screen, 10);
        if ((flags & 128) != 0) global_ = reader_.read(std::size_t{3} << ((flags & 7) + 1));
        shades_ = !is_needed(global_);
        if (!next_frame(frame_, true)) throw Unreadable("no frame");
        width = std::max(width, frame_.left + frame_.width);
        height = std::max(height, frame_.top + frame_.height);
        several = has_more();
    }

    Pixels decode() override {
        if (damaged_) throw Damaged("index out of range");
        if (frame_.width < 1 || frame_.height < 1) throw Damaged("tile cannot extend outside image");
        if (frame_.bits > most_bits) throw Damaged("codec configuration error when reading image file");
        Pixels pixels(height, width);
        const Palette palette = colours();
        for (std::int64_t i = 0; i < width * height; ++i) {
            palette.write(frame_.transparent.value_or(0), pixels.data.data() + i * 3);
        }
        Lzw stream(data_.substr(frame_.data), frame_.bits);
        std::int64_t x = 0;
        for (Lines line(frame_);;) {
            const auto indices = stream.next();
            if (indices.empty()) throw Damaged(truncated_file);
            for (const std::uint8_t index : indices) {
                palette.write(index, pixels.row(frame_.top + line.y()) + (frame_.left + x) * 3);
                if (++x < frame_.width) continue;
                x = 0;
                if (!line.advance()) return pixels;
            }
        }
    }

  private:
    // The order of the lines.
    class Lines {
      public:
        explicit Lines(const Frame& frame)
            : height_(frame.height), step_(frame.interlaced ? 8 : 1), pass_(frame.interlaced ? 1 : 0) {}

        std::int64_t y() const { return y_; }

        // Whether there is a further line.
        bool advance() {
            y_ += step_;
            while (y_ >= height_) {
                switch (pass_) {
                    case 1:
                        y_ = 4;
                        break;
                    case 2:
                        y_ = 2;
                        step_ = 4;
                        break;
                    case 3:
                        y_ = 1;
                        step_ = 2;
                        break;
                    default:
                        return false;
                }
                pass_ = (pass_ + 1) % 4;
            }
            return true;
        }

      private:
        std::int64_t height_;
        std::int64_t step_;
        int pass_;
        std::int64_t y_ = 0;
    };

    Palette colours() const {
        Palette palette;
        const std::string_view table = frame_.own_colours ? frame_.colours : global_;
        const bool shades = frame_.own_colours ? !is_needed(table) : shades_;
        for (std::size_t i = 0; i < 256; ++i) {
            for (std::size_t c = 0; c < 3; ++c) {
                if (shades) palette.colours[i][c] = static_cast<std::uint8_t>(i);
                if (!shades && i * 3 + c < table.size())
                    palette.colours[i][c] = static_cast<std::uint8_t>(table[i * 3 + c]);
            }
        }
        if (frame_.transparent) palette.colours[*frame_.transparent][3] = 0;
        return palette;
    }

    // A block with its length in front; empty at the end of the blocks.
    std::string_view block() {
        const std::string_view length = reader_.read(1);
        return length.empty() ? length : reader_.read(byte_at(length, 0));
    }

    // As Pillow, which reads blocks behind an extension without any.
    void read_extension(Frame& frame, bool first) {
        const std::string_view label = reader_.read(1);
        std::string_view part = block();
        if (label.empty()) throw Unreadable(truncated_read);
        const std::uint32_t kind = byte_at(label, 0);
        if (kind == 254) {
            while (!part.empty()) part = block();
            return;
        }
        if (kind == 249 && !part.empty()) {
            if (part.size() < 3) throw Unreadable(truncated_read);
            if ((byte_at(part, 0) & 1) != 0) {
                if (part.size() < 4) throw Unreadable(truncated_read);
                frame.transparent = byte_at(part, 3);
            }
        }
        if (kind == 255 && first && starts_with(part, "NETSCAPE2.0")) block();
        while (!block().empty()) {
        }
    }

    void read_image(Frame& frame) {
        const std::string_view head = reader_.exactly<Unreadable>(9);
        frame.left = u16le(head, 0);
        frame.top = u16le(head, 2);
        frame.width = u16le(head, 4);
        frame.height = u16le(head, 6);
        const std::uint32_t flags = byte_at(head, 8);
        frame.interlaced = (flags & 64) != 0;
        frame.own_colours = (flags & 128) != 0;
        if (frame.own_colours) frame.colours = reader_.read(std::size_t{3} << ((flags & 7) + 1));
        if (frame.own_colours) is_needed(frame.colours);
        frame.bits = static_cast<int>(byte_at(reader_.exactly<Unreadable>(1), 0));
        frame.data = reader_.position();
    }

    // Reads up to the data of the next frame; false if there is none.
    bool next_frame(Frame& frame, bool first) {
        for (;;) {
            const std::string_view kind = reader_.read(1);
            if (kind.empty() || kind == ";") return false;
            if (kind == "!") read_extension(frame, first);
            if (kind == ",") {
                read_image(frame);
                return true;
            }
        }
    }

    // Whether a frame follows the first one.
    bool has_more() {
        while (!block().empty()) {
        }
        Frame next;
        try {
            return next_frame(next, false);
        } catch (const Unreadable&) {
            damaged_ = true;
            return false;
        }
    }

    std::string_view data_;
    Reader reader_;
    std::string_view global_;
    bool shades_ = true;
    Frame frame_;
    bool damaged_ = false;  ///< behind the first frame
};

}  // namespace

std::unique_ptr<Decoder> open_gif(std::string_view data) {
    return std::make_unique<Gif>(data);
}

}  // namespace trtprune::images
