#pragma once

#include <cstdint>
#include <cstring>

namespace trtprune::runtime {

/// The bits of the nearest float16, halves to the even one.
inline std::uint16_t to_float16(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = (bits >> 16) & 0x8000U;
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U);   // NaN
    if (magnitude >= 0x477FF000U) return static_cast<std::uint16_t>(sign | 0x7C00U);  // rounds to infinity
    std::uint32_t mantissa = 0;
    std::uint32_t dropped = 13;     // bits behind the result's last one
    if (magnitude < 0x38800000U) {  // below the smallest normal number
        if (magnitude < 0x33000000U) return static_cast<std::uint16_t>(sign);
        dropped = 126 - (magnitude >> 23);
        mantissa = (magnitude & 0x7FFFFFU) | 0x800000U;
    } else {
        mantissa = magnitude - 0x38000000U;  // the exponent's offset: 127 - 15
    }
    const std::uint32_t half = 1U << (dropped - 1);
    const std::uint32_t rest = mantissa & ((1U << dropped) - 1);
    std::uint32_t result = mantissa >> dropped;
    if (rest > half || (rest == half && (result & 1U) != 0)) ++result;
    return static_cast<std::uint16_t>(sign | result);
}

/// The bits of the nearest bfloat16, halves to the even one.
inline std::uint16_t to_bfloat16(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);  // NaN
    bits += 0x7FFFU + ((bits >> 16) & 1U);
    return static_cast<std::uint16_t>(bits >> 16);
}

}  // namespace trtprune::runtime
