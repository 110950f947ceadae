#include "images/png_chunks.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>

#include "images/exif.hpp"

namespace trtprune::images {

namespace {

using namespace std::string_view_literals;

constexpr std::size_t max_text = std::size_t{1} << 20;  // bytes of a text that was compressed
constexpr std::string_view magic = "\x89PNG\r\n\x1a\n"sv;

bool is_word(std::string_view name) {
    return std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    });
}

std::uint32_t checksum(std::string_view data) {
    return static_cast<std::uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), static_cast<z_size_t>(data.size())));
}

// A compressed text; not set for a stream that is damaged.
//
// Throws Damaged for one that is longer than any text should be.
std::optional<std::string> inflated(std::string_view data) {
    std::string text(max_text, '\0');
    z_stream stream{};
    if (inflateInit(&stream) != Z_OK) return {};
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
    stream.avail_in = static_cast<uInt>(data.size());
    stream.next_out = reinterpret_cast<Bytef*>(text.data());
    stream.avail_out = static_cast<uInt>(text.size());
    const int result = inflate(&stream, Z_SYNC_FLUSH);
    const bool more = stream.avail_out == 0 && stream.avail_in != 0 && result == Z_OK;
    text.resize(text.size() - stream.avail_out);
    inflateEnd(&stream);
    if (more) throw Damaged("Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK");
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) return {};
    return text;
}

// The text in front of a zero byte, which is taken off together with it; not set if there is none.
std::optional<std::string_view> field(std::string_view& data) {
    const std::size_t end = data.find('\0');
    if (end == std::string_view::npos) return {};
    const std::string_view text = data.substr(0, end);
    data.remove_prefix(end + 1);
    return text;
}

// ImageMagick's EXIF as text: three lines, then hexadecimal digits.
std::string from_hex(std::string_view text) {
    for (int line = 0; line < 3; ++line) {
        const std::size_t end = text.find('\n');
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
    std::string data;
    int high = -1;
    for (const char c : text) {
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0 && c != '\n' && c != ' ' && c != '\t' && c != '\r') throw Damaged("non-hexadecimal number found");
        if (digit < 0) continue;
        if (high >= 0) data += static_cast<char>(high * 16 + digit);
        high = high >= 0 ? -1 : digit;
    }
    if (high >= 0) throw Damaged("non-hexadecimal number found");
    return data;
}

// The shortest content of chunks that are not used, but read.
std::size_t least_length(std::string_view name) {
    for (const auto& [other, length] : {std::pair{"gAMA"sv, 4}, {"cHRM"sv, 32}, {"sRGB"sv, 1}, {"pHYs"sv, 9}}) {
        if (name == other) return static_cast<std::size_t>(length);
    }
    return 0;
}

PngChunks::Mode mode_of(int depth, int colour_type) {
    using Mode = PngChunks::Mode;
    const bool bytes = depth == 8 || depth == 16;
    const bool parts = depth == 1 || depth == 2 || depth == 4;
    switch (colour_type) {
        case 0:
            if (depth == 1) return Mode::bilevel;
            if (depth == 16) return Mode::shade16;
            return bytes || parts ? Mode::shade : Mode::none;
        case 2:
            return bytes ? Mode::colour : Mode::none;
        case 3:
            return parts || depth == 8 ? Mode::indexed : Mode::none;
        case 4:
            return bytes ? Mode::shade_alpha : Mode::none;
        case 6:
            return bytes ? Mode::colour_alpha : Mode::none;
        default:
            return Mode::none;
    }
}

}  // namespace

PngChunks::PngChunks(std::string_view data) : data_(data), reader_(data) {
    reader_.seek(magic.size());
    try {
        for (;;) {
            const Chunk chunk = next_chunk();
            if (chunk.name == "IDAT" || chunk.name == "IEND") {
                if (chunk.name == "IDAT") pixels = chunk.start;
                break;
            }
            const std::string_view content = reader_.exactly<Unreadable>(chunk.length);
            if (chunk.name == "fdAT") throw Unreadable("a frame in front of the image");
            read_chunk<Unreadable>(chunk, content);
            const std::uint32_t sum = u32be(reader_.exactly<Unreadable>(4), 0);
            if (sum != checksum(data_.substr(chunk.start + 4, chunk.length + std::size_t{4}))) {
                throw Unreadable("bad header checksum");
            }
        }
    } catch (const Damaged& error) {
        throw Unreadable(error.what());
    }
    if (mode == Mode::none || width < 1 || height < 1) throw Unreadable("no mode");
    const std::uint32_t still = pixels != 0 && !region ? 1 : 0;
    several = frames_ && *frames_ + still > 1;
}

PngChunks::Chunk PngChunks::next_chunk() {
    Chunk chunk;
    chunk.start = reader_.position();
    const std::string_view head = reader_.exactly<Unreadable>(8);
    chunk.length = u32be(head, 0);
    chunk.name = head.substr(4);
    if (!is_word(chunk.name)) throw Unreadable("broken PNG file");
    return chunk;
}

void PngChunks::read_rest() {
    reader_.seek(pixels);
    for (bool first = true;; first = false) {
        if (!first) reader_.read(4);  // the checksum, which is not checked behind the pixels
        Chunk chunk;
        try {
            chunk = next_chunk();
        } catch (const Unreadable&) {
            return;
        }
        if (chunk.name == "IEND" || (chunk.name == "fcTL" && several)) return;
        if (chunk.name == "IDAT") {
            reader_.read(chunk.length);
            continue;
        }
        read_chunk<Damaged>(chunk, reader_.exactly<Damaged>(chunk.length));
    }
}

template <class Error>
void PngChunks::read_chunk(const Chunk& chunk, std::string_view content) {
    const std::string_view name = chunk.name;
    if (content.size() < least_length(name)) throw Error("Truncated " + std::string(name) + " chunk");
    if (name == "IHDR") read_header(content);
    if (name == "PLTE" && mode == Mode::indexed) palette = content;
    if (name == "tRNS") read_transparency(content);
    if (name == "eXIf") exif_ = std::string("Exif\0\0"sv) + std::string(content);
    if (name == "acTL") read_animation(content);
    if (name == "fcTL") read_frame(content);
    if (name == "tEXt" || name == "zTXt" || name == "iTXt") read_text(name, content);
}

void PngChunks::read_header(std::string_view content) {
    if (content.size() < 13) throw Damaged("Truncated IHDR chunk");
    width = u32be(content, 0);
    height = u32be(content, 4);
    depth = static_cast<int>(byte_at(content, 8));
    colour_type = static_cast<int>(byte_at(content, 9));
    mode = mode_of(depth, colour_type);
    interlaced = interlaced || byte_at(content, 12) != 0;
    if (byte_at(content, 11) != 0) throw Damaged("unknown filter category");
}

void PngChunks::read_transparency(std::string_view content) {
    const bool shades = mode == Mode::bilevel || mode == Mode::shade || mode == Mode::shade16;
    if ((shades && content.size() < 2) || (mode == Mode::colour && content.size() < 6)) {
        throw Damaged("Truncated tRNS chunk");
    }
    if (mode == Mode::bilevel) transparent = u16be(content, 0) != 0 ? 255 : 0;
    // A shade of fewer bits is compared as it is, as in Pillow.
    if (mode == Mode::shade || mode == Mode::shade16) transparent = u16be(content, 0) & 0xFF;
    if (mode == Mode::colour) {
        transparent_rgb = byte_at(content, 1) << 16 | byte_at(content, 3) << 8 | byte_at(content, 5);
    }
    if (mode != Mode::indexed) return;
    alphas = content;
    transparent.reset();
    // One colour that is fully transparent among others that are not; Pillow's pattern passes over a last line feed.
    std::string_view rest = content;
    if (!rest.empty() && rest.back() == '\n') rest.remove_suffix(1);
    const std::size_t zero = rest.find('\0');
    const bool others = std::count(rest.begin(), rest.end(), '\xff') + 1 == static_cast<std::ptrdiff_t>(rest.size());
    if (zero == std::string_view::npos || !others) return;
    alphas.reset();
    transparent = static_cast<std::uint32_t>(zero);
}

void PngChunks::read_frame(std::string_view content) {
    if (content.size() < 26) throw Damaged("APNG contains truncated fcTL chunk");
    const std::uint32_t number = u32be(content, 0);
    if (number != (sequence_ ? *sequence_ + 1 : 0)) throw Damaged("APNG contains frame sequence errors");
    sequence_ = number;
    const Region part{u32be(content, 12), u32be(content, 16), u32be(content, 4), u32be(content, 8)};
    if (part.left + part.width > width || part.top + part.height > height)
        throw Damaged("APNG contains invalid frames");
    region = part;
}

void PngChunks::read_animation(std::string_view content) {
    if (content.size() < 8) throw Damaged("APNG contains truncated acTL chunk");
    const std::uint32_t count = u32be(content, 0);
    if (frames_) {
        frames_.reset();  // a second one: not to be trusted
    } else if (count != 0 && count <= 0x80000000U) {
        frames_ = count;
    }
}

void PngChunks::read_text(std::string_view name, std::string_view content) {
    const std::string_view key = field(content).value_or(std::string_view());
    if (name == "tEXt") {
        if (key == "exif") exif_ = content;
        if (key == "Raw profile type exif") raw_profile_ = content;
        if (key == "XML:com.adobe.xmp") xmp_ = content;
        return;
    }
    if (name == "zTXt") {
        if (content.empty()) return;
        if (content[0] != 0) throw Damaged("Unknown compression method in zTXt chunk");
        if (key != "Raw profile type exif" && key != "XML:com.adobe.xmp") return;
        const std::string text = inflated(content.substr(1)).value_or("");
        (key == "XML:com.adobe.xmp" ? xmp_ : raw_profile_.emplace()) = text;
        return;
    }
    if (key != "XML:com.adobe.xmp" || content.size() < 2) return;
    const bool compressed = content[0] != 0;
    if (compressed && content[1] != 0) return;
    content.remove_prefix(2);
    if (!field(content) || !field(content)) return;  // language and translated keyword
    const std::optional<std::string> text = compressed ? inflated(content) : std::string(content);
    if (text) xmp_ = *text;
}

int PngChunks::orientation() const {
    if (!exif_ && raw_profile_) return orientation_of(from_hex(*raw_profile_), xmp_);
    return orientation_of(exif_, xmp_);
}

}  // namespace trtprune::images
