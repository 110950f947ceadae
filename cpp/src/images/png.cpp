#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>

#include "images/decoder.hpp"
#include "images/png_chunks.hpp"

// PNG by libpng, which is given the pixels alone: header, palette and metadata are read in png_chunks.
namespace trtprune::images {

namespace {

// The stream that libpng reads: a header of our own, then the file's chunks with pixels.  Checksums are zero.
class Feed {
  public:
    Feed(std::string_view data, std::size_t pixels, std::string header) : reader_(data), header_(std::move(header)) {
        part_ = header_;
        reader_.seek(pixels);
    }

    // False if the file ends before.
    bool read(std::uint8_t* bytes, std::size_t count) {
        while (count != 0) {
            if (part_.empty() && !next_part()) return false;
            const std::size_t size = std::min(count, part_.size());
            std::memcpy(bytes, part_.data(), size);
            part_.remove_prefix(size);
            bytes += size;
            count -= size;
        }
        return true;
    }

  private:
    static constexpr std::string_view zeros{"\0\0\0\0", 4};

    bool next_part() {
        if (!content_.empty()) {
            part_ = content_;
            content_ = {};
            checksum_ = true;
            return true;
        }
        if (checksum_) {
            part_ = zeros;
            checksum_ = false;
            return true;
        }
        for (;;) {
            const std::string_view head = reader_.read(8);
            if (head.size() < 8 || head.substr(4) != "IDAT") return false;
            content_ = reader_.read(u32be(head, 0));
            reader_.read(4);
            if (!content_.empty()) break;
        }
        const auto size = static_cast<std::uint32_t>(content_.size());
        for (std::size_t i = 0; i < 4; ++i) head_[i] = static_cast<char>(size >> (24 - 8 * i) & 0xFF);
        part_ = {head_, 8};
        return true;
    }

    Reader reader_;
    std::string header_;
    std::string_view part_;
    std::string_view content_;
    bool checksum_ = false;
    char head_[8] = {0, 0, 0, 0, 'I', 'D', 'A', 'T'};
};

// libpng's state.  Its errors leave by longjmp, so that functions below hold nothing that needs a destructor.
struct Session {
    Feed* feed = nullptr;
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::jmp_buf jump{};
    bool truncated = false;
    std::int64_t rows = 0;   ///< decoded so far, in all passes
    std::int64_t total = 0;  ///< of the image

    Session() = default;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() { png_destroy_read_struct(&png, &info, nullptr); }

    // Whether all pixels are there, and what is missing behind them is not missed.
    bool complete() const { return truncated && rows == total; }
};

extern "C" {
[[noreturn]] static void on_png_error(png_structp png, png_const_charp) {
    std::longjmp(static_cast<Session*>(png_get_error_ptr(png))->jump, 1);
}
static void on_png_warning(png_structp, png_const_charp) {}
static void on_png_row(png_structp png, png_row_infop, png_bytep) {
    ++static_cast<Session*>(png_get_user_transform_ptr(png))->rows;
}
static void on_png_read(png_structp png, png_bytep bytes, png_size_t count) {
    auto* const session = static_cast<Session*>(png_get_io_ptr(png));
    if (session->feed->read(bytes, count)) return;
    session->truncated = true;
    png_error(png, "truncated");
}
}

// Where rows go: one after the other, or all of them where the file is interlaced.
struct Rows {
    std::uint8_t* bytes;
    std::size_t row_bytes;
    std::int64_t height;
    bool interlaced;
};

bool start(Session& session, std::size_t row_bytes) {
    session.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &session, on_png_error, on_png_warning);
    if (session.png == nullptr) return false;
    if (setjmp(session.jump) != 0) return false;
    session.info = png_create_info_struct(session.png);
    if (session.info == nullptr) return false;
    png_set_read_fn(session.png, &session, on_png_read);
    png_set_read_user_transform_fn(session.png, on_png_row);
    png_set_user_transform_info(session.png, &session, 0, 0);
    png_set_crc_action(session.png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    png_set_user_limits(session.png, 0x7FFFFFFF, 0x7FFFFFFF);
    png_read_info(session.png, session.info);
    png_set_interlace_handling(session.png);
    png_read_update_info(session.png, session.info);
    return png_get_rowbytes(session.png, session.info) == row_bytes;
}

bool read_row(Session& session, std::uint8_t* row) {
    // libpng looks for the end of the data once the last row is written.
    if (setjmp(session.jump) != 0) return session.complete();
    png_read_row(session.png, row, nullptr);
    return true;
}

bool read_passes(Session& session, const Rows& rows) {
    if (setjmp(session.jump) != 0) return session.complete();
    for (int pass = 0; pass < 7; ++pass) {
        for (std::int64_t y = 0; y < rows.height; ++y) {
            png_read_row(session.png, rows.bytes + static_cast<std::size_t>(y) * rows.row_bytes, nullptr);
        }
    }
    return true;
}

// Rows of all passes of an image.
std::int64_t rows_of(std::int64_t width, std::int64_t height, bool interlaced) {
    if (!interlaced) return height;
    // First row, rows to the next one, first column.
    constexpr std::int64_t passes[7][3] = {{0, 8, 0}, {0, 8, 4}, {4, 8, 0}, {0, 4, 2}, {2, 4, 0}, {0, 2, 1}, {1, 2, 0}};
    std::int64_t rows = 0;
    for (const auto& [top, down, left] : passes) {
        if (width > left && height > top) rows += (height - top + down - 1) / down;
    }
    return rows;
}

std::string number(std::int64_t value) {
    std::string text;
    for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(value >> shift & 0xFF);
    return text;
}

class Png : public Decoder {
  public:
    explicit Png(std::string_view data) : data_(data), chunks_(data) {
        width = chunks_.width;
        height = chunks_.height;
        several = chunks_.several;
    }

    Pixels decode() override {
        using Mode = PngChunks::Mode;
        if (chunks_.pixels == 0) throw Damaged(no_pixels);
        const PngChunks::Region part = chunks_.region.value_or(PngChunks::Region{0, 0, width, height});
        // A second header may have made the image smaller.
        const bool inside = part.left + part.width <= width && part.top + part.height <= height;
        if (part.width < 1 || part.height < 1 || !inside) throw Damaged("tile cannot extend outside image");
        const Palette palette = colours();
        Pixels pixels(height, width);
        if (part.width != width || part.height != height) fill_rest(pixels, palette);
        const int samples = chunks_.colour_type == 2   ? 3
                            : chunks_.colour_type == 4 ? 2
                            : chunks_.colour_type == 6 ? 4
                                                       : 1;
        const auto bits = static_cast<std::size_t>(samples * chunks_.depth);
        const std::size_t row_bytes = (static_cast<std::size_t>(part.width) * bits + 7) / 8;
        Feed feed(data_, chunks_.pixels, header_of(part));
        const auto session = std::make_unique<Session>();
        session->feed = &feed;
        session->total = rows_of(part.width, part.height, chunks_.interlaced);
        if (!start(*session, row_bytes)) fail(*session);
        const auto rows = static_cast<std::size_t>(chunks_.interlaced ? part.height : 1);
        std::vector<std::uint8_t> bytes(rows * row_bytes);
        if (chunks_.interlaced && !read_passes(*session, {bytes.data(), row_bytes, part.height, true})) fail(*session);
        for (std::int64_t y = 0; y < part.height; ++y) {
            const std::size_t place = chunks_.interlaced ? static_cast<std::size_t>(y) * row_bytes : 0;
            if (!chunks_.interlaced && !read_row(*session, bytes.data())) fail(*session);
            convert(bytes.data() + place, part.width, palette, pixels.row(part.top + y) + part.left * 3);
        }
        if (chunks_.mode == Mode::indexed && chunks_.palette.size() > 768) throw Damaged("invalid palette size");
        if (chunks_.alphas && chunks_.alphas->size() > 256) throw Damaged("index is outside palette");
        chunks_.read_rest();
        return pixels;
    }

    int orientation() override { return chunks_.orientation(); }

  private:
    [[noreturn]] static void fail(const Session& session) {
        throw Damaged(session.truncated ? truncated_file : broken_stream);
    }

    // Signature, header and a palette that is only there to be there.
    std::string header_of(const PngChunks::Region& part) const {
        std::string header = "\x89PNG\r\n\x1a\n" + number(13) + "IHDR" + number(part.width) + number(part.height);
        header += static_cast<char>(chunks_.depth);
        header += static_cast<char>(chunks_.colour_type);
        header += std::string(2, '\0');
        header += static_cast<char>(chunks_.interlaced ? 1 : 0);
        header += number(0);
        if (chunks_.colour_type != 3) return header;
        const std::int64_t bytes = std::int64_t{3} << chunks_.depth;
        return header + number(bytes) + "PLTE" + std::string(static_cast<std::size_t>(bytes), '\0') + number(0);
    }

    // The colours of indices, or of shades.
    Palette colours() const {
        Palette palette;
        const bool indexed = chunks_.mode == PngChunks::Mode::indexed;
        for (std::size_t i = 0; i < 256; ++i) {
            auto& colour = palette.colours[i];
            for (std::size_t c = 0; c < 3; ++c) {
                if (!indexed) colour[c] = static_cast<std::uint8_t>(i);
                const std::size_t place = i * 3 + c;
                if (indexed && place < chunks_.palette.size())
                    colour[c] = static_cast<std::uint8_t>(chunks_.palette[place]);
            }
            if (chunks_.alphas && i < chunks_.alphas->size())
                colour[3] = static_cast<std::uint8_t>((*chunks_.alphas)[i]);
            if (chunks_.transparent == i) colour[3] = 0;
        }
        return palette;
    }

    // What the file's pixels leave out is 0 in each channel.
    void fill_rest(Pixels& pixels, const Palette& palette) const {
        std::uint8_t pixel[3] = {0, 0, 0};
        const bool alpha =
            chunks_.mode == PngChunks::Mode::shade_alpha || chunks_.mode == PngChunks::Mode::colour_alpha;
        if (alpha || (chunks_.transparent_rgb && *chunks_.transparent_rgb == 0)) std::memset(pixel, 255, 3);
        const bool table = chunks_.mode == PngChunks::Mode::indexed || chunks_.mode == PngChunks::Mode::shade ||
                           chunks_.mode == PngChunks::Mode::bilevel;
        if (table) palette.write(0, pixel);
        for (std::size_t i = 0; i < pixels.data.size(); i += 3) std::memcpy(pixels.data.data() + i, pixel, 3);
    }

    void convert(const std::uint8_t* row, std::int64_t count, const Palette& palette, std::uint8_t* pixel) const {
        using Mode = PngChunks::Mode;
        const auto depth = static_cast<std::size_t>(chunks_.depth);
        const std::size_t step = depth / 8;  // bytes of a sample; the first one counts
        for (std::size_t x = 0; x < static_cast<std::size_t>(count); ++x, pixel += 3) {
            switch (chunks_.mode) {
                case Mode::shade16: {
                    // Pillow's own conversion clips at 255, which turns nearly every 16-bit image white.
                    const std::uint32_t value = static_cast<std::uint32_t>(row[2 * x]) << 8 | row[2 * x + 1];
                    std::memset(pixel, static_cast<int>((value + 128) / 257), 3);
                    break;
                }
                case Mode::colour:
                    write_colour(row + 3 * step * x, step, pixel);
                    break;
                case Mode::shade_alpha: {
                    const std::uint8_t* sample = row + 2 * step * x;
                    std::memset(pixel, on_white(sample[0], sample[step]), 3);
                    break;
                }
                case Mode::colour_alpha: {
                    const std::uint8_t* sample = row + 4 * step * x;
                    for (std::size_t c = 0; c < 3; ++c) pixel[c] = on_white(sample[c * step], sample[3 * step]);
                    break;
                }
                default: {
                    const std::size_t shift = 8 - depth - x * depth % 8;
                    const std::uint32_t most = (1U << depth) - 1;
                    const std::uint32_t value = (static_cast<std::uint32_t>(row[x * depth / 8]) >> shift) & most;
                    palette.write(chunks_.mode == Mode::indexed ? value : value * 255 / most, pixel);
                }
            }
        }
    }

    void write_colour(const std::uint8_t* sample, std::size_t step, std::uint8_t* pixel) const {
        for (std::size_t c = 0; c < 3; ++c) pixel[c] = sample[c * step];
        if (!chunks_.transparent_rgb) return;
        const std::uint32_t colour = static_cast<std::uint32_t>(pixel[0]) << 16 |
                                     static_cast<std::uint32_t>(pixel[1]) << 8 | static_cast<std::uint32_t>(pixel[2]);
        if (colour == *chunks_.transparent_rgb) std::memset(pixel, 255, 3);
    }

    std::string_view data_;
    PngChunks chunks_;
};

}  // namespace

std::unique_ptr<Decoder> open_png(std::string_view data) {
    return std::make_unique<Png>(data);
}

}  // namespace trtprune::images
