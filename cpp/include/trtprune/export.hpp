#pragma once

// Symbols of the library are hidden but for what is marked here.
#if defined(TRTPRUNE_STATIC)
#define TRTPRUNE_API
#else
#define TRTPRUNE_API __attribute__((visibility("default")))
#endif
