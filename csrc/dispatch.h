// Runtime dispatch: a wheel is built for the oldest processor; what pays on newer ones is compiled again for
// them and picked at run time. Only where compiler and loader can; elsewhere the portable code is the only
// one.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#define SAMDISTILL_X86_TARGETS 1  // __attribute__((target(...))) and __builtin_cpu_supports
#endif

// Compiles a function for x86-64-v1, v3 (AVX2) and v4 (AVX-512); the loader picks. GCC with glibc only, and
// not under sanitizers, which cannot run before the loader has resolved it.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SAMDISTILL_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SAMDISTILL_CLONES
#endif

#if defined(__GNUC__)
#define SAMDISTILL_INLINE __attribute__((always_inline))
#define SAMDISTILL_POPCOUNT64(word) __builtin_popcountll(word)
#define SAMDISTILL_LOWEST_BIT64(word) __builtin_ctzll(word)
#else
#include <bitset>
#define SAMDISTILL_INLINE
#define SAMDISTILL_POPCOUNT64(word) static_cast<int>(std::bitset<64>(word).count())
#define SAMDISTILL_LOWEST_BIT64(word) SAMDISTILL_POPCOUNT64(((word) & (0 - (word))) - 1)
#endif
