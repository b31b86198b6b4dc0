// Values out of a fuzzer's bytes; zeros when they run out.
#pragma once

#include <cstddef>
#include <cstdint>

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  std::uint8_t next() { return place_ < size_ ? data_[place_++] : std::uint8_t{0}; }
  bool flag() { return (next() & 1) != 0; }
  // least .. most, both included; at most 256 values.
  std::size_t between(std::size_t least, std::size_t most) { return least + next() % (most - least + 1); }

 private:
  const std::uint8_t* data_;
  std::size_t size_, place_ = 0;
};

// A broken promise ends the run with a finding.
#define PROMISE(condition)              \
  do {                                  \
    if (!(condition)) __builtin_trap(); \
  } while (false)
