#include "backend/exact_products.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace trtprune::backend {

#if defined(__x86_64__) || defined(__i386__)
bool exact_products() {
    constexpr unsigned avx512_vnni = 1U << 11;  // leaf 7, ecx
    constexpr unsigned avx_vnni = 1U << 4;      // leaf 7 subleaf 1, eax
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
    if ((ecx & avx512_vnni) != 0) return true;
    return eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & avx_vnni) != 0;
}
#else
bool exact_products() { return true; }
#endif

}  // namespace trtprune::backend
