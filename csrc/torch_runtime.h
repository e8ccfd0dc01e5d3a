#pragma once
// The little that is asked of torch while running: its threads, its memory, its CUDA streams. Behind it are torch's
// stable C functions and DLPack's exchange table, so that one build serves every release.
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "tensor.h"

namespace sparse_accel {

// torch.Tensor's table; set once, when the module is imported.
void set_exchange(const DLPackExchangeAPI* table);
const DLPackExchangeAPI& exchange();

// As torch names it: "DEFAULT", "AVX2", "AVX512". Set before the first kernel runs.
void set_cpu_capability(std::string name);
const std::string& cpu_capability();

std::int64_t num_threads();
std::int64_t thread_num();  // inside parallel_for

// run(first, last, context) on torch's threads for parts of [begin, end) of at least `grain`; must not throw.
void run_parallel(std::int64_t begin, std::int64_t end, std::int64_t grain,
                  void (*run)(std::int64_t, std::int64_t, void*), void* context);

// body(first, last) likewise; the first exception is thrown on, once all threads have ended.
template <class Body>
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, const Body& body) {
  if (begin >= end) return;
  struct Context {
    const Body& body;
    std::mutex mutex;
    std::exception_ptr error;
  } context{body, {}, nullptr};
  run_parallel(
      begin, end, grain,
      [](std::int64_t first, std::int64_t last, void* pointer) {
        Context& own = *static_cast<Context*>(pointer);
        try {
          own.body(first, last);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(own.mutex);
          if (!own.error) own.error = std::current_exception();
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

// join of body(first, last) over parts of [begin, end); every thread has one part.
template <class T, class Body, class Join>
T parallel_reduce(std::int64_t begin, std::int64_t end, std::int64_t grain, const T& zero, const Body& body,
                  const Join& join) {
  struct Slot {
    T value;
  };
  std::vector<Slot> found(std::size_t(num_threads()), Slot{zero});
  parallel_for(begin, end, grain, [&](std::int64_t first, std::int64_t last) {
    found[std::size_t(thread_num())].value = body(first, last, zero);
  });
  T total = zero;
  for (const Slot& slot : found) total = join(total, slot.value);
  return total;
}

// Bytes from torch's allocator for a device; on CUDA they go back to the caching allocator, behind the work that is
// on the current stream by then.
class Memory {
 public:
  Memory(Device device, std::size_t bytes);
  void* get() const;

 private:
  std::unique_ptr<DLManagedTensorVersioned, void (*)(DLManagedTensorVersioned*)> tensor_;
};

// torch's current stream of a device.
void* current_stream(Device device);

}  // namespace sparse_accel
