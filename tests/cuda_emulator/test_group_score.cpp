// group_score against plain loops.
#include "check.h"
#include "group_score.cu"

using namespace sparse_accel;
using namespace check;

namespace {

double score(const std::vector<double>& x, const GroupLayout& layout, std::int64_t g, Score kind, bool root) {
  double out = 0;
  for_group(layout, g, [&](std::size_t i) {
    const double v = x[i];
    if (kind == Score::amax) {
      out = std::isnan(out) || std::fabs(v) <= out ? out : std::fabs(v);
    } else {
      out += kind == Score::sum ? v : kind == Score::l1 ? std::fabs(v) : v * v;
    }
  });
  return root ? std::sqrt(out) : out;
}

template <class T>
std::vector<Device<Compute<T>>> scores(const std::vector<Device<T>>& tensors, const std::vector<GroupLayout>& shapes,
                                       Score kind, bool root) {
  std::vector<Device<Compute<T>>> outputs;
  std::vector<cuda::ScoreSegment> segments;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    outputs.emplace_back(std::size_t(shapes[i].groups));
    segments.push_back({tensors[i].get(), outputs[i].get(), shapes[i]});
  }
  Scratch scratch;
  CHECK(cuda::group_score(kDType<T>, segments, kind, root, scratch.allocate(), nullptr) == cudaSuccess, "launch");
  cudaDeviceSynchronize();
  return outputs;
}

// `shift`: how many elements past a 16-byte boundary tensors start
template <class T>
void test(const std::vector<GroupLayout>& shapes, Score kind, bool root, std::size_t shift) {
  if (!tested<T>()) return;
  std::vector<Device<T>> tensors;
  std::vector<std::vector<double>> host;
  for (const GroupLayout& shape : shapes) {
    const auto x = normal<T>(numel(shape));
    tensors.emplace_back(x, shift);
    host.emplace_back();
    for (const T& v : x) host.back().push_back(value(v));
  }
  const auto got = scores(tensors, shapes, kind, root);
  another_order();
  const auto again = scores(tensors, shapes, kind, root);
  const double tolerance = sizeof(T) == 8 ? 1e-12 : 1e-5;  // sums are float32 at least
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const auto out = got[i].read();
    CHECK(same_bits(out, again[i].read()), "tensor %zu: other bits in another order", i);
    for (std::int64_t g = 0; g < shapes[i].groups; ++g) {
      const double want = score(host[i], shapes[i], g, kind, root);
      CHECK(close(out[std::size_t(g)], want, tolerance), "kind %d tensor %zu group %d: %g want %g", int(kind), i,
            int(g), double(out[std::size_t(g)]), want);
    }
  }
}

// Segments of one layout, one after another, score as each on its own.
void test_copies(const std::vector<GroupLayout>& shapes) {
  for (const GroupLayout& shape : shapes) {
    const std::int64_t copies = 3, count = numel(shape);
    Device<float> data(normal<float>(copies * count)), together(std::size_t(copies * shape.groups));
    Device<float> apart(std::size_t(copies * shape.groups));
    Scratch scratch;
    cuda::group_score(DType::f32, {{data.get(), together.get(), shape, copies}}, Score::l1, false, scratch.allocate(),
                      nullptr);
    std::vector<cuda::ScoreSegment> segments;
    for (std::int64_t c = 0; c < copies; ++c) {
      segments.push_back({data.get() + c * count, apart.get() + c * shape.groups, shape});
    }
    cuda::group_score(DType::f32, segments, Score::l1, false, scratch.allocate(), nullptr);
    cudaDeviceSynchronize();
    CHECK(check::same_bits(together.read(), apart.read()), "%d groups", int(shape.groups));
  }
}

void test_nan() {
  const GroupLayout shape{1, 2, 700};
  auto x = normal<float>(1400);
  x[900] = NAN;
  std::vector<Device<float>> tensors;
  tensors.emplace_back(x);
  for (const Score kind : {Score::l2sq, Score::amax, Score::sum}) {
    const auto out = scores(tensors, {shape}, kind, false)[0].read();
    CHECK(!std::isnan(out[0]) && std::isnan(out[1]), "kind %d: %g %g", int(kind), double(out[0]), double(out[1]));
  }
}

}  // namespace

int main() {
  return run([] {
    test<float>(layouts(), Score::l2sq, true, 0);
    const bool all = tested<double>();  // under ThreadSanitizer each kernel once
    if (all) test<float>(layouts(), Score::amax, false, 1);
    test<double>(layouts(), Score::l1, false, 0);
    test<__half>(layouts(), Score::sum, false, 0);
    test<__nv_bfloat16>({{64, 12, 9}, {1, 40, 16}}, Score::l2sq, true, 1);
    test<float>(std::vector<GroupLayout>(75, {3, 7, 1}), Score::l2sq, true, 0);  // more than one table
    if (all) test<float>({{1, 1024, 1028}}, Score::l2sq, true, 0);  // so many long rows that each has a warp
    test_copies({{9, 64, 1}, {1, 7, 40}, {300, 3, 1}});
    test_nan();
    with_clusters([all] {
      const std::vector<GroupLayout> strips{{700, 40, 1}, {350, 8, 9}, {2, 72, 1}, {300, 140, 1}, {261, 16, 3}};
      test<float>(strips, Score::l2sq, true, 0);
      if (all) test<float>(strips, Score::amax, false, 0);
      test<__half>({{700, 40, 1}, {300, 24, 31}}, Score::sum, false, 0);
      test_copies({{700, 40, 1}, {350, 8, 9}});
    });
  });
}
