// Steps of masked_cg against plain loops in double.
#include "check.h"
#include "masked_cg.cu"

using namespace sparse_accel;
using namespace check;

namespace {

template <class A>
void test(std::int64_t rows, std::int64_t columns) {
  if (!tested<A>()) return;
  const std::size_t size = std::size_t(rows * columns);
  const std::vector<A> w = normal<A>(rows * columns), r = normal<A>(rows * columns), x = normal<A>(rows * columns);
  std::vector<A> diagonal, inverse;
  for (std::int64_t j = 0; j < columns; ++j) {
    diagonal.push_back(j % 5 == 3 ? A(0) : A(1 + j % 3));
    inverse.push_back(diagonal.back() > 0 ? 1 / diagonal.back() : A(0));
  }
  std::vector<unsigned char> mask(size);
  for (std::size_t i = 0; i < size; ++i) mask[i] = std::int64_t(i) / columns != 1 && i % 3 != 0;  // row 1 is empty
  Device<A> dw(w), dr(r), dx(x), dp(size), d(diagonal), inv(inverse);
  Device<unsigned char> dmask(mask);
  Device<double> rz(std::size_t(rows), 0), done(std::size_t(rows), 0);
  CgRows task{reinterpret_cast<bool*>(dmask.get()),
              dw.get(),
              dx.get(),
              dr.get(),
              dp.get(),
              nullptr,
              d.get(),
              inv.get(),
              rz.get(),
              done.get(),
              columns};
  cuda::cg_begin(kDType<A>, task, rows, nullptr);
  cudaDeviceSynchronize();
  const std::vector<A> p = dp.read();
  // H = diagonal + 1 on every pair, rounded: q = p H
  std::vector<A> q(size);
  for (std::int64_t i = 0; i < rows; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < columns; ++j) sum += double(p[std::size_t(i * columns + j)]);
    for (std::int64_t j = 0; j < columns; ++j) {
      const std::size_t at = std::size_t(i * columns + j);
      q[at] = A(double(diagonal[std::size_t(j)]) * double(p[at]) + 0.1 * sum);
    }
  }
  Device<A> dq(q);
  task.q = dq.get();
  cuda::cg_step(kDType<A>, task, rows, nullptr);
  cudaDeviceSynchronize();
  const auto new_x = dx.read(), new_r = dr.read(), new_p = dp.read();
  for (std::int64_t i = 0; i < rows; ++i) {
    double old = 0, curvature = 0, next = 0;
    const auto each = [&](auto body) {
      for (std::int64_t j = 0; j < columns; ++j) body(std::size_t(i * columns + j), std::size_t(j));
    };
    each([&](std::size_t at, std::size_t j) {
      const double masked = mask[at] ? double(r[at]) : 0;
      CHECK(close(double(p[at]), masked * double(inverse[j]), kTolerance<A>), "first direction");
      old += masked * masked * double(inverse[j]);
      curvature += double(p[at]) * double(q[at]);
    });
    const double length = old > 0 ? old / curvature : 0;
    std::vector<double> residual(static_cast<std::size_t>(columns));
    each([&](std::size_t at, std::size_t j) {
      residual[j] = mask[at] ? double(r[at]) - length * double(q[at]) : 0;
      next += residual[j] * residual[j] * double(inverse[j]);
    });
    each([&](std::size_t at, std::size_t j) {
      CHECK(close(double(new_x[at]), double(x[at]) + length * double(p[at]), 20 * kTolerance<A>), "x");
      CHECK(close(double(new_r[at]), residual[j], 20 * kTolerance<A>), "r");
      const double turn = old > 0 ? next / old : 0;
      CHECK(close(double(new_p[at]), residual[j] * double(inverse[j]) + turn * double(p[at]), 50 * kTolerance<A>), "p");
    });
    CHECK(close(rz.read()[std::size_t(i)], next, 100 * kTolerance<A>), "r.z");
  }
}

}  // namespace

int main() {
  return run([] {
    test<float>(3, 700);
    test<double>(4, 33);
    test<double>(2, 256);
    test<float>(2, 1);
  });
}
