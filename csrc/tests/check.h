// CHECK(condition) and finish(): all a test program needs.
#pragma once

#include <cstdio>

inline int checks_failed = 0;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition) && ++checks_failed <= 20) {                                   \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                              \
  } while (false)

// What main returns.
inline int finish() {
  if (checks_failed > 0) std::fprintf(stderr, "%d checks failed\n", checks_failed);
  return checks_failed == 0 ? 0 : 1;
}
