#include "images/pictures.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <new>
#include <string_view>
#include <system_error>
#include <trtprune/error.hpp>
#include <vector>

#include "files/printable.hpp"
#include "images/decoder.hpp"
#include "images/limits.hpp"
#include "images/video.hpp"

namespace trtprune::images {

namespace {

// The largest image file in bytes: more than 64 Mi uncompressed pixels of three bytes.
constexpr std::int64_t max_bytes = std::int64_t{256} << 20;
constexpr std::size_t head_bytes = 4096;  // that tell a video's container
constexpr const char* formats = "PNG, JPEG, WEBP, BMP, GIF";

std::string text(std::int64_t value) {
    return std::to_string(value);
}

std::unique_ptr<Decoder> opened(std::string_view data) {
    using namespace std::string_view_literals;
    if (starts_with(data, "\x89PNG\r\n\x1a\n"sv)) return open_png(data);
    if (starts_with(data, "\xff\xd8\xff"sv)) return open_jpeg(data);
    const std::string_view kind = data.size() >= 16 ? data.substr(12, 4) : std::string_view();
    if (starts_with(data, "RIFF"sv) && data.size() >= 16 && data.substr(8, 4) == "WEBP" &&
        (kind == "VP8 " || kind == "VP8X" || kind == "VP8L")) {
        return open_webp(data);
    }
    if (starts_with(data, "BM"sv)) return open_bmp(data);
    if (starts_with(data, "GIF87a"sv) || starts_with(data, "GIF89a"sv)) return open_gif(data);
    throw Unreadable("unknown format");
}

std::unique_ptr<Decoder> opened(std::string_view data, const std::string& name) {
    try {
        std::unique_ptr<Decoder> decoder = opened(data);
        if (decoder->width < 1 || decoder->height < 1) throw Unreadable("an empty image");
        return decoder;
    } catch (const Unreadable&) {
        const std::string kind = video_kind(data.substr(0, head_bytes));
        if (!kind.empty()) {
            throw InputError(name + ": a video (" + kind + "); videos are not supported",
                             "save a frame of it as PNG or JPEG");
        }
        throw InputError(name + ": not a picture that can be read", std::string("one of ") + formats);
    }
}

// Raises InputError for an image that is too large.
void check_pixels(const Decoder& decoder, std::int64_t limit, const std::string& name) {
    const std::int64_t most = decoder.width > pillow_pixels ? 0 : pillow_pixels / decoder.width;
    if (decoder.height > most) throw TooLarge("the image");
    if (decoder.width * decoder.height <= limit) return;
    throw InputError(name + ": " + text(decoder.width) + " × " + text(decoder.height) + " is above the limit of " +
                         text(limit) + " pixels",
                     std::string("scale it down, or raise the limit with max_pixels or ") + max_pixels_variable);
}

// The place in the file of an upright image's pixels: its origin, and the steps to the right and down.
struct Turn {
    std::int64_t origin;
    std::int64_t right;
    std::int64_t down;
};

Turn turn_of(std::int64_t height, std::int64_t width, int orientation) {
    const std::int64_t last_column = width - 1;
    const std::int64_t last_row = (height - 1) * width;
    switch (orientation) {
        case 2:
            return {last_column, -1, width};
        case 3:
            return {last_row + last_column, -1, -width};
        case 4:
            return {last_row, 1, -width};
        case 5:
            return {0, width, 1};
        case 6:
            return {last_row, -width, 1};
        case 7:
            return {last_row + last_column, -width, -1};
        default:
            return {last_column, width, -1};
    }
}

Pixels upright(Pixels&& image, int orientation) {
    if (orientation == 1 || orientation < 1 || orientation > 8) return std::move(image);
    const Turn turn = turn_of(image.height, image.width, orientation);
    const bool transposed = orientation >= 5;
    Pixels result(transposed ? image.width : image.height, transposed ? image.height : image.width);
    std::uint8_t* pixel = result.data.data();
    for (std::int64_t y = 0; y < result.height; ++y) {
        const std::uint8_t* source = image.data.data() + (turn.origin + y * turn.down) * 3;
        for (std::int64_t x = 0; x < result.width; ++x, pixel += 3, source += turn.right * 3) {
            for (int c = 0; c < 3; ++c) pixel[c] = source[c];
        }
    }
    return result;
}

Pixels decoded(std::string_view data, const std::string& name, const ImageOptions& options) {
    const std::int64_t limit = max_pixels_from(options.max_pixels);
    try {
        const std::unique_ptr<Decoder> decoder = opened(data, name);
        check_pixels(*decoder, limit, name);
        if (decoder->several && options.strict) {
            throw InputError(name + ": has several frames", "save the frame you mean, or leave strict_images out");
        }
        Pixels pixels = decoder->decode();
        return upright(std::move(pixels), decoder->orientation());
    } catch (const std::bad_alloc&) {
        throw InputError(name + ": does not fit in memory", "scale it down");
    } catch (const TooLarge&) {
        throw InputError(name + ": is above the limit of pixels", "scale it down");
    } catch (const Damaged& error) {
        throw InputError(name + ": damaged or cut off: " + files::one_line(error.what(), 200),
                         "fetch or export it again");
    }
}

class Descriptor {
  public:
    explicit Descriptor(int number) : number_(number) {}
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number() const { return number_; }

  private:
    int number_;
};

[[noreturn]] void raise_unreadable(const std::string& name, const std::string& reason) {
    throw InputError(name + ": cannot be read: " + reason,
                     "a regular file; of the command line, image - is standard input");
}

std::string reason_of(int error) {
    return std::generic_category().message(error);
}

// The bytes of a regular file of bounded size.
std::vector<char> content_of(const std::string& path, const std::string& name) {
    if (path.find('\0') != std::string::npos) raise_unreadable(name, "embedded null byte");
    // Without O_NONBLOCK opening a FIFO would wait for a writer.
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (file.number() < 0 && errno == ENOENT) {
        throw InputError(name + ": no such file", "paths are relative to the current folder");
    }
    if (file.number() < 0) raise_unreadable(name, reason_of(errno));
    struct stat facts {};
    if (::fstat(file.number(), &facts) != 0) raise_unreadable(name, reason_of(errno));
    if (S_ISDIR(facts.st_mode)) {
        throw InputError(name + ": is a directory", "give one picture file; several are given one by one");
    }
    if (!S_ISREG(facts.st_mode)) raise_unreadable(name, "not a regular file");
    const auto too_large = [&] {
        return InputError(name + ": larger than " + text(max_bytes) + " bytes", "save it as PNG or JPEG, or smaller");
    };
    if (facts.st_size > max_bytes) throw too_large();
    // Files of /proc say that they are empty.
    std::vector<char> data(static_cast<std::size_t>(facts.st_size) + 1);
    std::size_t size = 0;
    for (;;) {
        const ssize_t count = ::read(file.number(), data.data() + size, data.size() - size);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            throw InputError(name + ": cannot be read: " + reason_of(errno), "copy the file from its source again");
        }
        if (count == 0) break;
        size += static_cast<std::size_t>(count);
        if (size > static_cast<std::size_t>(max_bytes)) throw too_large();
        if (size == data.size()) data.resize(data.size() * 2);
    }
    data.resize(size);
    return data;
}

}  // namespace

Pixels picture_from_file(const std::string& path, const ImageOptions& options) {
    const std::string name = "image " + path;
    const std::vector<char> data = content_of(path, name);
    return decoded({data.data(), data.size()}, name, options);
}

Pixels picture_from_memory(const std::uint8_t* data, std::size_t size, const ImageOptions& options) {
    return decoded({reinterpret_cast<const char*>(data), size}, "the picture", options);
}

}  // namespace trtprune::images
