// topk_blocks and topk_groups against plain loops.
#include "check.h"
#include "topk_blocks.cu"

using namespace sparse_accel;
using namespace check;

namespace {

template <class T>
void test(std::int64_t rows, std::int64_t columns, int n, int m, bool scaled) {
  if (!tested<T>()) return;
  std::vector<T> x = normal<T>(rows * columns);
  for (T& v : x) v = number<T>(std::round(value(v) * 4) / 4);
  std::vector<Compute<T>> scale;
  for (std::int64_t c = 0; scaled && c < columns; ++c) scale.push_back(Compute<T>(1 + c % 3));
  const auto score = [&](std::int64_t i) {
    return scaled ? std::fabs(value(x[std::size_t(i)])) * double(scale[std::size_t(i % columns)])
                  : value(x[std::size_t(i)]);
  };
  Device<T> data(x), target(x);
  Device<Compute<T>> factors(scale);
  Device<unsigned char> mask(x.size());
  Device<int> has_nan(1);
  const cuda::TopkTask task{kDType<T>,      scaled,       data.get(),     scaled ? factors.get() : nullptr,   columns,
                            rows * columns, target.get(), int(sizeof(T)), reinterpret_cast<bool*>(mask.get())};
  std::vector<T> bad = x;
  bad[std::size_t(columns)] = number<T>(NAN);
  cudaMemcpy(data.get(), bad.data(), bad.size() * sizeof(T), cudaMemcpyHostToDevice);
  cuda::topk_blocks(task, n, m, has_nan.get(), nullptr);
  cudaDeviceSynchronize();
  CHECK(has_nan.read()[0] == 1 && same_bits(target.read(), x), "written in spite of NaN");
  cudaMemcpy(data.get(), x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice);
  cuda::topk_blocks(task, n, m, has_nan.get(), nullptr);
  cudaDeviceSynchronize();
  CHECK(has_nan.read()[0] == 0, "no NaN here");
  const auto flags = mask.read();
  const auto out = target.read();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::int64_t first = r * columns + c / m * m, i = r * columns + c;
      const std::int64_t last = std::min(first + m, (r + 1) * columns);
      int rank = 0;
      for (std::int64_t j = first; j < last; ++j) rank += score(j) > score(i) || (score(j) == score(i) && j < i);
      CHECK(flags[std::size_t(i)] == (rank < n), "%d:%d, row %d column %d", n, m, int(r), int(c));
      CHECK(value(out[std::size_t(i)]) == (rank < n ? value(x[std::size_t(i)]) : 0.0), "%d:%d value", n, m);
    }
  }
}

void test_groups() {
  for (const GroupLayout& layout : layouts()) {
    const std::int64_t blocks = 2, count = blocks * numel(layout);
    if (count == 0) continue;
    std::vector<unsigned char> keep(std::size_t(blocks * layout.groups));
    for (std::size_t g = 0; g < keep.size(); ++g) keep[g] = g % 3 == 1;
    Device<float> x(std::vector<float>(std::size_t(count), 1.f));
    Device<unsigned char> flags(keep), mask{std::size_t(count)};
    cuda::topk_groups(x.get(), 4, reinterpret_cast<bool*>(mask.get()), reinterpret_cast<bool*>(flags.get()), layout,
                      blocks, nullptr);
    cudaDeviceSynchronize();
    const auto got = mask.read();
    const auto values = x.read();
    for (std::int64_t b = 0; b < blocks; ++b) {
      for (std::int64_t g = 0; g < layout.groups; ++g) {
        for_group(layout, g, [&](std::size_t i) {
          const std::size_t at = std::size_t(b * numel(layout)) + i;
          const bool want = keep[std::size_t(b * layout.groups + g)];
          CHECK(got[at] == want && values[at] == float(want), "group %d", int(g));
        });
      }
    }
  }
}

}  // namespace

int main() {
  return run([] {
    test<float>(3, 700, 2, 4, false);
    test<float>(5, 301, 1, 2, true);
    test<float>(2, 1003, 3, 7, true);
    test<double>(2, 500, 5, 16, false);
    test<double>(3, 2500, 16, 32, true);
    test<float>(2, 70, 31, 32, false);
    test<__half>(3, 90, 4, 8, true);
    test<__nv_bfloat16>(2, 90, 17, 31, false);
    test<float>(7, 3, 2, 4, false);
    test_groups();
  });
}
