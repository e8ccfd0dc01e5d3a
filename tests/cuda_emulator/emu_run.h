#pragma once
// Engine's member functions, second part: running a grid, shared memory. Included by emu_engine.h.

namespace emu {

// ---- running a grid

inline void Engine::thread_main() {
  Engine& e = engine;
  EMU_ASAN(const void* bottom; std::size_t size; __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
           if (!e.host_stack_) {
             e.host_stack_ = static_cast<char*>(const_cast<void*>(bottom));
             e.host_stack_size_ = size;
           });
  EMU_TSAN(__tsan_acquire(&e.tag_start_));
  e.body_(e.argument_);
  EMU_TSAN(__tsan_release(&e.tag_end_));
  Thread& t = *e.current_;
  Block& block = e.block_of(t);
  const unsigned warp = t.linear / 32;
  t.state = done;
  --e.live_;
  --block.live;
  block.warp_live[warp] &= ~(1u << (t.linear & 31));
  for (unsigned i = 0; i < 32; ++i) {  // those who waited for this lane no longer need to
    Thread& other = e.threads_of(block)[warp * 32 + i];
    if (block.warp_waiting[warp] >> i & 1 && other.state >= syncwarp) e.release_warp(other);
  }
  e.release_barrier(block);
  e.release_cluster();
  if (block.live == 0 && e.live_) e.retire(t.block);
  e.go(e.next(), true);
  __builtin_trap();
}

inline void Engine::set_up() {
  const std::size_t stacks = 2 * kSlots + 1;
  if (!threads_) {
    threads_ = static_cast<Thread*>(std::calloc(kSlots, sizeof(Thread)));
    void* const memory =
        mmap(nullptr, stacks * kStride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!threads_ || memory == MAP_FAILED) throw error("no memory for the stacks of the emulated threads");
    stacks_ = static_cast<char*>(memory);
    EMU_TSAN(host_.tsan[0] = host_.tsan[1] = __tsan_get_current_fiber());
  }
  const unsigned all = threads_in_block_ * cluster_;
  for (; guarded_ <= all; ++guarded_) {
    for (const unsigned set : {0u, kSlots}) mprotect(stacks_ + (guarded_ + set) * kStride, 4096, PROT_NONE);
  }
  EMU_TSAN(for (unsigned i = 0; i < all; ++i) {
    for (void*& fiber : threads_[i].tsan) {
      if (fiber) continue;
      fiber = __tsan_create_fiber(0);
      __tsan_set_fiber_name(fiber, ("CUDA thread " + std::to_string(i)).c_str());
    }
  });
}

inline void Engine::start_thread(unsigned block, unsigned i) {
  const unsigned slot = block * threads_in_block_ + i;
  Thread& t = threads_[slot];
  t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  t.block = block;
  t.linear = i;
  t.state = ready;
  t.barriers = t.cluster_barriers = t.meetings = 0;
  t.fenced = false;
  t.stack = stacks_ + slot * kStride + 4096;
  // Two sets of stacks and TSan fibers: no order between neighbouring blocks.
  EMU_TSAN(t.stack += (block_serial_ & 1) * kSlots * kStride);
  EMU_ASAN(if (dirty_stacks_) __asan_unpoison_memory_region(t.stack, kStack));
  blocks_[block].warp_live[i / 32] |= 1u << (i & 31);
  t.context.prepare(t.stack, i, &Engine::thread_main);
  push(blocks_[block], config.order == Order::reverse ? threads_in_block_ - 1 - i : i);
}

// The blocks' indices are set.
inline void Engine::run_cluster() {
  ++block_serial_;
  live_ = threads_in_block_ * cluster_;
  cluster_waiting_ = 0;
  chosen_ = config.order == Order::reverse ? cluster_ - 1 : 0;
  for (unsigned rank = 0; rank < cluster_; ++rank) {
    Block& block = blocks_[rank];
    block.live = threads_in_block_;
    block.queue_head = block.queue_size = block.waiting = 0;
    block.true_now = 0;
    std::memset(block.warp_live, 0, sizeof block.warp_live);
    std::memset(block.warp_waiting, 0, sizeof block.warp_waiting);
    poison(block.dynamic_shared, shared_size_);
    for (unsigned i = 0; i < threads_in_block_; ++i) start_thread(rank, i);
  }
  blockIdx = blocks_[host_.block].index;
  go(next());
  dirty_stacks_ = error_[0] != 0;
  if (dirty_stacks_) throw_error();
}

inline void Engine::throw_error() {
  EMU_TSAN(for (unsigned i = 0; i < threads_in_block_ * cluster_; ++i) {
    for (void*& fiber : threads_[i].tsan) {  // abandon the fibers
      __tsan_switch_to_fiber(fiber, 1);
      __tsan_release(&tag_end_);
      __tsan_switch_to_fiber(host_.tsan[0], 1);
      __tsan_destroy_fiber(fiber);
      fiber = nullptr;
    }
  } __tsan_acquire(&tag_end_));
  const std::string text = error_;
  error_[0] = 0;
  throw error(text);
}

inline void Engine::run(dim3 grid, dim3 block, unsigned cluster, std::size_t shared, void (*body)(void*),
                        void* argument) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (current_ != &host_) throw error("launch inside a kernel");
  const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y * grid.z;
  if (!threads || threads > kMaxThreads || !blocks || block.z > 64 || grid.y > 65535 || grid.z > 65535 ||
      grid.x > 0x7fffffffu || shared > 227 * 1024) {
    char text[160];
    std::snprintf(text, sizeof text, "invalid launch configuration: grid (%u,%u,%u) block (%u,%u,%u) shared memory %zu",
                  grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    throw error(text);
  }
  if (cluster > 1 && (cluster > config.clusters || cluster > kMaxCluster || threads * cluster > kSlots ||
                      (cluster & (cluster - 1)) || grid.x % cluster || grid.y != 1 || grid.z != 1)) {
    char text[200];
    std::snprintf(
        text, sizeof text,
        "invalid cluster launch: clusters of %u blocks of %u threads in a grid of (%u,%u,%u), on a device with "
        "clusters of up to %u",
        cluster, unsigned(threads), grid.x, grid.y, grid.z, config.clusters);
    throw error(text);
  }
  ++launches_;
  threads_in_block_ = unsigned(threads);
  cluster_ = cluster ? cluster : 1;
  shared_size_ = shared;
  set_up();
  gridDim = grid;
  blockDim = block;
  body_ = body;
  argument_ = argument;
  rng_ = config.seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  const std::uint64_t turns = blocks / cluster_;
  std::vector<std::uint32_t> shuffled;
  if (config.order == Order::random) {
    shuffled.resize(turns);
    for (std::uint32_t i = 0; i < turns; ++i) {
      const std::uint32_t j = random(i + 1);
      shuffled[i] = shuffled[j];
      shuffled[j] = i;
    }
  }
  EMU_TSAN(__tsan_release(&tag_start_));
  for (unsigned rank = 0; rank < cluster_; ++rank) {
    unsigned char*& memory = blocks_[rank].dynamic_shared;
#ifdef EMU_RACES
    if (!memory) memory = allocate_shared(kDynamicShared);
#else
    std::free(memory);  // a fresh allocation of the exact size: red zones
    memory = allocate_shared(shared);
#endif
  }
  for (std::uint64_t i = 0; i < turns; ++i) {
    const std::uint64_t turn = config.order == Order::random    ? shuffled[i]
                               : config.order == Order::reverse ? turns - 1 - i
                                                                : i;
    for (unsigned rank = 0; rank < cluster_; ++rank) {
      const std::uint64_t k = turn * cluster_ + rank;
      blocks_[rank].index = {unsigned(k % grid.x), unsigned(k / grid.x % grid.y), unsigned(k / grid.x / grid.y)};
    }
    run_cluster();
  }
  EMU_TSAN(__tsan_acquire(&tag_end_));
}

// ---- shared memory

inline void Engine::declare(SharedArray* array) {
  array->next = arrays_;
  arrays_ = array;
}

// Where the block of that rank has what lies at `own` in the calling thread's block.
inline unsigned char* Engine::map_shared(const void* own, unsigned rank, const char* file, int line) {
  const unsigned from = current_->block;
  if (rank >= cluster_) {
    fail("cluster_shared at %s:%d: block %u of a cluster of %u", file, line, rank, cluster_);
  }
  if (blocks_[rank].live == 0) {
    fail("cluster_shared at %s:%d: block %u of the cluster has returned, and its shared memory with it", file, line,
         rank);
  }
  const std::size_t at = std::size_t(static_cast<const unsigned char*>(own) - blocks_[from].dynamic_shared);
  if (at < shared_size_) return blocks_[rank].dynamic_shared + at;
  for (SharedArray* array = arrays_; array; array = array->next) {
    if (array->holds(from, own)) {
      return array->of(rank) + (static_cast<const unsigned char*>(own) - array->of(from));
    }
  }
  fail("cluster_shared at %s:%d: no shared memory of the calling block", file, line);
  __builtin_trap();
}

// The block has returned: what others still read of it is NaN, and an error under AddressSanitizer.
inline void Engine::retire(unsigned rank) {
  const auto take = [](unsigned char* memory, std::size_t size) EMU_FN {
    for (std::size_t i = 0; i < size; ++i) static_cast<volatile unsigned char*>(memory)[i] = 0xFF;
    EMU_ASAN(__asan_poison_memory_region(memory, size));
  };
  take(blocks_[rank].dynamic_shared, shared_size_);
  for (SharedArray* array = arrays_; array; array = array->next) {
    if (array->used(rank)) take(array->of(rank), array->size());
  }
}

inline unsigned char* Engine::allocate_shared(std::size_t size) {
#ifdef EMU_RACES  // from one arena, declared as a Java heap: the only memory TSan can be made to forget
  if (!arena_) {
    arena_ = static_cast<char*>(std::aligned_alloc(4096, kSharedArena));
    __tsan_java_init(std::uintptr_t(arena_), kSharedArena);
  }
  const std::size_t rounded = (size + 63) & ~std::size_t(63);
  if (arena_used_ + rounded > kSharedArena) std::abort();
  arena_used_ += rounded;
  return reinterpret_cast<unsigned char*>(arena_) + arena_used_ - rounded;
#else
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, size ? size : 1)) std::abort();
  return static_cast<unsigned char*>(memory);
#endif
}

inline void Engine::poison(void* memory, std::size_t size) {
  if (!size) return;
  EMU_ASAN(__asan_unpoison_memory_region(memory, size));                              // a block may have been retired
  EMU_TSAN(__tsan_java_alloc(std::uintptr_t(memory), (size + 7) & ~std::size_t(7)));  // forget earlier blocks
#if defined(__x86_64__)
  asm volatile("rep stosb" : "+D"(memory), "+c"(size) : "a"(0xFF) : "memory");  // (memset would be intercepted)
#else
  for (std::size_t i = 0; i < size; ++i) static_cast<volatile unsigned char*>(memory)[i] = 0xFF;
#endif
}

}  // namespace emu
