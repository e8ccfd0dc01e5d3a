#include "torch_runtime.h"

// The functions that torch 2.11 has, whatever release these headers are of.
#define TORCH_TARGET_VERSION 0x020b000000000000
#define TORCH_STABLE_ONLY
#include <torch/csrc/stable/c/shim.h>

#include <utility>

namespace sparse_accel {
namespace {

const DLPackExchangeAPI* exchange_table = nullptr;
std::string capability = "DEFAULT";

void check(AOTITorchError error, const char* name) {
  CHECK_RUN(error == AOTI_TORCH_SUCCESS, "sparse_accel: ", name, " of torch failed");
}

std::int64_t number(AOTITorchError (*get)(std::uint32_t*), const char* name) {
  std::uint32_t out = 0;
  check(get(&out), name);
  return out;
}

}  // namespace

void set_exchange(const DLPackExchangeAPI* table) { exchange_table = table; }

const DLPackExchangeAPI& exchange() { return *exchange_table; }

void set_cpu_capability(std::string name) { capability = std::move(name); }

const std::string& cpu_capability() { return capability; }

std::int64_t num_threads() { return number(&torch_get_num_threads, "torch_get_num_threads"); }

std::int64_t thread_num() { return number(&torch_get_thread_idx, "torch_get_thread_idx"); }

void run_parallel(std::int64_t begin, std::int64_t end, std::int64_t grain,
                  void (*run)(std::int64_t, std::int64_t, void*), void* context) {
  check(torch_parallel_for(begin, end, grain, run, context), "torch_parallel_for");
}

Memory::Memory(Device device, std::size_t bytes)
    : tensor_(nullptr, [](DLManagedTensorVersioned* own) {
        if (own->deleter) own->deleter(own);
      }) {
  auto size = static_cast<std::int64_t>(bytes);
  DLTensor wanted{nullptr, {device.type, device.index}, 1, {kDLUInt, 8, 1}, &size, nullptr, 0};
  DLManagedTensorVersioned* out = nullptr;
  std::string why;
  const auto note = [](void* context, const char* kind, const char* text) {
    *static_cast<std::string*>(context) = message(kind, ": ", text);
  };
  CHECK_RUN(exchange().managed_tensor_allocator(&wanted, &out, &why, note) == 0, "sparse_accel: no ", bytes,
            " bytes of scratch memory on ", device, ": ", why);
  tensor_.reset(out);
}

void* Memory::get() const { return static_cast<char*>(tensor_->dl_tensor.data) + tensor_->dl_tensor.byte_offset; }

void* current_stream(Device device) {
  void* stream = nullptr;
  CHECK_RUN(exchange().current_work_stream(device.type, device.index, &stream) == 0,
            "sparse_accel: no current stream of ", device);
  return stream;
}

}  // namespace sparse_accel
