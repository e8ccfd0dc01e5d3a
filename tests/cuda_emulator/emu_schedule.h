#pragma once
// Engine's member functions, first part: which thread runs next, barriers, warp operations. Included by emu_engine.h.
// (No standard library between fibers: the sanitizers would instrument it and take it for the kernel's own accesses.)

namespace emu {

inline unsigned Engine::random(unsigned below) {
  rng_ ^= rng_ << 13;
  rng_ ^= rng_ >> 7;
  rng_ ^= rng_ << 17;
  return unsigned((rng_ >> 32) % below);
}

inline Thread* Engine::next() {
  if (error_[0]) return &host_;
  if (!choose_block()) {
    if (live_) report_deadlock();
    return &host_;
  }
  Block& block = blocks_[chosen_];
  unsigned& head = block.queue[block.queue_head % kMaxThreads];
  if (config.order == Order::random) {
    unsigned& other = block.queue[(block.queue_head + random(block.queue_size)) % kMaxThreads];
    const unsigned chosen = other;
    other = head;
    head = chosen;
  }
  ++block.queue_head;
  --block.queue_size;
  return threads_of(block) + head;
}

// A block goes on as long as it can: the blocks of a cluster are never in step.
inline bool Engine::choose_block() {
  if (blocks_[chosen_].queue_size) return true;
  const unsigned first = config.order == Order::random && cluster_ > 1 ? random(cluster_) : 0;
  for (unsigned i = 0; i < cluster_; ++i) {
    chosen_ = config.order == Order::reverse ? cluster_ - 1 - i : (first + i) % cluster_;
    if (blocks_[chosen_].queue_size) return true;
  }
  return false;
}

inline void Engine::go(Thread* to, bool dying) {
  Thread* const from = current_;
  if (to == from) return;
  current_ = to;
  ::threadIdx = to->index;
  if (to->block != from->block) ::blockIdx = blocks_[to->block].index;
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
  const unsigned all = threads_in_block_ * cluster_;
  std::vector<char> seen(all, 0);
  for (unsigned i = 0; i < all; ++i) {
    const Thread& t = threads_[i];
    if (seen[i]) continue;
    unsigned count = 0;
    for (unsigned j = i; j < all; ++j) {
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

inline void Engine::release_barrier(Block& block) {
  if (block.waiting == 0 || block.waiting != block.live) return;
  if (block.live != threads_in_block_) {
    return fail("DIVERGENT BARRIER: %u of %u threads reach __syncthreads at %s:%d, the other %u have returned",
                block.live, threads_in_block_, block.barrier_file, block.barrier_line, threads_in_block_ - block.live);
  }
  block.true_last = block.true_now;
  block.arrived_last = int(block.waiting);
  block.true_now = 0;
  block.waiting = 0;
  Thread* const threads = threads_of(block);
  for (unsigned i = 0; i < threads_in_block_; ++i) {
    const unsigned j = config.order == Order::reverse ? threads_in_block_ - 1 - i : i;
    if (threads[j].state != barrier) continue;
    threads[j].state = ready;
    push(block, j);
  }
}

inline int Engine::barrier_wait(bool predicate, Predicate wanted, const char* file, int line) {
  Thread& t = *current_;
  Block& block = block_of(t);
  if (block.waiting &&
      (line != block.barrier_line || (file != block.barrier_file && std::strcmp(file, block.barrier_file)))) {
    fail("DIVERGENT BARRIER: reaches __syncthreads at %s:%d while %u thread(s) wait at %s:%d", file, line,
         block.waiting, block.barrier_file, block.barrier_line);
  }
  t.state = barrier;
  ++t.meetings;
  t.file = block.barrier_file = file;
  t.line = block.barrier_line = line;
  t.mask = 0;
  ++block.waiting;
  block.true_now += predicate;
  EMU_TSAN(char* tag = &tags(t.block).barrier[t.barriers++ & 1]; __tsan_release(tag));
  release_barrier(block);
  go(next());
  EMU_TSAN(__tsan_acquire(tag));
  if (wanted == count_true) return block.true_last;
  return wanted == all_true ? block.true_last == block.arrived_last : block.true_last != 0;
}

// ---- barrier of all blocks of the cluster

inline void Engine::release_cluster() {
  const unsigned all = threads_in_block_ * cluster_;
  if (cluster_waiting_ == 0 || cluster_waiting_ != live_) return;
  if (live_ != all) {
    return fail("DIVERGENT CLUSTER BARRIER: %u of %u threads reach cluster_sync at %s:%d, the other %u have returned",
                live_, all, cluster_file_, cluster_line_, all - live_);
  }
  cluster_waiting_ = 0;
  for (unsigned i = 0; i < all; ++i) {
    Thread& t = threads_[config.order == Order::reverse ? all - 1 - i : i];
    t.state = ready;
    push(block_of(t), t.linear);
  }
}

inline void Engine::cluster_wait(const char* file, int line) {
  Thread& t = *current_;
  if (cluster_waiting_ && (line != cluster_line_ || (file != cluster_file_ && std::strcmp(file, cluster_file_)))) {
    fail("DIVERGENT CLUSTER BARRIER: reaches cluster_sync at %s:%d while %u thread(s) wait at %s:%d", file, line,
         cluster_waiting_, cluster_file_, cluster_line_);
  }
  t.state = cluster_barrier;
  ++t.meetings;
  t.file = cluster_file_ = file;
  t.line = cluster_line_ = line;
  t.mask = 0;
  ++cluster_waiting_;
  EMU_TSAN(char* tag = &tags(0).cluster[t.cluster_barriers++ & 1]; __tsan_release(tag));
  release_cluster();
  go(next());
  EMU_TSAN(__tsan_acquire(tag));
}

// ---- warp operations: the last lane of the mask to arrive computes everyone's result

inline void Engine::compute_warp(const Thread& last, unsigned mask) {
  Thread* const lanes = threads_of(block_of(last)) + last.linear / 32 * 32;
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
  Block& block = block_of(last);
  const unsigned warp = last.linear / 32, mask = last.mask & block.warp_live[warp];
  if ((block.warp_waiting[warp] & mask) != mask) return;
  Thread* const lanes = threads_of(block) + warp * 32;
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
    Tags& own = tags(last.block);
    char* const tag = &own.warp[warp][warp_syncs_++ % 64];
    for (unsigned i = 0; i < 32; ++i) {
      if (mask >> i & 1) __tsan_acquire(&own.lane[warp * 32 + i]), lanes[i].tag = tag;
    }
    __tsan_release(tag);
  });
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned j = config.order == Order::reverse ? 31 - i : i;
    if (!(mask >> j & 1)) continue;
    lanes[j].state = ready;
    push(block, warp * 32 + j);
  }
  block.warp_waiting[warp] &= ~mask;
}

inline std::int64_t Engine::warp_wait(State operation, int reduction, unsigned mask, std::int64_t value,
                                      unsigned source, const char* file, int line) {
  Thread& t = *current_;
  if (!(mask >> (t.linear & 31) & 1)) {
    fail("warp %s at %s:%d: mask %08x does not name the calling lane", state_name[operation], file, line, mask);
  }
  t.state = operation;
  ++t.meetings;
  t.reduction = reduction;
  t.mask = mask;
  t.value = value;
  t.source = source;
  t.file = file;
  t.line = line;
  EMU_TSAN(if (operation == syncwarp) __tsan_release(&tags(t.block).lane[t.linear]));
  block_of(t).warp_waiting[t.linear / 32] |= 1u << (t.linear & 31);
  release_warp(t);
  go(next());
  EMU_TSAN(if (operation == syncwarp) __tsan_acquire(t.tag));
  return t.result;
}

}  // namespace emu
