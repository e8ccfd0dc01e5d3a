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
  ++t.meetings;
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
  ++t.meetings;
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

}  // namespace emu
