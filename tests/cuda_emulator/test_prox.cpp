// prox_ against plain loops.
#include "check.h"
#include "prox.cu"

using namespace sparse_accel;
using namespace check;

namespace {

template <class T>
struct Result {
  std::vector<std::vector<T>> tensors;
  std::vector<double> values;
};

template <class T>
Result<T> prox(const std::vector<std::vector<T>>& tensors, const std::vector<GroupLayout>& shapes, Prox kind,
               const std::vector<double>& thresholds, std::size_t shift, bool with_value) {
  std::vector<Device<T>> data;
  std::vector<cuda::ProxSegment> segments;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    data.emplace_back(tensors[i], shift);
    segments.push_back({data[i].get(), shapes[i], thresholds[i], int(i)});
  }
  Device<double> values(std::vector<double>(shapes.size()));
  Scratch scratch;
  CHECK(cuda::prox(kDType<T>, segments, kind, with_value ? values.get() : nullptr, scratch.allocate(), nullptr) ==
            cudaSuccess,
        "launch");
  cudaDeviceSynchronize();
  Result<T> out{{}, values.read()};
  for (const auto& tensor : data) out.tensors.push_back(tensor.read());
  return out;
}

template <class T>
void test(const std::vector<GroupLayout>& shapes, Prox kind, double threshold, std::size_t shift, bool with_value) {
  if (!tested<T>()) return;
  std::vector<std::vector<T>> tensors;
  for (const GroupLayout& shape : shapes) tensors.push_back(normal<T>(numel(shape)));
  const std::vector<double> thresholds(shapes.size(), threshold);
  const auto got = prox(tensors, shapes, kind, thresholds, shift, with_value);
  another_order();
  const auto again = prox(tensors, shapes, kind, thresholds, shift, with_value);
  CHECK(same_bits(got.values, again.values), "other values in another order");
  for (std::size_t t = 0; t < shapes.size(); ++t) {
    CHECK(same_bits(got.tensors[t], again.tensors[t]), "tensor %zu: other bits in another order", t);
    const double size = double(shapes[t].outer * shapes[t].inner);
    double penalty = 0;
    for (std::int64_t g = 0; g < shapes[t].groups; ++g) {
      double square = 0;
      for_group(shapes[t], g, [&](std::size_t i) { square += value(tensors[t][i]) * value(tensors[t][i]); });
      const double factor = prox_scale(kind, square, threshold, size);
      penalty += penalty_value(kind, square, factor, size);
      for_group(shapes[t], g, [&](std::size_t i) {
        const double want = factor * value(tensors[t][i]), result = value(got.tensors[t][i]);
        CHECK(close(result, want, kTolerance<T>), "tensor %zu [%zu]: %g want %g", t, i, result, want);
        CHECK(factor != 0 || !std::signbit(result), "tensor %zu [%zu]: exact zero", t, i);
      });
    }
    if (!with_value) penalty = 0;
    CHECK(close(got.values[t], penalty, sizeof(T) == 8 ? 1e-11 : 1e-4), "tensor %zu: penalty %g want %g", t,
          got.values[t], penalty);
  }
}

// Two segments of one tensor add to one value, as entries of their own and as copies.
void test_blocks(bool copies) {
  const auto x = normal<float>(2 * 6 * 5);
  Device<float> data(x);
  Device<double> values(std::vector<double>(2));
  Scratch scratch;
  const GroupLayout shape{6, 5, 1};
  std::vector<cuda::ProxSegment> segments{{data.get(), shape, 0.5, 1, 2}};
  if (!copies) segments = {{data.get(), shape, 0.5, 1}, {data.get() + 30, shape, 0.5, 1}};
  cuda::prox(DType::f32, segments, Prox::soft, values.get(), scratch.allocate(), nullptr);
  cudaDeviceSynchronize();
  double penalty = 0;
  for (int block = 0; block < 2; ++block) {
    for (int g = 0; g < 5; ++g) {
      double square = 0;
      for (int o = 0; o < 6; ++o)
        square += double(x[std::size_t(block * 30 + o * 5 + g)]) * x[std::size_t(block * 30 + o * 5 + g)];
      penalty += penalty_value(Prox::soft, square, prox_scale(Prox::soft, square, 0.5, 6.0), 6.0);
    }
  }
  const auto got = values.read();
  CHECK(got[0] == 0 && close(got[1], penalty, 1e-5), "%g %g want 0 %g", got[0], got[1], penalty);
}

}  // namespace

int main() {
  return run([] {
    test<float>(layouts(), Prox::soft, 0.9, 0, true);
    test<float>(layouts(), Prox::hard, 0.5, 1, true);
    test<float>({{1, 300, 1}, {1, 4, 30}, {9, 7, 1}}, Prox::soft, 0, 0, true);  // leaves all as it is
    test<double>(layouts(), Prox::soft, 0.9, 0, false);
    test<__half>(layouts(), Prox::soft, 0.8, 0, true);
    test<__nv_bfloat16>({{64, 12, 9}, {1, 40, 16}, {1, 300, 1}}, Prox::soft, 0.8, 1, false);
    test<float>(std::vector<GroupLayout>(75, {3, 7, 1}), Prox::soft, 0.5, 0, true);  // more than one table
    test_blocks(false);
    test_blocks(true);
    with_clusters([] {
      test<float>(strips(), Prox::soft, 0.9, 0, true);
      test<double>(strips(), Prox::hard, 0.5, 0, true);
      test<__nv_bfloat16>({{350, 8, 9}, {333, 40, 1}}, Prox::soft, 0.8, 0, true);
    });
  });
}
