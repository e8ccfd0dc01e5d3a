// group_topk against a stable sort.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "group_topk.cu"

using namespace sparse_accel;
using namespace check;

namespace {

template <class T>
int topk(const std::vector<std::vector<T>>& scores, std::int64_t k, std::vector<bool>& out) {
  std::vector<Device<T>> inputs;
  std::vector<Device<unsigned char>> masks;
  std::vector<cuda::TopkSegment> segments;
  for (const auto& score : scores) {
    inputs.emplace_back(score);
    masks.emplace_back(score.size());
    segments.push_back({inputs.back().get(), reinterpret_cast<bool*>(masks.back().get()), std::int64_t(score.size())});
  }
  Device<int> has_nan(1);
  Scratch scratch;
  CHECK(cuda::group_topk(kDType<T>, segments, k, has_nan.get(), scratch.allocate(), nullptr) == cudaSuccess, "launch");
  cudaDeviceSynchronize();
  out.clear();
  for (const auto& mask : masks) {
    for (const unsigned char flag : mask.read()) out.push_back(flag == 1);
  }
  return has_nan.read()[0];
}

template <class T>
void test(const std::vector<std::int64_t>& sizes, double coarse) {
  if (!tested<T>()) return;
  std::vector<std::vector<T>> scores;
  std::vector<double> all;
  for (const std::int64_t size : sizes) {
    scores.push_back(normal<T>(size));
    for (T& x : scores.back()) {
      x = number<T>(std::round(value(x) * coarse) / coarse);  // ties, and zeros of both signs
      all.push_back(value(x));
    }
  }
  std::vector<std::size_t> order(all.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return all[a] > all[b]; });
  const std::int64_t total = std::int64_t(all.size());
  for (const std::int64_t k : {std::int64_t(1), total / 2 + 1, total - 1, total}) {
    if (k < 1) continue;
    std::vector<bool> want(all.size()), got;
    for (std::int64_t i = 0; i < k; ++i) want[order[std::size_t(i)]] = true;
    CHECK(topk(scores, k, got) == 0, "no NaN here");
    const auto again = in_another_order(got, [&] {
      std::vector<bool> kept;
      topk(scores, k, kept);
      return kept;
    });
    CHECK(got == again, "k %d of %d: another result in another order", int(k), int(total));
    CHECK(got == want, "k %d of %d", int(k), int(total));
  }
}

// More segments than one table holds, and more blocks of ties than one round of the scan.
void test_tables() {
  std::vector<bool> got, want(260 * 2);
  topk(std::vector<std::vector<float>>(260, {1.f, 2.f}), 261, got);
  for (std::size_t i = 0; i < 260; ++i) want[2 * i + 1] = true;
  want[0] = true;
  CHECK(got == want, "260 segments");
}

template <class T>
void test_special() {
  if (!tested<T>()) return;
  const T infinity = number<T>(INFINITY);
  std::vector<bool> got;
  const std::vector<T> mixed{number<T>(-1), number<T>(-INFINITY), number<T>(0),
                             infinity,      number<T>(-0.0),      number<T>(2)};
  CHECK(topk<T>({mixed}, 3, got) == 0, "infinities can be ordered");
  CHECK((got == std::vector<bool>{false, false, true, true, false, true}), "infinities, zeros");
  topk<T>({{number<T>(-0.0), number<T>(0)}}, 1, got);
  CHECK((got == std::vector<bool>{true, false}), "zeros tie");
  CHECK(topk<T>({{infinity, number<T>(1)}, {number<T>(NAN)}}, 1, got) == 1, "NaN");
  CHECK(topk<T>({{infinity, number<T>(-NAN)}}, 2, got) == 1, "-NaN");
  std::vector<T> many(21000, number<T>(1));
  CHECK(topk<T>({many}, 5, got) == 0, "no NaN here");
  many.back() = number<T>(-NAN);
  CHECK(topk<T>({many}, 5, got) == 1, "NaN in many");
}

}  // namespace

int main() {
  return run([] {
    test<float>({4500, 1, 255}, 8);
    test<float>({10500, 1, 255}, 8);  // no longer in one launch
    test<double>({5500, 100}, 1e12);
    test<__half>({20600}, 16);
    test<float>({300}, 1e6);
    test<double>({600, 100}, 4);
    test<double>({100}, 1e12);
    test<__half>({700}, 16);
    test<__nv_bfloat16>({300, 33}, 16);
    test<float>({1}, 1);
    test_tables();
    test_special<float>();
    test_special<double>();
    test_special<__half>();
    test_special<__nv_bfloat16>();
  });
}
