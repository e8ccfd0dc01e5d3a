// Proximal operators of group penalties, in place: shrink.cuh with x read from the tensor itself.
#include "prox.h"

#include "shrink_launch.cuh"

namespace sparse_accel::cuda {
namespace {

template <class T>
struct ProxBody {
  using Element = T;
  using A = Compute<T>;
  struct Options {
    Prox prox;
  };
  struct Entry {
    Target<A> target;
    T* data;
    A tau;
  };

  __device__ ProxBody(const Options& options, const Entry& entry, std::int64_t start)
      : prox(options.prox), tau(entry.tau), data_(entry.data + start) {}
  __device__ bool skip() const { return false; }

  static constexpr int kPacks = sizeof(T) == 2 ? 2 : 4;
  struct Nothing {};

  template <int N>
  __device__ __forceinline__ Pack<A, N> load_first(std::int64_t offset) const {
    return load<N>(data_ + offset);
  }
  template <int N>
  __device__ __forceinline__ Nothing load_last(std::int64_t) const {
    return {};
  }
  template <int N>
  __device__ __forceinline__ Pack<A, N> load_all(std::int64_t offset) const {
    return load<N>(data_ + offset);
  }
  template <int N>
  __device__ __forceinline__ Pack<A, N> load_again(std::int64_t offset) const {
    return load<N>(data_ + offset);
  }
  template <int N>
  __device__ __forceinline__ Pack<A, N> first(std::int64_t, const Pack<A, N>& loaded) const {
    return loaded;
  }
  template <int N>
  __device__ __forceinline__ Pack<A, N> again(const Pack<A, N>& loaded) const {
    return loaded;
  }
  template <int N, class Loaded>
  __device__ __forceinline__ void write(std::int64_t offset, const Pack<A, N>& shrunk, const Loaded&) const {
    store<N>(data_ + offset, shrunk);
  }

  const Prox prox;
  const A tau;

 private:
  T* const data_;
};

template <class T>
void launch(const std::vector<ProxSegment>& segments, Prox prox, double* values, const Allocate& allocate,
            cudaStream_t stream) {
  using Body = ProxBody<T>;
  std::vector<ShrinkItem<Body>> items;
  for (const ProxSegment& segment : segments) {
    const typename Body::Entry entry{{}, static_cast<T*>(segment.data), Compute<T>(segment.threshold)};
    items.push_back({entry, segment.layout, is_aligned(segment.data), segment.tensor, segment.copies});
  }
  Shrink<Body>({prox}, allocate, stream).run(items, values);
}

}  // namespace

cudaError_t prox(DType dtype, const std::vector<ProxSegment>& segments, Prox prox, double* values,
                 const Allocate& allocate, cudaStream_t stream) {
  with_type(dtype, [&](auto zero) { launch<decltype(zero)>(segments, prox, values, allocate, stream); });
  return cudaGetLastError();
}

}  // namespace sparse_accel::cuda
