// The RMDA update (Huang & Lee, ICLR 2022, Algorithm 1): shrink.cuh with X = W0 - V / beta, which has just
// taken in the gradient (see math.h), and the result mixed into W. Reads grad, X, W0, W and writes X, W once;
// groups that take three launches read X twice.
#include "rmda_step.h"

#include "shrink_launch.cuh"

namespace sparse_accel::cuda {
namespace {

// This step's numbers for one tensor.
template <class A>
struct RmdaNow {
  A rate;   // multiplies the gradient: lr, with the sign of `maximize` and the gradients' scale
  A decay;  // of the way that X is from W0
  A tau;
  int skip;  // gradients are not finite: leave everything as it is
};

template <class A>
struct ClockOptions {
  RmdaSettings settings;
  RmdaNow<A>* now;  // [tensors]
};

struct ClockEntry {
  RmdaClock clock;
  int tensor;
};

// Works out a step's numbers and advances the clock; one block per tensor. Comes first, so that the
// kernels of the update find the numbers ready and read no clock.
template <class A>
__global__ void __launch_bounds__(kThreads)
    rmda_clock_kernel(const __grid_constant__ Table<ClockEntry, ClockOptions<A>> table) {
  if (threadIdx.x != 0) return;
  const ClockEntry& entry = table.entries[find_entry(table)];
  const RmdaClock& clock = entry.clock;
  const RmdaSettings& settings = table.options.settings;
  const double step = clock.step ? double(*clock.step) : clock.step_value;
  const double alpha = clock.alpha ? *clock.alpha : clock.alpha_value;
  const double lr = settings.lr_tensor ? *settings.lr_tensor : settings.lr;
  const RmdaScalars scalars = rmda_scalars(step, alpha, lr, clock.strength);
  const double scale = settings.grad_scale ? double(*settings.grad_scale) : 1.0;
  RmdaNow<A> now;
  now.rate = A((settings.maximize ? -lr : lr) / scale);
  now.decay = A(scalars.decay);
  now.tau = A(scalars.tau);
  now.skip = settings.found_inf && *settings.found_inf != 0.f;
  table.options.now[entry.tensor] = now;
  if (now.skip) return;
  if (clock.step) *clock.step = float(step + 1.0);
  if (clock.alpha) *clock.alpha = scalars.alpha;
}

template <class T>
struct RmdaBody {
  using Element = T;
  using A = Compute<T>;
  struct Options {
    Prox prox;
    A momentum;
    const RmdaNow<A>* now;  // [tensors]
  };
  struct Entry {
    Target<A> target;
    T* param;
    const T* grad;
    A* point;
    const A* anchor;
    int tensor;
  };

  __device__ RmdaBody(const Options& options, const Entry& entry, std::int64_t start)
      : prox(options.prox),
        tau(options.now[entry.tensor].tau),
        param_(entry.param + start),
        grad_(entry.grad + start),
        point_(entry.point + start),
        anchor_(entry.anchor + start),
        now_(options.now[entry.tensor]),
        momentum_(options.momentum) {}
  __device__ bool skip() const { return now_.skip != 0; }

  // The numbers of N elements; those that a pass does not need are not loaded.
  template <int N>
  struct Loaded {
    Pack<A, N> grad, anchor, point, param;
  };
  static constexpr int kPacks = sizeof(T) == 2 ? 1 : 2;

  template <int N>
  __device__ __forceinline__ Loaded<N> load_first(std::int64_t offset) const {
    Loaded<N> loaded;
    loaded.grad = load<N>(grad_ + offset);
    loaded.anchor = load<N>(anchor_ + offset);
    loaded.point = load<N>(point_ + offset);
    return loaded;
  }
  template <int N>
  __device__ __forceinline__ Loaded<N> load_last(std::int64_t offset) const {
    Loaded<N> loaded{};
    if (momentum_ != A(1)) loaded.param = load<N>(param_ + offset);
    return loaded;
  }
  template <int N>
  __device__ __forceinline__ Loaded<N> load_all(std::int64_t offset) const {
    Loaded<N> loaded = load_first<N>(offset);
    loaded.param = load_last<N>(offset).param;
    return loaded;
  }
  template <int N>
  __device__ __forceinline__ Loaded<N> load_again(std::int64_t offset) const {
    Loaded<N> loaded = load_last<N>(offset);
    loaded.point = load<N>(point_ + offset);
    return loaded;
  }

  // X = W0 + decay (X - W0) - lr grad
  template <int N>
  __device__ __forceinline__ Pack<A, N> first(std::int64_t offset, const Loaded<N>& loaded) const {
    Pack<A, N> x;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A anchor = loaded.anchor.value[k];
      x.value[k] = anchor + now_.decay * (loaded.point.value[k] - anchor) - now_.rate * loaded.grad.value[k];
    }
    store<N>(point_ + offset, x);
    return x;
  }
  template <int N>
  __device__ __forceinline__ Pack<A, N> again(const Loaded<N>& loaded) const {
    return loaded.point;
  }
  // W = (1 - c) W + c shrunk
  template <int N>
  __device__ __forceinline__ void write(std::int64_t offset, const Pack<A, N>& shrunk, const Loaded<N>& loaded) const {
    Pack<A, N> param;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A target = momentum_ * shrunk.value[k];
      param.value[k] = (A(1) - momentum_) * loaded.param.value[k] + target;
    }
    store<N>(param_ + offset, param);
  }

  const Prox prox;
  const A tau;

 private:
  T* const param_;
  const T* const grad_;
  A* const point_;
  const A* const anchor_;
  const RmdaNow<A> now_;
  const A momentum_;
};

template <class T>
void launch(const std::vector<RmdaSegment>& segments, const std::vector<RmdaClock>& clocks,
            const RmdaSettings& settings, const Allocate& allocate, cudaStream_t stream) {
  using Body = RmdaBody<T>;
  using A = Compute<T>;
  auto* const now = static_cast<RmdaNow<A>*>(allocate(sizeof(RmdaNow<A>) * clocks.size()));
  std::vector<Work<ClockEntry>> ticks;
  for (std::size_t i = 0; i < clocks.size(); ++i) ticks.push_back({{clocks[i], int(i)}, 1});
  launch_tables(rmda_clock_kernel<A>, ticks, ClockOptions<A>{settings, now}, 0, stream);

  std::vector<ShrinkItem<Body>> items;
  for (const RmdaSegment& segment : segments) {
    const typename Body::Entry entry{{},
                                     static_cast<T*>(segment.param),
                                     static_cast<const T*>(segment.grad),
                                     static_cast<A*>(segment.point),
                                     static_cast<const A*>(segment.anchor),
                                     segment.tensor};
    const bool aligned =
        is_aligned(entry.param) && is_aligned(entry.grad) && is_aligned(entry.point) && is_aligned(entry.anchor);
    items.push_back({entry, segment.layout, aligned, segment.tensor, segment.copies});
  }
  Shrink<Body>({settings.prox, A(settings.momentum), now}, allocate, stream).run(items, nullptr);
}

}  // namespace

cudaError_t rmda_step(DType dtype, const std::vector<RmdaSegment>& segments, const std::vector<RmdaClock>& clocks,
                      const RmdaSettings& settings, const Allocate& allocate, cudaStream_t stream) {
  with_type(dtype, [&](auto zero) { launch<decltype(zero)>(segments, clocks, settings, allocate, stream); });
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
