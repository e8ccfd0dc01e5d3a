#pragma once
// Fibers: stacks, switching between them, and what AddressSanitizer and ThreadSanitizer must be told of it.
#include <cstddef>
#include <cstdint>

#if defined(__has_feature)  // clang
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#endif

// The engine's own code must not be instrumented: it would look like races between CUDA threads.
#define EMU_FN __attribute__((no_sanitize("thread", "address", "undefined")))

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN(...) __VA_ARGS__
#else
#define EMU_ASAN(...)
#endif

// Kernels whose accesses are counted are instrumented in the same way (emu_count.h).
#if defined(__SANITIZE_THREAD__) && !defined(EMU_COUNT)
#define EMU_RACES
#endif

#if defined(EMU_RACES)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_set_fiber_name(void*, const char*);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_java_init(std::uintptr_t, std::uintptr_t);
void __tsan_java_alloc(std::uintptr_t, std::uintptr_t);
}
#define EMU_TSAN(...) __VA_ARGS__
#else
#define EMU_TSAN(...)
#endif

namespace emu {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kStack = 256 << 10;  // instrumented frames are larger
#else
constexpr std::size_t kStack = 64 << 10;
#endif

using FiberEntry = void (*)();

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)

#if defined(__clang__)
#define EMU_NAKED __attribute__((naked, noinline))
#else
#define EMU_NAKED __attribute__((naked, noipa))
#endif

// Saves the callee-saved registers and the stack pointer in *save, and resumes `to`.
EMU_NAKED inline void switch_stack(void** /*save*/, void* /*to*/) {
  asm volatile(
      "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; mov %rsp,(%rdi); mov %rsi,%rsp;"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; pop %rcx; jmp *%rcx");
}

class Context {
 public:
  // Tops of stacks are spread over cache sets by `color`.
  EMU_FN void prepare(char* stack, unsigned color, FiberEntry entry) {
    void** const top = reinterpret_cast<void**>(stack + kStack - 64 - (color % 32) * 128);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    stack_pointer_ = top - 8;  // six registers, then the return address
  }
  EMU_FN void switch_to(Context& to) { switch_stack(&stack_pointer_, to.stack_pointer_); }

 private:
  void* stack_pointer_;
};

#else  // other processors: slower (a system call per switch), the same behaviour
}  // namespace emu
#include <ucontext.h>
namespace emu {

class Context {
 public:
  EMU_FN void prepare(char* stack, unsigned, FiberEntry entry) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  EMU_FN void switch_to(Context& to) { swapcontext(&context_, &to.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace emu
