#include "images/video.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace trtprune::images {

namespace {

using namespace std::string_view_literals;

// Still pictures in the same container as MP4: AVIF and HEIC.
bool is_still(std::string_view brand) {
    constexpr std::array stills{"avif"sv, "avis"sv, "mif1"sv, "heic"sv, "heix"sv, "heif"sv};
    return std::find(stills.begin(), stills.end(), brand) != stills.end();
}

std::string iso_kind(std::string_view head) {
    if (is_still(head.substr(8, 4))) return "";
    for (std::size_t at = 16; at + 3 < head.size(); at += 4) {
        if (is_still(head.substr(at, 4))) return "";
    }
    return head.substr(8, 4) == "qt  " ? "QuickTime" : "MP4";
}

}  // namespace

std::string video_kind(std::string_view head) {
    const auto part = [&](std::size_t at) { return head.size() > at ? head.substr(at, 4) : std::string_view(); };
    if (part(4) == "ftyp") return iso_kind(head);
    for (const std::string_view atom : {"moov", "mdat", "wide"}) {
        if (part(4) == atom) return "QuickTime";
    }
    if (part(0) == "\x1a\x45\xdf\xa3") return head.find("webm") != std::string_view::npos ? "WebM" : "Matroska";
    if (part(0) == "RIFF" && part(8) == "AVI ") return "AVI";
    if (part(0) == "\0\0\x01\xba"sv || part(0) == "\0\0\x01\xb3"sv) return "MPEG";
    if (head.size() > 188 && head[0] == 'G' && head[188] == 'G') return "MPEG transport stream";
    for (const auto& [magic, kind] : {std::pair{"FLV\x01"sv, "FLV"}, {"0&\xb2u"sv, "WMV"}, {"OggS"sv, "Ogg"}}) {
        if (part(0) == magic) return kind;
    }
    return "";
}

}  // namespace trtprune::images
