// jpeglib.h needs size_t and FILE.
#include <cstddef>
#include <cstdio>
//
#include <jpeglib.h>

#include <algorithm>
#include <csetjmp>
#include <optional>

#include "images/decoder.hpp"
#include "images/exif.hpp"

// JPEG by libjpeg-turbo.
namespace trtprune::images {

namespace {

// Scans of a progressive file; each may take as long as the whole image, in a few bytes.
constexpr int max_scans = 500;

enum class End { complete, truncated, broken };

// libjpeg's state.  Its errors leave by longjmp, so that functions below hold nothing that needs a destructor.
struct Session {
    jpeg_decompress_struct info{};
    jpeg_error_mgr errors{};
    jpeg_source_mgr source{};
    jpeg_progress_mgr progress{};
    std::jmp_buf jump{};
    std::size_t skipped = 0;
    bool created = false;

    Session() = default;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() {
        if (created) jpeg_destroy_decompress(&info);
    }
};

Session& session_of(j_common_ptr info) {
    return *static_cast<Session*>(info->client_data);
}

extern "C" {
[[noreturn]] static void on_error(j_common_ptr info) {
    std::longjmp(session_of(info).jump, 1);
}
static void on_message(j_common_ptr) {}
static void on_source(j_decompress_ptr) {}
// All bytes are there from the beginning; where they end, decoding is suspended.
static boolean on_empty(j_decompress_ptr) {
    return FALSE;
}
static void on_skip(j_decompress_ptr info, long count) {
    const std::size_t bytes = std::min(static_cast<std::size_t>(count < 0 ? 0 : count), info->src->bytes_in_buffer);
    info->src->next_input_byte += bytes;
    info->src->bytes_in_buffer -= bytes;
}
static void on_progress(j_common_ptr info) {
    if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > max_scans) on_error(info);
}
}

// What the rows of a session become.
struct Target {
    std::uint8_t* pixels;
    std::int64_t width;
    std::int64_t height;
    J_COLOR_SPACE space;
    std::uint8_t* row;  ///< room for a row of four bytes a pixel
};

bool start(Session& session, std::string_view data, const Target& target) {
    session.info.err = jpeg_std_error(&session.errors);
    session.errors.error_exit = on_error;
    session.errors.output_message = on_message;
    session.info.client_data = &session;
    jpeg_create_decompress(&session.info);
    session.created = true;
    session.progress.progress_monitor = on_progress;
    session.info.progress = &session.progress;
    session.info.src = &session.source;
    session.source.next_input_byte = reinterpret_cast<const JOCTET*>(data.data());
    session.source.bytes_in_buffer = data.size();
    session.source.init_source = on_source;
    session.source.fill_input_buffer = on_empty;
    session.source.skip_input_data = on_skip;
    session.source.resync_to_restart = jpeg_resync_to_restart;
    session.source.term_source = on_source;
    int header = JPEG_HEADER_TABLES_ONLY;
    while (header == JPEG_HEADER_TABLES_ONLY) header = jpeg_read_header(&session.info, FALSE);
    if (header == JPEG_SUSPENDED) return false;
    session.info.out_color_space = target.space;
    return jpeg_start_decompress(&session.info) != FALSE;
}

std::uint8_t product(std::uint32_t a, std::uint32_t b) {
    const std::uint32_t sum = a * b + 128;
    return static_cast<std::uint8_t>(((sum >> 8) + sum) >> 8);
}

void convert(const Target& target, std::uint8_t* pixel) {
    const std::uint8_t* sample = target.row;
    for (std::int64_t x = 0; x < target.width; ++x, pixel += 3) {
        if (target.space == JCS_GRAYSCALE) {
            pixel[0] = pixel[1] = pixel[2] = *sample++;
            continue;
        }
        // Inks are written inverted, as Adobe's programs do, whatever the file says.
        for (int i = 0; i < 3; ++i) {
            pixel[i] = static_cast<std::uint8_t>(sample[3] - product(255U - sample[i], sample[3]));
        }
        sample += 4;
    }
}

End run(Session& session, std::string_view data, const Target& target) {
    if (setjmp(session.jump) != 0) return End::broken;
    if (!start(session, data, target)) return End::truncated;
    const bool same = session.info.output_width == target.width && session.info.output_height == target.height;
    const int samples = target.space == JCS_RGB ? 3 : target.space == JCS_GRAYSCALE ? 1 : 4;
    if (!same || session.info.output_components != samples) return End::broken;
    while (session.info.output_scanline < session.info.output_height) {
        std::uint8_t* pixel =
            target.pixels + static_cast<std::int64_t>(session.info.output_scanline) * target.width * 3;
        JSAMPROW row = target.space == JCS_RGB ? pixel : target.row;
        if (jpeg_read_scanlines(&session.info, &row, 1) != 1) return End::truncated;
        if (target.space != JCS_RGB) convert(target, pixel);
    }
    // What is missing behind the last row is not missed.
    jpeg_finish_decompress(&session.info);
    return End::complete;
}

class Jpeg : public Decoder {
  public:
    explicit Jpeg(std::string_view data) : data_(data), reader_(data) {
        reader_.seek(3);
        read_markers();
        if (layers_ == 0 || width < 1 || height < 1) throw Unreadable("no frame");
    }

    Pixels decode() override {
        if (!has_scan_) throw Damaged(no_pixels);
        Pixels pixels(height, width);
        std::vector<std::uint8_t> row(static_cast<std::size_t>(width * 4));
        const J_COLOR_SPACE space = layers_ == 1 ? JCS_GRAYSCALE : layers_ == 3 ? JCS_RGB : JCS_CMYK;
        const Target target{pixels.data.data(), width, height, space, row.data()};
        const auto session = std::make_unique<Session>();
        switch (run(*session, data_, target)) {
            case End::truncated:
                throw Damaged(truncated_file);
            case End::broken:
                throw Damaged(broken_stream);
            default:
                return pixels;
        }
    }

    int orientation() override {
        try {
            return orientation_of(exif_, xmp_);
        } catch (const Damaged&) {
            // Without a resolution of its own Pillow looks for it in the EXIF data, and leaves those it cannot read.
            if (has_resolution_) throw;
            return 1;
        }
    }

  private:
    // The segments up to the first scan.
    void read_markers() {
        std::string_view byte = "\xff";
        while (!byte.empty()) {
            if (byte[0] != '\xff') {
                byte = reader_.read(1);
                continue;
            }
            const std::string_view code = reader_.read(1);
            if (code.empty()) return;
            const std::uint32_t marker = byte_at(code, 0);
            if (marker == 0xFF) {  // padding
                byte = code;
                continue;
            }
            if (marker != 0 && marker < 0xC0) throw Unreadable("no marker found");
            if (marker != 0) read_segment(marker);
            if (marker == 0xDA) {
                has_scan_ = true;
                return;
            }
            byte = reader_.read(1);
        }
    }

    void read_segment(std::uint32_t marker) {
        const bool plain = marker == 0xC8 || (marker >= 0xD0 && marker <= 0xD9) || (marker >= 0xF0 && marker <= 0xFD);
        if (plain) return;
        const std::uint32_t length = u16be(reader_.exactly<Unreadable>(2), 0);
        const std::string_view part = reader_.exactly<Unreadable>(length < 2 ? 0 : length - 2);
        const bool frame = marker == 0xDE || (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xCC);
        if (frame) read_frame(part);
        if (marker == 0xDB) check_tables(part);
        if (marker == 0xE0 && starts_with(part, "JFIF")) read_jfif(part);
        if (marker == 0xE1) read_metadata(part);
        if (marker == 0xEE && starts_with(part, "Adobe") && part.size() < 7) throw Unreadable(truncated_read);
    }

    void read_frame(std::string_view part) {
        if (part.size() < 6 || part.size() % 3 != 0) throw Unreadable(truncated_read);
        height = u16be(part, 1);
        width = u16be(part, 3);
        layers_ = byte_at(part, 5);
        if (byte_at(part, 0) != 8) throw Unreadable("layers are not of 8 bits");
        if (layers_ != 1 && layers_ != 3 && layers_ != 4) throw Unreadable("no mode of this number of layers");
    }

    static void check_tables(std::string_view part) {
        while (!part.empty()) {
            const std::size_t length = 1 + std::size_t{64} * (byte_at(part, 0) < 16 ? 1 : 2);
            if (part.size() < length) throw Unreadable("bad quantization table marker");
            part.remove_prefix(length);
        }
    }

    void read_jfif(std::string_view part) {
        if (part.size() < 7) throw Unreadable(truncated_read);
        const bool has_density = part.size() >= 12;
        has_resolution_ = has_resolution_ || (has_density && (part[7] == 1 || part[7] == 2));
    }

    void read_metadata(std::string_view part) {
        using namespace std::string_view_literals;
        constexpr std::string_view xmp = "http://ns.adobe.com/xap/1.0/\0"sv;
        if (starts_with(part, "Exif\0\0"sv)) {
            // Long data are cut into several segments.
            exif_ = exif_.value_or("") + std::string(part.substr(exif_ ? 6 : 0));
        } else if (starts_with(part, xmp)) {
            xmp_ = part.substr(xmp.size());
        }
    }

    std::string_view data_;
    Reader reader_;
    std::uint32_t layers_ = 0;
    bool has_scan_ = false;
    bool has_resolution_ = false;
    std::optional<std::string> exif_;
    std::string_view xmp_;
};

}  // namespace

std::unique_ptr<Decoder> open_jpeg(std::string_view data) {
    return std::make_unique<Jpeg>(data);
}

}  // namespace trtprune::images
