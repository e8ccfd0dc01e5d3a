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
  const unsigned warp = t.linear / 32;
  t.state = done;
  --e.live_;
  e.warp_live_[warp] &= ~(1u << (t.linear & 31));
  for (unsigned i = 0; i < 32; ++i) {  // those who waited for this lane no longer need to
    Thread& other = e.threads_[warp * 32 + i];
    if (e.warp_waiting_[warp] >> i & 1 && other.state >= syncwarp) e.release_warp(other);
  }
  e.release_barrier();
  e.go(e.next(), true);
  __builtin_trap();
}

inline void Engine::set_up() {
  if (!threads_) {
    threads_ = static_cast<Thread*>(std::calloc(kMaxThreads, sizeof(Thread)));
    const std::size_t stacks = 2 * kMaxThreads + 1;
    void* const memory =
        mmap(nullptr, stacks * kStride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!threads_ || memory == MAP_FAILED) throw error("no memory for the stacks of the emulated threads");
    stacks_ = static_cast<char*>(memory);
    for (unsigned i = 0; i < stacks; ++i) mprotect(stacks_ + i * kStride, 4096, PROT_NONE);  // guard pages
    EMU_TSAN(host_.tsan[0] = host_.tsan[1] = __tsan_get_current_fiber());
  }
  EMU_TSAN(for (unsigned i = 0; i < threads_in_block_; ++i) {
    for (void*& fiber : threads_[i].tsan) {
      if (fiber) continue;
      fiber = __tsan_create_fiber(0);
      __tsan_set_fiber_name(fiber, ("CUDA thread " + std::to_string(i)).c_str());
    }
  });
}

inline void Engine::start_thread(unsigned i) {
  Thread& t = threads_[i];
  t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  t.linear = i;
  t.state = ready;
  t.barriers = t.meetings = 0;
  t.fenced = false;
  t.stack = stacks_ + i * kStride + 4096;
  // Two sets of stacks and TSan fibers: no order between neighbouring blocks.
  EMU_TSAN(t.stack += (block_serial_ & 1) * kMaxThreads * kStride);
  EMU_ASAN(if (dirty_stacks_) __asan_unpoison_memory_region(t.stack, kStack));
  warp_live_[i / 32] |= 1u << (i & 31);
  t.context.prepare(t.stack, i, &Engine::thread_main);
  push(config.order == Order::reverse ? threads_in_block_ - 1 - i : i);
}

inline void Engine::run_block() {
  ++block_serial_;
  live_ = threads_in_block_;
  queue_head_ = queue_size_ = waiting_ = 0;
  true_now_ = 0;
  std::memset(warp_live_, 0, sizeof warp_live_);
  std::memset(warp_waiting_, 0, sizeof warp_waiting_);
  for (unsigned i = 0; i < threads_in_block_; ++i) start_thread(i);
  go(next());
  dirty_stacks_ = error_[0] != 0;
  if (dirty_stacks_) throw_error();
}

inline void Engine::throw_error() {
  EMU_TSAN(for (unsigned i = 0; i < threads_in_block_; ++i) {
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

inline void Engine::run(dim3 grid, dim3 block, std::size_t shared, void (*body)(void*), void* argument) {
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
  ++launches_;
  threads_in_block_ = unsigned(threads);
  set_up();
  gridDim = grid;
  blockDim = block;
  body_ = body;
  argument_ = argument;
  rng_ = config.seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  std::vector<std::uint32_t> shuffled;
  if (config.order == Order::random) {
    shuffled.resize(blocks);
    for (std::uint32_t i = 0; i < blocks; ++i) {
      const std::uint32_t j = random(i + 1);
      shuffled[i] = shuffled[j];
      shuffled[j] = i;
    }
  }
  EMU_TSAN(__tsan_release(&tag_start_));
#ifdef EMU_RACES
  if (!dynamic_shared_) dynamic_shared_ = allocate_shared(kDynamicShared);
#else
  std::free(dynamic_shared_);  // a fresh allocation of the exact size: red zones
  dynamic_shared_ = allocate_shared(shared);
#endif
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t k = config.order == Order::random    ? shuffled[i]
                            : config.order == Order::reverse ? blocks - 1 - i
                                                             : i;
    blockIdx = {unsigned(k % grid.x), unsigned(k / grid.x % grid.y), unsigned(k / grid.x / grid.y)};
    poison(dynamic_shared_, shared);
    run_block();
  }
  EMU_TSAN(__tsan_acquire(&tag_end_));
}

// ---- shared memory

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
  EMU_TSAN(__tsan_java_alloc(std::uintptr_t(memory), (size + 7) & ~std::size_t(7)));  // forget earlier blocks
#if defined(__x86_64__)
  asm volatile("rep stosb" : "+D"(memory), "+c"(size) : "a"(0xFF) : "memory");  // (memset would be intercepted)
#else
  for (std::size_t i = 0; i < size; ++i) static_cast<volatile unsigned char*>(memory)[i] = 0xFF;
#endif
}

}  // namespace emu
