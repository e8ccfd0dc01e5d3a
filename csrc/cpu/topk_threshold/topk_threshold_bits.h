// Words of bits. Included once per instruction set (no include guard on purpose).
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

#include <cstdint>

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
// 64 bits as 64 bytes of 0 or 1; past the caches `out` is a multiple of 64.
inline void spread_bits(uint64_t bits, bool* out, bool passes_cache) {
  const __m512i bytes = _mm512_maskz_set1_epi8(static_cast<__mmask64>(bits), 1);
  if (passes_cache) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), bytes);
  } else {
    _mm512_storeu_si512(out, bytes);
  }
}
#else
// Byte b of the entry for 8 bits is bit b.
struct SpreadTable {
  uint64_t bytes[256];
  constexpr SpreadTable() : bytes() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int b = 0; b < 8; ++b) bytes[bits] |= uint64_t((bits >> b) & 1) << (8 * b);
    }
  }
};
static constexpr SpreadTable spread_table;

inline void spread_bits(uint64_t bits, bool* out, bool) {
  for (int b = 0; b < 8; ++b) __builtin_memcpy(out + 8 * b, &spread_table.bytes[(bits >> (8 * b)) & 255], 8);
}
#endif

// The lowest bits, moved to those of `places`.
inline uint64_t deposit_bits(uint64_t bits, uint64_t places) {
#if defined(__BMI2__)
  return _pdep_u64(bits, places);
#else
  uint64_t out = 0;
  for (; places; places &= places - 1, bits >>= 1) out |= bits & 1 ? places & -places : 0;
  return out;
#endif
}

// The bits of `places`, moved together to the lowest.
inline uint64_t gather_bits(uint64_t bits, uint64_t places) {
#if defined(__BMI2__)
  return _pext_u64(bits, places);
#else
  uint64_t out = 0;
  for (int64_t i = 0; places; places &= places - 1, ++i) out |= uint64_t((bits & places & -places) != 0) << i;
  return out;
#endif
}

// The lowest `each` bits, over and over; `each` divides 32.
constexpr uint64_t repeat_bits(uint64_t bits, int each) { return ~uint64_t(0) / ((uint64_t(1) << each) - 1) * bits; }

inline int64_t count_bits(uint64_t bits) { return __builtin_popcountll(bits); }

// Bits one after another, from a word on.
class BitWriter {
 public:
  explicit BitWriter(uint64_t* out) : out_(out) {}

  // The lowest `count` of bits, the others of which are 0; 1 <= count <= 64.
  void add(uint64_t bits, int64_t count) {
    word_ |= bits << size_;
    size_ += count;
    if (size_ < kTopkWord) return;
    *out_++ = word_;
    size_ -= kTopkWord;
    word_ = size_ ? bits >> (count - size_) : 0;
  }
  // The last word, if begun.
  void flush() const {
    if (size_) *out_ = word_;
  }

 private:
  uint64_t* out_;
  uint64_t word_ = 0;
  int64_t size_ = 0;
};

template <class Lane>
static void join_lanes(const uint32_t* lanes, int64_t number, int m, uint64_t* out) {
  constexpr int64_t each = 8 / sizeof(Lane);
  const uint64_t places = repeat_bits((uint64_t(1) << m) - 1, 64 / each);
  alignas(64) Lane narrow[kTopkWord];
  for (int64_t i = 0; i < kTopkWord; ++i) narrow[i] = static_cast<Lane>(lanes[i]);
  BitWriter writer(out);
  for (int64_t i = 0; i < number; i += each) {
    uint64_t word;
    __builtin_memcpy(&word, narrow + i, sizeof word);
    writer.add(gather_bits(word, places), each * m);
  }
  writer.flush();
}

// The lowest m <= 32 bits of up to 64 lanes, one after another; lanes from `number` on are 0.
static void join_bits(const uint32_t* lanes, int64_t number, int m, uint64_t* out) {
  if (m <= 8) {
    join_lanes<uint8_t>(lanes, number, m, out);
  } else if (m <= 16) {
    join_lanes<uint16_t>(lanes, number, m, out);
  } else {
    join_lanes<uint32_t>(lanes, number, m, out);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
