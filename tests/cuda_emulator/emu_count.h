#pragma once
// Counts what kernels read and write in global memory. Kernels are compiled with -fsanitize=thread and linked without
// its runtime: the functions that are called at every access are these here. This file goes into the one source of the
// program that is not instrumented.
//
// Lanes of a warp that read one address between two meetings (barriers, warp operations) are served by one access, as
// on a GPU: such a read counts once per warp. Every other access counts in full, wherever a cache might have helped.
#include <cstdint>
#include <cstdlib>
#include <unordered_map>

#include "cuda_emulator.h"

namespace emu {

struct Traffic {
  std::uint64_t read, written;
};

class Counter {
 public:
  // Memory that counts; 256-byte aligned, NaN. All of it is taken back by start().
  void* allocate(std::size_t bytes) {
    unsigned char* const memory = arena_ + used_;
    used_ += (bytes + 255) / 256 * 256;
    if (used_ > kArena) std::abort();
    std::memset(memory, 0xFF, bytes);
    return memory;
  }
  void start() {
    used_ = 0;
    traffic_ = {};
  }
  Traffic traffic() const { return traffic_; }

  void read(const void* p, std::size_t bytes) {
    if (!counts(p)) return;
    if (serial_ != engine.block_serial()) {
      serial_ = engine.block_serial();
      seen_.clear();
    }
    // Between two meetings a lane runs without interruption, so that its reads of one address follow each other.
    const unsigned lane = engine.lane();
    Seen& seen = seen_[Key{std::uintptr_t(p), bytes, engine.slot() / 32, engine.meetings()}];
    seen.own = seen.lane == lane ? seen.own + 1 : 1;
    seen.lane = lane;
    if (seen.own <= seen.counted) return;
    seen.counted = seen.own;
    traffic_.read += bytes;
  }
  void write(const void* p, std::size_t bytes) {
    if (counts(p)) traffic_.written += bytes;
  }

 private:
  static constexpr std::size_t kArena = 64 << 20;
  struct Key {
    std::uintptr_t address;
    std::size_t bytes;
    unsigned warp, meetings;
    bool operator==(const Key& o) const {
      return address == o.address && bytes == o.bytes && warp == o.warp && meetings == o.meetings;
    }
  };
  struct Hash {
    std::size_t operator()(const Key& key) const {
      return (key.address ^ std::uintptr_t(key.meetings) << 40 ^ std::uintptr_t(key.warp) << 56 ^ key.bytes) *
                 0x9E3779B97F4A7C15ull >>
             7;
    }
  };
  struct Seen {
    unsigned lane = ~0u, own = 0, counted = 0;
  };

  bool counts(const void* p) const {
    return engine.in_kernel() && std::size_t(static_cast<const unsigned char*>(p) - arena_) < used_;
  }

  unsigned char* const arena_ = static_cast<unsigned char*>(std::aligned_alloc(256, kArena));
  std::size_t used_ = 0;
  Traffic traffic_{};
  std::uint64_t serial_ = 0;
  std::unordered_map<Key, Seen, Hash> seen_;
};
inline Counter counter;

}  // namespace emu

// ---- what the compiler calls
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(const void* p, std::size_t bytes) { emu::counter.read(p, bytes); }
void __tsan_write_range(const void* p, std::size_t bytes) { emu::counter.write(p, bytes); }

#define EMU_ACCESS(bytes)                                                           \
  void __tsan_read##bytes(const void* p) { emu::counter.read(p, bytes); }           \
  void __tsan_write##bytes(const void* p) { emu::counter.write(p, bytes); }         \
  void __tsan_unaligned_read##bytes(const void* p) { emu::counter.read(p, bytes); } \
  void __tsan_unaligned_write##bytes(const void* p) { emu::counter.write(p, bytes); }
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)
#undef EMU_ACCESS

// Of atomics the emulator's own load and exchange are all there is: a load and a store of the word.
#define EMU_ATOMIC(bits, T)                                                                               \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  bool __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T value, int, int) {     \
    emu::counter.read(const_cast<const T*>(p), sizeof(T));                                                \
    emu::counter.write(const_cast<const T*>(p), sizeof(T));                                               \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
  }
EMU_ATOMIC(8, unsigned char)
EMU_ATOMIC(32, unsigned)
EMU_ATOMIC(64, unsigned long long)
#undef EMU_ATOMIC
}
