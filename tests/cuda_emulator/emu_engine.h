#pragma once
// The scheduler: runs the threads of a block, or of a cluster of blocks, as fibers, lets them meet at barriers and warp
// operations, and reports threads that do not meet.
#include <sys/mman.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_types.h"
#include "emu_fiber.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// In which order runnable threads, and the blocks of a grid, are picked.
enum class Order { forward, reverse, random };

struct Config {
  Order order = Order::forward;
  std::uint64_t seed = 1;
  // A barrier or fence to leave out, as if its line were deleted (EMU_SKIP=file:line): do the tests notice?
  char skip_file[64] = "";
  int skip_line = 0;
  // The most blocks of a cluster; 0: a device without clusters (EMU_CLUSTERS).
  unsigned clusters = 0;

  Config() {
    set(std::getenv("EMU_ORDER"));
    if (const char* blocks = std::getenv("EMU_CLUSTERS")) clusters = unsigned(std::strtoul(blocks, nullptr, 10));
    if (const char* site = std::getenv("EMU_SKIP")) std::sscanf(site, "%63[^:]:%d", skip_file, &skip_line);
  }
  EMU_FN bool skips(const char* file, int line) const {
    if (line != skip_line) return false;
    std::size_t own = 0, given = 0;  // (strlen would be instrumented)
    while (skip_file[own]) ++own;
    while (file[given]) ++given;
    for (std::size_t i = 1; i <= own; ++i) {
      if (i > given || skip_file[own - i] != file[given - i]) return false;
    }
    return true;
  }
  // "forward" | "reverse" | "random" | "random:SEED"; false if it is none of these.
  bool set(const char* text) {
    if (!text) return true;
    const std::string name(text);
    if (name == "forward" || name == "reverse") {
      order = name == "forward" ? Order::forward : Order::reverse;
      return true;
    }
    if (name.compare(0, 6, "random") != 0) return false;
    order = Order::random;
    if (name.size() > 7 && name[6] == ':') seed = std::strtoull(name.c_str() + 7, nullptr, 10);
    return name.size() == 6 || name[6] == ':';
  }
};
inline Config config;

// What a thread is doing; from syncwarp on: waiting for its warp.
enum State : int { ready, barrier, cluster_barrier, done, syncwarp, shuffle, vote, match, reduce };
inline const char* const state_name[] = {"ready",   "__syncthreads", "cluster_sync", "done",  "__syncwarp",
                                         "shuffle", "vote",          "match",        "reduce"};
enum Reduction : int { reduce_add, reduce_min, reduce_max };
enum Predicate : int { count_true, all_true, any_true };

constexpr unsigned kMaxThreads = 1024;  // of a block
constexpr unsigned kMaxCluster = 8;     // blocks
constexpr unsigned kSlots = 2048;       // threads of a cluster: the emulator's own limit

struct Thread {
  Context context;
  void *asan_stack, *tsan[2];
  char* stack;
  uint3 index;
  unsigned block, linear;  // the block's rank in its cluster, the thread's in its block
  unsigned barriers, cluster_barriers;
  unsigned meetings;  // barriers and warp operations so far
  State state;
  // the barrier or warp operation that the thread waits in
  const char* file;
  int line, reduction;
  unsigned mask, source;
  std::int64_t value, result;
  char* tag;    // race check: what to acquire after a __syncwarp
  bool fenced;  // race check: whether atomics publish what the thread wrote
};

// One of the blocks that run at the same time. Most clusters have one.
struct Block {
  uint3 index;
  unsigned live, queue_head, queue_size, queue[kMaxThreads];
  unsigned warp_live[32], warp_waiting[32];
  unsigned waiting;  // threads at the barrier
  const char* barrier_file;
  int barrier_line, true_now, true_last, arrived_last;
  unsigned char* dynamic_shared;
};

class SharedArray;

class Engine {
 public:
  // One block after another, or one cluster; throws emu::error for what a GPU would hang or fault on.
  EMU_FN void run(dim3 grid, dim3 block, unsigned cluster, std::size_t shared, void (*body)(void*), void* argument);

  EMU_FN void cluster_wait(const char* file, int line);
  EMU_FN int barrier_wait(bool predicate, Predicate wanted, const char* file, int line);
  EMU_FN std::int64_t warp_wait(State operation, int reduction, unsigned mask, std::int64_t value, unsigned source,
                                const char* file, int line);
  EMU_FN unsigned lane() const { return current_->linear & 31; }
  EMU_FN unsigned rank() const { return current_->linear; }
  EMU_FN unsigned size() const { return threads_in_block_; }
  EMU_FN unsigned slot() const { return current_->block * threads_in_block_ + current_->linear; }  // in the cluster
  EMU_FN unsigned block_rank() const { return current_->block; }
  EMU_FN unsigned cluster_size() const { return cluster_; }
  EMU_FN void fence() { current_->fenced = true; }
  EMU_FN bool fenced() const { return current_->fenced; }

  // Shared memory: an allocation of its own (red zones), NaN at the start of every block, and again after its end
  // while the cluster's other blocks run.
  EMU_FN unsigned char* allocate_shared(std::size_t size);
  EMU_FN static void poison(void* memory, std::size_t size);
  EMU_FN unsigned char* dynamic_shared() const { return blocks_[current_->block].dynamic_shared; }
  EMU_FN void declare(SharedArray* array);
  EMU_FN unsigned char* map_shared(const void* own, unsigned rank, const char* file, int line);
  EMU_FN std::uint64_t block_serial() const { return block_serial_; }

  // What traffic is counted by (emu_count.h).
  EMU_FN bool in_kernel() const { return current_ != &host_; }
  EMU_FN unsigned meetings() const { return current_->meetings; }
  EMU_FN std::uint64_t launches() const { return launches_; }

 private:
  EMU_FN static void thread_main();
  EMU_FN void set_up();
  EMU_FN void run_cluster();
  EMU_FN void start_thread(unsigned block, unsigned i);
  EMU_FN void retire(unsigned rank);
  EMU_FN void throw_error();
  EMU_FN void push(Block& block, unsigned i) { block.queue[(block.queue_head + block.queue_size++) % kMaxThreads] = i; }
  EMU_FN Thread* threads_of(const Block& block) { return threads_ + (&block - blocks_) * threads_in_block_; }
  EMU_FN Block& block_of(const Thread& thread) { return blocks_[thread.block]; }
  EMU_FN bool choose_block();
  EMU_FN Thread* next();
  EMU_FN void go(Thread* to, bool dying = false);
  EMU_FN unsigned random(unsigned below);
  EMU_FN void release_barrier(Block& block);
  EMU_FN void release_cluster();
  EMU_FN void release_warp(Thread& last);
  EMU_FN void compute_warp(const Thread& last, unsigned mask);
  EMU_FN void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
  EMU_FN void report_deadlock();

  static constexpr std::size_t kDynamicShared = 256 << 10, kSharedArena = 6 << 20, kStride = kStack + 4096;

  // Race check: happens-before tags of a block; two sets, so that neighbouring blocks are not ordered by barriers.
  struct Tags {
    char barrier[2], cluster[2], lane[kMaxThreads], warp[32][64];
  };
  EMU_FN Tags& tags(unsigned block) { return tags_[block_serial_ & 1][block]; }

  std::recursive_mutex mutex_;  // Python threads take turns
  Thread host_{}, *current_ = &host_, *threads_ = nullptr;
  Block blocks_[kMaxCluster] = {};
  unsigned cluster_ = 1, chosen_ = 0;  // blocks that run at the same time; the one whose turn it is
  unsigned threads_in_block_ = 0, live_ = 0, cluster_waiting_ = 0;  // live, waiting: of the whole cluster
  const char* cluster_file_ = nullptr;
  int cluster_line_ = 0;
  std::uint64_t rng_ = 1, block_serial_ = 0, launches_ = 0;
  std::size_t shared_size_ = 0;
  SharedArray* arrays_ = nullptr;
  char error_[1024] = "";
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* stacks_ = nullptr;
  char* host_stack_ = nullptr;
  std::size_t host_stack_size_ = 0;
  bool dirty_stacks_ = false;
  char* arena_ = nullptr;
  std::size_t arena_used_ = 0;
  unsigned guarded_ = 0;  // stacks that have a guard page
  Tags tags_[2][kMaxCluster];
  char tag_start_ = 0, tag_end_ = 0;
  unsigned warp_syncs_ = 0;
};
inline Engine engine;

// One SHARED array of a kernel.
class SharedArray {
 public:
  EMU_FN constexpr explicit SharedArray(std::size_t size) : size_(size) {}
  EMU_FN void* get() { return of(engine.block_rank()); }
  // That block's copy of it.
  EMU_FN unsigned char* of(unsigned rank) {
    if (!declared_) engine.declare(this);
    declared_ = true;
    if (!memory_[rank]) memory_[rank] = engine.allocate_shared(size_);
    if (serial_[rank] != engine.block_serial()) {
      serial_[rank] = engine.block_serial();
      Engine::poison(memory_[rank], size_);
    }
    return memory_[rank];
  }
  EMU_FN bool holds(unsigned rank, const void* p) const {
    return memory_[rank] && std::size_t(static_cast<const unsigned char*>(p) - memory_[rank]) < size_;
  }
  EMU_FN std::size_t size() const { return size_; }
  EMU_FN bool used(unsigned rank) const { return memory_[rank] && serial_[rank] == engine.block_serial(); }
  SharedArray* next = nullptr;  // of all that have been used

 private:
  const std::size_t size_;
  unsigned char* memory_[kMaxCluster] = {};
  std::uint64_t serial_[kMaxCluster] = {};
  bool declared_ = false;
};

}  // namespace emu

#include "emu_run.h"
#include "emu_schedule.h"
