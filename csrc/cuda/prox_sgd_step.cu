// The ProxSGD update (Yang et al., ICLR 2020): shrink.cuh with x = W - lr M, of the momentum M that has just taken in
// the gradient. Reads grad, M, W and writes M, W once; groups that take three launches read M and W twice.
#include "prox_sgd_step.h"

#include "shrink_launch.cuh"

namespace sparse_accel::cuda {
namespace {

// This step's numbers for one tensor.
template <class A>
struct SgdNow {
  A lr;
  A grad_factor;  // rho, with the sign of `maximize` and the gradients' scale
  A tau;
  int skip;  // gradients are not finite: leave everything as it is
};

template <class A>
struct SgdClockOptions {
  SgdSettings settings;
  SgdNow<A>* now;  // [tensors]
};

struct SgdClockEntry {
  SgdClock clock;
  int tensor;
};

// Works out a step's numbers and advances the clock; one block per tensor, before the kernels of the update.
template <class A>
__global__ void __launch_bounds__(kThreads)
    sgd_clock_kernel(const __grid_constant__ Table<SgdClockEntry, SgdClockOptions<A>> table) {
  if (threadIdx.x != 0) return;
  const SgdClockEntry& entry = table.entries[find_entry(table)];
  const SgdSettings& settings = table.options.settings;
  const double lr = settings.lr_tensor ? *settings.lr_tensor : settings.lr;
  const double scale = settings.grad_scale ? double(*settings.grad_scale) : 1.0;
  SgdNow<A> now;
  now.lr = A(lr);
  now.grad_factor = A((settings.maximize ? -settings.rho : settings.rho) / scale);
  now.tau = A(lr * entry.clock.strength);
  now.skip = settings.found_inf && *settings.found_inf != 0.f;
  table.options.now[entry.tensor] = now;
  if (entry.clock.step && !now.skip) *entry.clock.step += 1.f;
}

template <class T>
struct SgdBody {
  using Element = T;
  using A = Compute<T>;
  struct Options {
    Prox prox;
    A keep;                // of the momentum: 1 - rho
    const SgdNow<A>* now;  // [tensors]
  };
  struct Entry {
    Target<A> target;
    T* param;
    const T* grad;
    A* buffer;
    int tensor;
  };

  __device__ SgdBody(const Options& options, const Entry& entry, std::int64_t start)
      : prox(options.prox),
        tau(options.now[entry.tensor].tau),
        param_(entry.param + start),
        grad_(entry.grad + start),
        buffer_(entry.buffer + start),
        now_(options.now[entry.tensor]),
        keep_(options.keep) {}
  __device__ bool skip() const { return now_.skip != 0; }

  // The numbers of N elements; those that a pass does not need are not loaded.
  template <int N>
  struct Loaded {
    Pack<A, N> grad, buffer, param;
  };
  static constexpr int kPacks = sizeof(T) == 2 ? 1 : 2;

  template <int N>
  __device__ __forceinline__ Loaded<N> load_first(std::int64_t offset) const {
    Loaded<N> loaded = load_again<N>(offset);
    loaded.grad = load<N>(grad_ + offset);
    return loaded;
  }
  template <int N>
  __device__ __forceinline__ Loaded<N> load_last(std::int64_t) const {
    return {};
  }
  template <int N>
  __device__ __forceinline__ Loaded<N> load_all(std::int64_t offset) const {
    return load_first<N>(offset);
  }
  template <int N>
  __device__ __forceinline__ Loaded<N> load_again(std::int64_t offset) const {
    Loaded<N> loaded{};
    loaded.buffer = load<N>(buffer_ + offset);
    loaded.param = load<N>(param_ + offset);
    return loaded;
  }

  // M = keep M + grad_factor grad; x = W - lr M
  template <int N>
  __device__ __forceinline__ Pack<A, N> first(std::int64_t offset, const Loaded<N>& loaded) const {
    Pack<A, N> x, buffer;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      buffer.value[k] = keep_ * loaded.buffer.value[k] + now_.grad_factor * loaded.grad.value[k];
      x.value[k] = loaded.param.value[k] - now_.lr * buffer.value[k];
    }
    store<N>(buffer_ + offset, buffer);
    return x;
  }
  template <int N>
  __device__ __forceinline__ Pack<A, N> again(const Loaded<N>& loaded) const {
    Pack<A, N> x;
#pragma unroll
    for (int k = 0; k < N; ++k) x.value[k] = loaded.param.value[k] - now_.lr * loaded.buffer.value[k];
    return x;
  }
  template <int N>
  __device__ __forceinline__ void write(std::int64_t offset, const Pack<A, N>& shrunk, const Loaded<N>&) const {
    store<N>(param_ + offset, shrunk);
  }

  const Prox prox;
  const A tau;

 private:
  T* const param_;
  const T* const grad_;
  A* const buffer_;
  const SgdNow<A> now_;
  const A keep_;
};

template <class T>
void launch(const std::vector<SgdSegment>& segments, const std::vector<SgdClock>& clocks, const SgdSettings& settings,
            const Allocate& allocate, cudaStream_t stream) {
  using Body = SgdBody<T>;
  using A = Compute<T>;
  auto* const now = static_cast<SgdNow<A>*>(allocate(sizeof(SgdNow<A>) * clocks.size()));
  std::vector<Work<SgdClockEntry>> ticks;
  for (std::size_t i = 0; i < clocks.size(); ++i) ticks.push_back({{clocks[i], int(i)}, 1});
  launch_tables(sgd_clock_kernel<A>, ticks, SgdClockOptions<A>{settings, now}, 0, stream);

  std::vector<ShrinkItem<Body>> items;
  for (const SgdSegment& segment : segments) {
    const typename Body::Entry entry{{},
                                     static_cast<T*>(segment.param),
                                     static_cast<const T*>(segment.grad),
                                     static_cast<A*>(segment.buffer),
                                     segment.tensor};
    const bool aligned = is_aligned(entry.param) && is_aligned(entry.grad) && is_aligned(entry.buffer);
    items.push_back({entry, segment.layout, aligned, segment.tensor, segment.copies});
  }
  Shrink<Body>({settings.prox, A(1 - settings.rho), now}, allocate, stream).run(items, nullptr);
}

}  // namespace

cudaError_t prox_sgd_step(DType dtype, const std::vector<SgdSegment>& segments, const std::vector<SgdClock>& clocks,
                          const SgdSettings& settings, const Allocate& allocate, cudaStream_t stream) {
  with_type(dtype, [&](auto zero) { launch<decltype(zero)>(segments, clocks, settings, allocate, stream); });
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
