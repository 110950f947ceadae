#include <algorithm>
#include <array>
#include <cstring>

#include "images/decoder.hpp"

// Windows and OS/2 bitmaps.
namespace trtprune::images {

namespace {

enum class Compression : std::uint32_t { raw = 0, rle8 = 1, rle4 = 2, bitfields = 3 };

// How pixels lie in a row.
struct Layout {
    int bits = 0;
    bool indexed = false;        ///< indices of the palette
    bool bilevel = false;        ///< bits, black and white
    std::array<int, 4> bytes{};  ///< of 24 and 32 bits: the places of red, green, blue and alpha, which may be -1
    bool six_greens = false;     ///< of 16 bits: green has six of them
};

using Masks = std::array<std::uint32_t, 4>;

Layout masked_layout(std::uint32_t bits, const Masks& masks) {
    struct Known {
        std::uint32_t bits;
        Masks masks;
        Layout layout;
    };
    static const std::array<Known, 11> known{{
        {32, {0xFF0000, 0xFF00, 0xFF, 0}, {32, false, false, {2, 1, 0, -1}, false}},
        {32, {0xFF000000, 0xFF0000, 0xFF00, 0}, {32, false, false, {3, 2, 1, -1}, false}},
        {32, {0xFF000000, 0xFF00, 0xFF, 0}, {32, false, false, {3, 1, 0, -1}, false}},
        {32, {0xFF000000, 0xFF0000, 0xFF00, 0xFF}, {32, false, false, {3, 2, 1, 0}, false}},
        {32, {0xFF, 0xFF00, 0xFF0000, 0xFF000000}, {32, false, false, {0, 1, 2, 3}, false}},
        {32, {0xFF0000, 0xFF00, 0xFF, 0xFF000000}, {32, false, false, {2, 1, 0, 3}, false}},
        {32, {0xFF000000, 0xFF00, 0xFF, 0xFF0000}, {32, false, false, {3, 1, 0, 2}, false}},
        {32, {0, 0, 0, 0}, {32, false, false, {2, 1, 0, 3}, false}},
        {24, {0xFF0000, 0xFF00, 0xFF, 0}, {24, false, false, {2, 1, 0, -1}, false}},
        {16, {0xF800, 0x7E0, 0x1F, 0}, {16, false, false, {}, true}},
        {16, {0x7C00, 0x3E0, 0x1F, 0}, {16, false, false, {}, false}},
    }};
    for (const Known& entry : known) {
        const bool colours = std::equal(masks.begin(), masks.begin() + 3, entry.masks.begin());
        if (entry.bits == bits && colours && (bits != 32 || masks[3] == entry.masks[3])) return entry.layout;
    }
    throw Unreadable("Unsupported BMP bitfields layout");
}

class Bmp : public Decoder {
  public:
    explicit Bmp(std::string_view data) : data_(data), reader_(data) {
        const std::string_view head = reader_.exactly<Unreadable>(14);
        std::size_t offset = u32le(head, 10);
        const std::uint32_t header_size = u32le(reader_.exactly<Unreadable>(4), 0);
        if (header_size < 12) throw Unreadable("Unsupported BMP header type");
        const std::string_view header = reader_.exactly<Unreadable>(header_size - 4);
        read_header(header_size, header);
        if (colours_ == 0 && bits_ < 32) colours_ = 1U << bits_;
        if (offset == 14 + header_size && bits_ <= 8) offset += std::size_t{entry_size_} * colours_;
        choose_layout();
        if (layout_.indexed) read_palette();
        start_ = offset != 0 ? offset : reader_.position();
    }

    Pixels decode() override {
        if (layout_.indexed && too_many_colours_) throw Damaged("invalid palette size");
        Pixels pixels(height, width);
        if (compression_ == Compression::rle8 || compression_ == Compression::rle4) {
            decode_runs(pixels);
        } else {
            decode_rows(pixels);
        }
        return pixels;
    }

  private:
    void read_header(std::uint32_t size, std::string_view header) {
        if (size == 12) {
            width = u16le(header, 0);
            height = u16le(header, 2);
            bits_ = u16le(header, 6);
            entry_size_ = 3;
            return;
        }
        constexpr std::array<std::uint32_t, 6> sizes{40, 52, 56, 64, 108, 124};
        if (std::find(sizes.begin(), sizes.end(), size) == sizes.end()) throw Unreadable("Unsupported BMP header type");
        width = u32le(header, 0);
        height = u32le(header, 4);
        if (byte_at(header, 7) == 0xFF) {  // negative: rows from the top
            height = (std::int64_t{1} << 32) - height;
            downwards_ = true;
        }
        bits_ = u16le(header, 10);
        compression_ = static_cast<Compression>(u32le(header, 12));
        colours_ = u32le(header, 28);
        if (compression_ != Compression::bitfields) return;
        for (std::size_t i = 0; i < 4; ++i) {
            if (header.size() >= 48) {
                masks_[i] = i < 3 || header.size() >= 52 ? u32le(header, 36 + 4 * i) : 0;
            } else if (i < 3) {
                masks_[i] = u32le(reader_.exactly<Unreadable>(4), 0);
            }
        }
    }

    void choose_layout() {
        layout_.bits = static_cast<int>(bits_);
        switch (bits_) {
            case 1:
            case 4:
            case 8:
                layout_.indexed = true;
                break;
            case 16:
                break;
            case 24:
            case 32:
                layout_.bytes = {2, 1, 0, -1};
                break;
            default:
                throw Unreadable("Unsupported BMP pixel depth");
        }
        switch (compression_) {
            case Compression::bitfields:
                layout_ = masked_layout(bits_, masks_);
                break;
            case Compression::raw:
            case Compression::rle8:
            case Compression::rle4:
                break;
            default:
                throw Unreadable("Unsupported BMP compression");
        }
    }

    // A palette of shades alone is none; Pillow then takes the pixels for shades, or for bits.
    void read_palette() {
        if (colours_ == 0 || colours_ > 65536) throw Unreadable("Unsupported BMP palette size");
        const std::string_view table = reader_.read(std::size_t{entry_size_} * colours_);
        bool shades = true;
        for (std::size_t i = 0; i < colours_; ++i) {
            const std::string_view colour = table.substr(std::min(i * entry_size_, table.size()), 3);
            const auto shade = static_cast<char>(colours_ == 2 ? i * 255 : i);
            shades = shades && colour == std::string(3, shade);
            for (std::size_t c = 0; i < 256 && c < colour.size(); ++c) {
                palette_.colours[i][2 - c] = static_cast<std::uint8_t>(colour[c]);
            }
        }
        if (!shades) {
            too_many_colours_ = table.size() / entry_size_ > 256;
            return;
        }
        for (std::size_t i = 0; i < 256; ++i) std::memset(palette_.colours[i], static_cast<int>(i), 3);
        layout_.bits = colours_ <= 2 ? 1 : 8;
        layout_.bilevel = colours_ <= 2;
    }

    std::int64_t place_of(std::int64_t line) const { return downwards_ ? line : height - 1 - line; }

    void decode_rows(Pixels& pixels) {
        const std::int64_t stride = (width * bits_ + 31) / 32 * 4;
        const std::int64_t bytes = (width * layout_.bits + 7) / 8;
        // Where Pillow takes the pixels for shades, a row may hold fewer.
        if (bytes > stride) throw Damaged("codec configuration error when reading image file");
        reader_.seek(start_);
        for (std::int64_t line = 0; line < height; ++line) {
            if (line != 0) reader_.read(static_cast<std::size_t>(stride - bytes));
            const std::string_view row = reader_.read(static_cast<std::size_t>(bytes));
            if (row.size() < static_cast<std::size_t>(bytes)) throw Damaged(truncated_file);
            std::uint8_t* pixel = pixels.row(place_of(line));
            for (std::int64_t x = 0; x < width; ++x, pixel += 3) write(row, static_cast<std::size_t>(x), pixel);
        }
    }

    void write(std::string_view row, std::size_t x, std::uint8_t* pixel) const {
        if (layout_.indexed) {
            const auto bits = static_cast<std::size_t>(layout_.bits);
            const std::size_t shift = 8 - bits - x * bits % 8;
            const std::uint32_t index = (byte_at(row, x * bits / 8) >> shift) & ((1U << bits) - 1);
            palette_.write(layout_.bilevel ? index * 255 : index, pixel);
        } else if (layout_.bits == 16) {
            const std::uint32_t value = u16le(row, x * 2);
            const std::uint32_t red = layout_.six_greens ? value >> 11 : value >> 10;
            const std::uint32_t most_green = layout_.six_greens ? 63 : 31;
            pixel[0] = static_cast<std::uint8_t>((red & 31) * 255 / 31);
            pixel[1] = static_cast<std::uint8_t>(((value >> 5) & most_green) * 255 / most_green);
            pixel[2] = static_cast<std::uint8_t>((value & 31) * 255 / 31);
        } else {
            const std::size_t place = x * static_cast<std::size_t>(layout_.bits / 8);
            const auto channel = [&](int i) { return byte_at(row, place + static_cast<std::size_t>(i)); };
            const std::uint32_t alpha = layout_.bytes[3] < 0 ? 255 : channel(layout_.bytes[3]);
            for (std::size_t i = 0; i < 3; ++i) pixel[i] = on_white(channel(layout_.bytes[i]), alpha);
        }
    }

    // Runs become a plane of indices first, since a run may go on in the next row.
    void decode_runs(Pixels& pixels) {
        if (!layout_.indexed) throw Damaged("cannot decode image data");
        const auto count = static_cast<std::size_t>(width * height);
        std::vector<std::uint8_t> indices;
        read_runs(indices, count);
        if (indices.size() < count) throw Damaged("not enough image data");
        for (std::int64_t line = 0; line < height; ++line) {
            std::uint8_t* pixel = pixels.row(place_of(line));
            for (std::int64_t x = 0; x < width; ++x, pixel += 3) {
                const std::uint32_t index = indices[static_cast<std::size_t>(line * width + x)];
                palette_.write(layout_.bilevel ? (index != 0 ? 255 : 0) : index, pixel);
            }
        }
    }

    void read_runs(std::vector<std::uint8_t>& indices, std::size_t count) {
        const auto row = static_cast<std::size_t>(width);
        std::size_t x = 0;
        reader_.seek(start_);
        while (indices.size() < count && reader_.left() >= 2) {
            const std::string_view pair = reader_.read(2);
            const std::size_t length = byte_at(pair, 0);
            const std::uint32_t value = byte_at(pair, 1);
            if (length != 0) {
                const std::size_t fits = x + length > row ? (row > x ? row - x : 0) : length;
                append_run(indices, fits, value);
                x += fits;
            } else if (value == 0) {
                indices.resize((indices.size() + row - 1) / row * row);
                x = 0;
            } else if (value == 1) {
                return;
            } else if (value == 2) {
                if (reader_.left() < 2) return;
                const std::string_view move = reader_.read(2);
                const std::size_t skipped = byte_at(move, 0) + byte_at(move, 1) * row;
                indices.resize(indices.size() + std::min(count - indices.size(), skipped));
                x = indices.size() % row;
            } else {
                if (!append_plain(indices, std::min<std::size_t>(count - indices.size(), value)) ||
                    indices.size() == count) {
                    return;
                }
                x += value;
                if (reader_.position() % 2 != 0) reader_.read(1);
            }
        }
    }

    void append_run(std::vector<std::uint8_t>& indices, std::size_t length, std::uint32_t value) const {
        const bool nibbles = compression_ == Compression::rle4;
        for (std::size_t i = 0; i < length; ++i) {
            const std::uint32_t index = !nibbles ? value : i % 2 == 0 ? value >> 4 : value & 15;
            indices.push_back(static_cast<std::uint8_t>(index));
        }
    }

    // Indices as they are; whether all of them were there.
    bool append_plain(std::vector<std::uint8_t>& indices, std::size_t length) {
        const bool nibbles = compression_ == Compression::rle4;
        const std::size_t bytes = nibbles ? (length + 1) / 2 : length;
        const std::string_view part = reader_.read(bytes);
        for (std::size_t i = 0; i < length && (nibbles ? i / 2 : i) < part.size(); ++i) {
            const std::uint32_t value = byte_at(part, nibbles ? i / 2 : i);
            const std::uint32_t index = !nibbles ? value : i % 2 == 0 ? value >> 4 : value & 15;
            indices.push_back(static_cast<std::uint8_t>(index));
        }
        return part.size() == bytes;
    }

    std::string_view data_;
    Reader reader_;
    std::uint32_t bits_ = 0;
    std::uint32_t colours_ = 0;
    std::uint32_t entry_size_ = 4;
    Compression compression_ = Compression::raw;
    Masks masks_{};
    bool downwards_ = false;
    bool too_many_colours_ = false;
    Layout layout_;
    Palette palette_;
    std::size_t start_ = 0;
};

}  // namespace

std::unique_ptr<Decoder> open_bmp(std::string_view data) {
    return std::make_unique<Bmp>(data);
}

}  // namespace trtprune::images
