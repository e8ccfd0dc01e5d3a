#pragma once
// Engine's member functions; included by emu_engine.h. (No standard library between fibers: it would be
// instrumented by the sanitizers and look like the kernel's own accesses.)

namespace emu {

inline unsigned Engine::random(unsigned below) {
  rng_ ^= rng_ << 13;
  rng_ ^= rng_ >> 7;
  rng_ ^= rng_ << 17;
  return unsigned((rng_ >> 32) % below);
}

inline Thread* Engine::next() {
  if (error_[0]) return &host_;
  if (queue_size_ == 0) {
    if (live_) report_deadlock();
    return &host_;
  }
  unsigned& head = queue_[queue_head_ % kMaxThreads];
  if (config.order == Order::random) {
    unsigned& other = queue_[(queue_head_ + random(queue_size_)) % kMaxThreads];
    const unsigned chosen = other;
    other = head;
    head = chosen;
  }
  ++queue_head_;
  --queue_size_;
  return &threads_[head];
}

inline void Engine::go(Thread* to, bool dying) {
  Thread* const from = current_;
  if (to == from) return;
  current_ = to;
  ::threadIdx = to->index;
  (void)dying;
  EMU_ASAN(__sanitizer_start_switch_fiber(dying ? nullptr : &from->asan_stack, to == &host_ ? host_stack_ : to->stack,
                                          to == &host_ ? host_stack_size_ : kStack));
  EMU_TSAN(__tsan_switch_to_fiber(to->tsan[block_serial_ & 1], 1));
  from->context.switch_to(to->context);
  EMU_ASAN(__sanitizer_finish_switch_fiber(from->asan_stack, nullptr, nullptr));
}

// ---- errors: the message is kept, the block abandoned, and run_block throws on the host's stack

inline void Engine::fail(const char* format, ...) {
  const int used = std::snprintf(error_, sizeof error_, "block (%u,%u,%u) thread (%u,%u,%u): ", blockIdx.x, blockIdx.y,
                                 blockIdx.z, ::threadIdx.x, ::threadIdx.y, ::threadIdx.z);
  va_list args;
  va_start(args, format);
  std::vsnprintf(error_ + used, sizeof error_ - used, format, args);
  va_end(args);
  EMU_TSAN(__tsan_release(&tag_end_));
  if (current_ != &host_) go(&host_);
}

inline void Engine::report_deadlock() {  // groups the blocked threads by where they wait
  std::string text;
  char line[256];
  std::vector<char> seen(threads_in_block_, 0);
  for (unsigned i = 0; i < threads_in_block_; ++i) {
    const Thread& t = threads_[i];
    if (seen[i]) continue;
    unsigned count = 0;
    for (unsigned j = i; j < threads_in_block_; ++j) {
      const Thread& u = threads_[j];
      if (u.state != t.state || (t.state != done && (u.line != t.line || u.mask != t.mask))) continue;
      seen[j] = 1;
      ++count;
    }
    if (t.state == done) {
      std::snprintf(line, sizeof line, "\n  %u thread(s) returned, first (%u,%u,%u)", count, t.index.x, t.index.y,
                    t.index.z);
    } else {
      std::snprintf(line, sizeof line, "\n  %u thread(s) wait in %s (mask %08x) at %s:%d, first (%u,%u,%u)", count,
                    state_name[t.state], t.mask, t.file, t.line, t.index.x, t.index.y, t.index.z);
    }
    text += line;
  }
  fail("DEADLOCK: divergent barrier or warp operation%s", text.c_str());
}

// ---- block barrier

inline void Engine::release_barrier() {
  if (waiting_ == 0 || waiting_ != live_) return;
  if (live_ != threads_in_block_) {
    return fail("DIVERGENT BARRIER: %u of %u threads reach __syncthreads at %s:%d, the other %u have returned", live_,
                threads_in_block_, barrier_file_, barrier_line_, threads_in_block_ - live_);
  }
  true_last_ = true_now_;
  arrived_last_ = int(waiting_);
  true_now_ = 0;
  waiting_ = 0;
  for (unsigned i = 0; i < threads_in_block_; ++i) {
    const unsigned j = config.order == Order::reverse ? threads_in_block_ - 1 - i : i;
    if (threads_[j].state != barrier) continue;
    threads_[j].state = ready;
    push(j);
  }
}

inline int Engine::barrier_wait(bool predicate, Predicate wanted, const char* file, int line) {
  Thread& t = *current_;
  if (waiting_ && (line != barrier_line_ || (file != barrier_file_ && std::strcmp(file, barrier_file_)))) {
    fail("DIVERGENT BARRIER: reaches __syncthreads at %s:%d while %u thread(s) wait at %s:%d", file, line, waiting_,
         barrier_file_, barrier_line_);
  }
  t.state = barrier;
  t.file = barrier_file_ = file;
  t.line = barrier_line_ = line;
  t.mask = 0;
  ++waiting_;
  true_now_ += predicate;
  EMU_TSAN(char* tag = &tags_[block_serial_ & 1].barrier[t.barriers++ & 1]; __tsan_release(tag));
  release_barrier();
  go(next());
  EMU_TSAN(__tsan_acquire(tag));
  if (wanted == count_true) return true_last_;
  return wanted == all_true ? true_last_ == arrived_last_ : true_last_ != 0;
}

// ---- warp operations: the last lane of the mask to arrive computes everyone's result

inline void Engine::compute_warp(const Thread& last, unsigned mask) {
  Thread* const lanes = threads_ + last.linear / 32 * 32;
  std::int64_t all = last.state == reduce && last.reduction != reduce_add ? last.value : 0;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const std::int64_t value = lanes[i].value;
    if (last.state == vote) {
      all |= std::int64_t(value & 1) << i;
    } else if (last.state == reduce) {
      if (last.reduction == reduce_add) all += value;
      if (last.reduction == reduce_min && value < all) all = value;
      if (last.reduction == reduce_max && value > all) all = value;
    } else if (last.state == shuffle) {
      const unsigned source = lanes[i].source;
      lanes[i].result = mask >> source & 1 ? lanes[source].value : -1;  // an absent lane gives a NaN
    } else if (last.state == match) {
      lanes[i].result = 0;
      for (unsigned j = 0; j < 32; ++j) {
        if (mask >> j & 1 && lanes[j].value == value) lanes[i].result |= 1u << j;
      }
    }
  }
  for (unsigned i = 0; i < 32; ++i) {
    if (mask >> i & 1 && (last.state == vote || last.state == reduce)) lanes[i].result = all;
  }
}

inline void Engine::release_warp(Thread& last) {
  const unsigned warp = last.linear / 32, mask = last.mask & warp_live_[warp];
  if ((warp_waiting_[warp] & mask) != mask) return;
  Thread* const lanes = threads_ + warp * 32;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const Thread& other = lanes[i];
    if (other.state != last.state || other.mask != last.mask || other.line != last.line ||
        other.reduction != last.reduction) {
      return;  // not the same operation: the mask's lanes never meet
    }
  }
  compute_warp(last, mask);
  EMU_TSAN(if (last.state == syncwarp) {  // (shuffles and votes do not order memory)
    Tags& tags = tags_[block_serial_ & 1];
    char* const tag = &tags.warp[warp][warp_syncs_++ % 64];
    for (unsigned i = 0; i < 32; ++i) {
      if (mask >> i & 1) __tsan_acquire(&tags.lane[warp * 32 + i]), lanes[i].tag = tag;
    }
    __tsan_release(tag);
  });
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned j = config.order == Order::reverse ? 31 - i : i;
    if (!(mask >> j & 1)) continue;
    lanes[j].state = ready;
    push(warp * 32 + j);
  }
  warp_waiting_[warp] &= ~mask;
}

inline std::int64_t Engine::warp_wait(State operation, int reduction, unsigned mask, std::int64_t value,
                                      unsigned source, const char* file, int line) {
  Thread& t = *current_;
  if (!(mask >> (t.linear & 31) & 1)) {
    fail("warp %s at %s:%d: mask %08x does not name the calling lane", state_name[operation], file, line, mask);
  }
  t.state = operation;
  t.reduction = reduction;
  t.mask = mask;
  t.value = value;
  t.source = source;
  t.file = file;
  t.line = line;
  EMU_TSAN(if (operation == syncwarp) __tsan_release(&tags_[block_serial_ & 1].lane[t.linear]));
  warp_waiting_[t.linear / 32] |= 1u << (t.linear & 31);
  release_warp(t);
  go(next());
  EMU_TSAN(if (operation == syncwarp) __tsan_acquire(t.tag));
  return t.result;
}

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
    void* const memory = mmap(nullptr, stacks * kStride, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
  t.barriers = 0;
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
  if (current_ != &host_) throw error("launch inside a kernel");
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y * grid.z;
  if (!threads || threads > kMaxThreads || !blocks || block.z > 64 || grid.y > 65535 || grid.z > 65535 ||
      grid.x > 0x7fffffffu || shared > 227 * 1024) {
    char text[160];
    std::snprintf(text, sizeof text, "invalid launch configuration: grid (%u,%u,%u) block (%u,%u,%u) shared memory %zu",
                  grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    throw error(text);
  }
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
#ifdef __SANITIZE_THREAD__
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
#ifdef __SANITIZE_THREAD__  // from one arena, declared as a Java heap: the only memory TSan can be made to forget
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
