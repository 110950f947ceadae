#include "images/exif.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <set>

#include "images/decoder.hpp"

namespace trtprune::images {

namespace {

constexpr std::uint32_t orientation_tag = 0x0112;

// Bytes of one value of a TIFF type; 0 for a type that is not known.
std::uint64_t unit_size(std::uint32_t type) {
    constexpr std::uint64_t sizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
    return type < sizeof sizes / sizeof *sizes ? sizes[type] : 0;
}

// Bytes as Python shows them, b'II*\x00'.
std::string bytes_repr(std::string_view data) {
    std::string line = "b'";
    for (const char c : data) {
        char buffer[8];
        if (c == '\\' || c == '\'') {
            line += std::string("\\") + c;
        } else if (c >= 0x20 && c < 0x7F) {
            line += c;
        } else {
            std::snprintf(buffer, sizeof buffer, "\\x%02x", static_cast<unsigned>(static_cast<std::uint8_t>(c)));
            line += buffer;
        }
    }
    return line + "'";
}

// A TIFF file's first directory, as far as the orientation needs it.
class Directory {
  public:
    explicit Directory(std::string_view data) : data_(data) {
        const std::string_view head = data.substr(0, 8);
        const std::string_view magic = head.substr(0, 4);
        using namespace std::string_view_literals;
        const auto any = {"MM\0\x2a"sv, "II\x2a\0"sv, "MM\x2a\0"sv, "II\0\x2a"sv, "MM\0\x2b"sv, "II\x2b\0"sv};
        bool known = false;
        for (const std::string_view prefix : any) known = known || magic == prefix;
        if (!known) throw Damaged("not a TIFF file (header " + bytes_repr(head) + " not valid)");
        big_endian_ = head[0] == 'M';
        wide_ = head[2] == '\x2b';
        // BigTIFF's own offset lies behind the eight bytes that Pillow reads.
        if (head.size() < 8 || wide_) throw Damaged("unpack requires a buffer of more bytes");
    }

    // The first value of the orientation tag; NaN if it has none.
    double orientation() const {
        std::uint64_t place = number(4, 4);
        if (!has(place, 2)) return NAN;
        const std::uint64_t count = number(place, 2);
        place += 2;
        std::uint64_t total = 0;
        for (std::uint64_t i = 0; i < count && has(place, 12); ++i, place += 12) {
            const std::uint64_t type = number(place + 2, 2);
            const std::uint64_t unit = unit_size(static_cast<std::uint32_t>(type));
            if (unit == 0) continue;
            const std::uint64_t size = unit * number(place + 4, 4);
            std::uint64_t value = place + 8;
            if (size > 4) {
                // Pillow reads no more for all tags together than the file holds.
                total += size;
                if (total > data_.size()) continue;
                value = number(place + 8, 4);
                if (!has(value, size)) return NAN;  // the rest of the directory is not read either
            }
            if (size != 0 && number(place, 2) == orientation_tag) return decoded(type, value);
        }
        return NAN;
    }

  private:
    bool has(std::uint64_t place, std::uint64_t size) const {
        return place <= data_.size() && size <= data_.size() - place;
    }

    std::uint64_t number(std::uint64_t place, std::uint64_t size) const {
        std::uint64_t value = 0;
        for (std::uint64_t i = 0; i < size; ++i) {
            const std::uint64_t at = big_endian_ ? place + i : place + size - 1 - i;
            value = value << 8 | byte_at(data_, static_cast<std::size_t>(at));
        }
        return value;
    }

    double decoded(std::uint64_t type, std::uint64_t place) const {
        switch (type) {
            case 3:
                return static_cast<double>(number(place, 2));
            case 4:
            case 13:
                return static_cast<double>(number(place, 4));
            case 16:
                return static_cast<double>(number(place, 8));
            case 6:
                return static_cast<double>(static_cast<std::int8_t>(number(place, 1)));
            case 8:
                return static_cast<double>(static_cast<std::int16_t>(number(place, 2)));
            case 9:
                return static_cast<double>(static_cast<std::int32_t>(number(place, 4)));
            case 5:
            case 10:  // the orientations are positive, so that signs make no difference
                return static_cast<double>(number(place, 4)) / static_cast<double>(number(place + 4, 4));
            case 11: {
                const auto bits = static_cast<std::uint32_t>(number(place, 4));
                float value = 0;
                std::memcpy(&value, &bits, sizeof value);
                return static_cast<double>(value);
            }
            case 12: {
                const std::uint64_t bits = number(place, 8);
                double value = 0;
                std::memcpy(&value, &bits, sizeof value);
                return value;
            }
            default:  // texts and bytes are no numbers
                return 0;
        }
    }

    std::string_view data_;
    bool big_endian_ = false;
    bool wide_ = false;
};

// `tiff:Orientation="6"` or `tiff:Orientation>6`, the first one with a digit.
int xmp_orientation(std::string_view xmp) {
    constexpr std::string_view name = "tiff:Orientation";
    for (std::size_t at = xmp.find(name); at != std::string_view::npos; at = xmp.find(name, at + 1)) {
        std::string_view rest = xmp.substr(at + name.size());
        if (starts_with(rest, "=\"")) {
            rest.remove_prefix(2);
        } else if (starts_with(rest, ">")) {
            rest.remove_prefix(1);
        } else {
            continue;
        }
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
    }
    return 1;
}

}  // namespace

int orientation_of(const std::optional<std::string>& exif, std::string_view xmp) {
    if (exif) {
        using namespace std::string_view_literals;
        std::string_view data = *exif;
        for (int i = 0; i < 2 && starts_with(data, "Exif\0\0"sv); ++i) data.remove_prefix(6);
        if (!data.empty()) {
            const double value = Directory(data).orientation();
            if (!std::isnan(value))
                return value >= 1 && value <= 8 && value == std::floor(value) ? static_cast<int>(value) : 1;
        }
    }
    return xmp_orientation(xmp);
}

}  // namespace trtprune::images
