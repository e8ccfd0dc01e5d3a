// glm_prox and glm_epoch against plain loops.
#include "check.h"
#include "glm.cu"

using namespace sparse_accel;
using namespace check;

namespace {

// Rows of which every third entry is zero, dense or CSR, on the device.
template <class T>
struct Rows {
  std::vector<T> dense;
  std::vector<double> targets;
  std::int64_t rows, columns;
  Device<T> values;
  Device<std::int64_t> crow, col;
  Device<double> device_targets;
  bool sparse;

  static std::vector<T> make(std::int64_t rows, std::int64_t columns) {
    std::vector<T> out = normal<T>(rows * columns);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = i % 3 == 0 ? T(0) : out[i] * T(0.1);
    return out;
  }
  static std::vector<T> entries(const std::vector<T>& dense) {
    std::vector<T> out;
    for (T x : dense) {
      if (x != T(0)) out.push_back(x);
    }
    return out;
  }
  static std::vector<std::int64_t> indices(const std::vector<T>& dense, std::int64_t columns, bool starts) {
    std::vector<std::int64_t> first{0}, column;
    for (std::size_t i = 0; i < dense.size(); ++i) {
      if (dense[i] != T(0)) column.push_back(std::int64_t(i) % columns);
      if (std::int64_t(i + 1) % columns == 0) first.push_back(std::int64_t(column.size()));
    }
    return starts ? first : column;
  }

  Rows(std::vector<T> data, std::int64_t rows_, std::int64_t columns_, bool sparse_)
      : dense(std::move(data)),
        targets(std::size_t(rows_)),
        rows(rows_),
        columns(columns_),
        values(sparse_ ? entries(dense) : dense),
        crow(indices(dense, columns, true)),
        col(indices(dense, columns, false)),
        device_targets([&] {
          for (std::size_t i = 0; i < targets.size(); ++i) targets[i] = double(i % 2);
          return targets;
        }()),
        sparse(sparse_) {}

  cuda::GlmTask task(Family family) const {
    return {values.get(),
            sparse ? crow.get() : nullptr,
            sparse ? col.get() : nullptr,
            device_targets.get(),
            rows,
            columns,
            family,
            1.5,
            0.7};
  }

  GlmStep step(Family family, std::int64_t i, const std::vector<double>& z) const {
    GlmRow row{0, 0, targets[std::size_t(i)]};
    for (std::int64_t j = 0; j < columns; ++j) {
      const double a = double(dense[std::size_t(i * columns + j)]);
      row.u += a * z[std::size_t(j)];
      row.q += a * a;
    }
    return glm_step(family, row, 1.5, 0.7);
  }
};

template <class T>
std::vector<double> wide(const std::vector<T>& x) {
  return {x.begin(), x.end()};
}

template <class T>
void compare(const char* what, const std::vector<T>& got, const std::vector<double>& want) {
  for (std::size_t j = 0; j < got.size(); ++j) {
    CHECK(close(double(got[j]), want[j], sizeof(T) == 8 ? 1e-11 : 1e-5), "%s [%zu]: %g want %g", what, j,
          double(got[j]), want[j]);
  }
}

template <class T>
void test_prox(const Rows<T>& data, Family family) {
  const std::vector<T> z = normal<T>(data.columns);
  std::vector<double> want(std::size_t(data.columns), 0.0);
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < data.rows; ++i) {
    const GlmStep step = data.step(family, i, wide(z));
    most = step.iterations > most ? step.iterations : most;
    for (std::int64_t j = 0; j < data.columns; ++j) {
      want[std::size_t(j)] += step.xi * double(data.dense[std::size_t(i * data.columns + j)]);
    }
  }
  for (std::size_t j = 0; j < want.size(); ++j) want[j] = double(z[j]) + want[j] / double(data.rows);
  std::vector<T> first;
  for (int turn = 0; turn < 2; ++turn) {
    Device<T> from(z), out(z.size());
    Device<std::int64_t> iterations(1);
    Scratch scratch;
    CHECK(cuda::glm_prox(kDType<T>, data.task(family), from.get(), out.get(), iterations.get(), scratch.allocate(),
                         nullptr) == cudaSuccess,
          "launch");
    cudaDeviceSynchronize();
    compare("prox", out.read(), want);
    CHECK(std::llabs(iterations.read()[0] - most) <= 1, "iterations %d", int(iterations.read()[0]));
    if (turn == 0) first = out.read();
    CHECK(same_bits(first, out.read()), "other bits in another order");
    another_order();
  }
}

template <class T>
void test_epoch(const Rows<T>& data, Family family, double beta) {
  const std::vector<std::int64_t> order{2, 0, 1, 0};
  const std::vector<T> start = normal<T>(data.columns), before = normal<T>(data.columns);
  std::vector<double> x = wide(start), previous = wide(before), average(x.size(), 0.0);
  for (std::size_t k = 0; k < order.size(); ++k) {
    std::vector<double> z = x;
    for (std::size_t j = 0; j < z.size(); ++j) z[j] += beta * (x[j] - previous[j]);
    previous = x;
    const GlmStep step = data.step(family, order[k], z);
    for (std::size_t j = 0; j < z.size(); ++j) {
      x[j] = z[j] + step.xi * double(data.dense[std::size_t(order[k] * data.columns) + j]);
      if (k >= 1) average[j] += x[j] / 3;
    }
  }
  std::vector<T> first;
  for (int turn = 0; turn < 2; ++turn) {
    Device<T> now(start), last(before);
    Device<double> mean(x.size());
    Device<std::int64_t> rows(order), iterations(1);
    const cuda::GlmPass pass{now.get(), last.get(), rows.get(), std::int64_t(order.size()), beta, mean.get(), 1};
    CHECK(cuda::glm_epoch(kDType<T>, data.task(family), pass, iterations.get(), nullptr) == cudaSuccess, "launch");
    cudaDeviceSynchronize();
    compare("x", now.read(), x);
    compare("previous", last.read(), previous);
    compare("average", sizeof(T) == 8 ? mean.read() : std::vector<double>(), average);
    if (turn == 0) first = now.read();
    CHECK(same_bits(first, now.read()), "other bits in another order");
    another_order();
  }
}

template <class T>
void test() {
  if (!tested<T>()) return;
  for (const bool sparse : {false, true}) {
    const Rows<T> data(Rows<T>::make(3, 300), 3, 300, sparse);
    for (const Family family : {Family::gaussian, Family::binomial, Family::poisson, Family::huber}) {
      test_prox(data, family);
    }
    for (const double beta : {0.0, 0.5}) test_epoch(data, Family::binomial, beta);
  }
}

}  // namespace

int main() {
  return run([] {
    test<double>();
    test<float>();
  });
}
