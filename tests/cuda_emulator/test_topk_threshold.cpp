// topk_rows against a stable sort, and topk_look.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "topk_threshold.cu"

using namespace sparse_accel;
using namespace check;

namespace {

template <class T>
struct Result {
  std::vector<bool> mask;
  std::vector<T> x;
  int has_nan;
};

// Scores: given, or (scale not null or `magnitude`) the magnitudes of x.
template <class T, class X>
Result<X> topk(const std::vector<T>& scores, const std::vector<X>& x, std::int64_t rows, std::int64_t k, bool magnitude,
               const std::vector<Compute<T>>& scale) {
  Device<T> data(scores);
  Device<X> target(x);
  Device<Compute<T>> factors(scale);
  Device<unsigned char> mask(x.size());
  Device<int> has_nan(1);
  Scratch scratch;
  const cuda::TopkTask task{kDType<T>,
                            magnitude,
                            data.get(),
                            scale.empty() ? nullptr : factors.get(),
                            scale.empty() ? 1 : std::int64_t(scale.size()),
                            std::int64_t(x.size()),
                            target.get(),
                            int(sizeof(X)),
                            reinterpret_cast<bool*>(mask.get())};
  CHECK(cuda::topk_rows(task, rows, k, has_nan.get(), scratch.allocate(), nullptr) == cudaSuccess, "launch");
  cudaDeviceSynchronize();
  Result<X> out;
  out.has_nan = has_nan.read()[0];
  out.x = target.read();
  if (!out.has_nan) {
    for (const unsigned char flag : mask.read()) out.mask.push_back(flag == 1);
  }
  return out;
}

template <class T, class X>
void test(std::int64_t rows, std::int64_t n, double coarse, bool magnitude, bool scaled) {
  if (!tested<T>()) return;
  std::vector<T> scores = normal<T>(rows * n);
  for (T& s : scores) s = number<T>(std::round(value(s) * coarse) / coarse);  // ties, and zeros of both signs
  std::vector<Compute<T>> scale;
  for (std::int64_t c = 0; scaled && c < n; ++c) scale.push_back(Compute<T>(1 + c % 3));
  std::vector<X> x(scores.size(), number<X>(1));
  std::vector<double> keys;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const double s = value(scores[i]);
    keys.push_back((magnitude ? std::fabs(s) : s) * (scaled ? double(scale[i % scale.size()]) : 1));
  }
  for (const std::int64_t k : {std::int64_t(1), n / 2, n - 1}) {
    if (k < 1 || k >= n) continue;
    std::vector<bool> want(scores.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      std::vector<std::size_t> order(std::size_t(n), 0);
      std::iota(order.begin(), order.end(), std::size_t(r * n));
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return keys[a] > keys[b]; });
      for (std::int64_t i = 0; i < k; ++i) want[order[std::size_t(i)]] = true;
    }
    const auto got = topk(scores, x, rows, k, magnitude, scale);
    const auto again = in_another_order(got, [&] { return topk(scores, x, rows, k, magnitude, scale); });
    CHECK(got.has_nan == 0, "no NaN here");
    CHECK(got.mask == want, "rows %d of %d, k %d", int(rows), int(n), int(k));
    CHECK(got.mask == again.mask && same_bits(got.x, again.x), "another result in another order");
    for (std::size_t i = 0; i < x.size(); ++i) {
      CHECK(value(got.x[i]) == (want[i] ? 1.0 : 0.0), "element %d", int(i));
    }
  }
}

template <class T>
void test_nan(std::int64_t n) {
  if (!tested<T>()) return;
  for (const std::int64_t place : {std::int64_t(0), n - 1}) {
    std::vector<T> scores = normal<T>(n);
    scores[std::size_t(place)] = number<T>(place ? NAN : -NAN);
    const auto got = topk(scores, scores, 1, n / 2, false, {});
    CHECK(got.has_nan == 1, "NaN at %d", int(place));
    CHECK(same_bits(got.x, scores), "changed");
  }
}

void test_look() {
  std::vector<float> scores = normal<float>(40000);
  for (const bool bad : {false, true}) {
    if (bad) scores.back() = NAN;
    Device<float> data(scores);
    Device<int> has_nan(1);
    const cuda::TopkTask task{DType::f32, bad, data.get(), nullptr, 1, 40000, nullptr, 4, nullptr};
    cuda::topk_look(task, has_nan.get(), nullptr);
    cudaDeviceSynchronize();
    CHECK(has_nan.read()[0] == int(bad), "look");
  }
}

}  // namespace

int main() {
  return run([] {
    test<float, float>(1, 300, 8, false, false);
    test<float, float>(3, 40, 1e6, true, true);
    test<float, double>(2, 17000, 16, false, false);
    test<float, float>(1, 33000, 1e9, true, false);
    test<double, double>(2, 600, 4, true, true);
    test<double, __half>(1, 17000, 1e12, false, false);
    test<__half, float>(2, 700, 16, false, false);
    test<__nv_bfloat16, __nv_bfloat16>(2, 300, 16, true, true);
    test_nan<float>(300);
    test_nan<float>(17000);
    test_nan<__half>(300);
    test_look();
  });
}
