#pragma once
// Of each byte of bits: which they are.
#include <array>
#include <cstdint>

namespace sparse_accel {

struct SparseTables {
  // For byte shuffles, which write zero where an index is 0x80: byte b of value k goes to where the k-th set bit is.
  alignas(64) std::uint8_t one[256][8];    // one-byte values to eight neighbouring bytes
  alignas(64) std::uint8_t two[256][16];   // two-byte values to eight neighbouring pairs
  alignas(64) std::uint8_t high[256][32];  // two-byte values to the upper halves of eight four-byte lanes
  // Four-byte values: those of the lower four bits from 16 bytes, those of the upper four from 16 others.
  alignas(64) std::uint8_t four[256][32];
  // The set bits' places, lowest first; behind them zeros.
  alignas(64) std::uint16_t place[256][8];
  alignas(64) std::uint8_t count[256];
};

constexpr SparseTables make_sparse_tables() {
  SparseTables t{};
  for (int byte = 0; byte < 256; ++byte) {
    int kept = 0, in_half = 0;
    for (int i = 0; i < 8; ++i) {
      const bool set = byte >> i & 1;
      if (i == 4) in_half = 0;
      t.one[byte][i] = static_cast<std::uint8_t>(set ? kept : 0x80);
      for (int b = 0; b < 2; ++b) {
        t.two[byte][2 * i + b] = static_cast<std::uint8_t>(set ? 2 * kept + b : 0x80);
        t.high[byte][4 * i + b] = 0x80;
        t.high[byte][4 * i + 2 + b] = t.two[byte][2 * i + b];
      }
      for (int b = 0; b < 4; ++b) t.four[byte][4 * i + b] = static_cast<std::uint8_t>(set ? 4 * in_half + b : 0x80);
      if (set) t.place[byte][kept++] = static_cast<std::uint16_t>(i), ++in_half;
    }
    t.count[byte] = static_cast<std::uint8_t>(kept);
  }
  return t;
}

inline constexpr SparseTables kSparseTables = make_sparse_tables();

}  // namespace sparse_accel
