// prox_sgd_step_ against plain loops.
#include "check.h"
#include "prox_sgd_step.cu"

using namespace sparse_accel;
using namespace check;

namespace {

struct Options {
  Prox prox = Prox::soft;
  double rho = 0.3;
  bool maximize = false;
  bool clocks_on_device = true;
  bool lr_on_device = false;
  float grad_scale = 0, found_inf = 0;  // grad_scale > 0: as under AMP, both on the device
  std::size_t shift = 0;
};

constexpr double kLr = 0.25, kStrength = 0.4;
constexpr float kStep = 3;

template <class T>
struct State {
  using A = Compute<T>;
  std::vector<std::vector<T>> params, grads;
  std::vector<std::vector<A>> buffers;
  std::vector<float> steps;
};

template <class T>
State<T> step(const State<T>& before, const std::vector<GroupLayout>& shapes, const Options& options) {
  using A = Compute<T>;
  std::vector<Device<T>> params, grads;
  std::vector<Device<A>> buffers;
  Device<float> steps(before.steps);
  Device<double> lr(std::vector<double>{kLr});
  Device<float> grad_scale(std::vector<float>{options.grad_scale}), found_inf(std::vector<float>{options.found_inf});
  std::vector<cuda::SgdSegment> segments;
  std::vector<cuda::SgdClock> clocks;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    params.emplace_back(before.params[i], options.shift);
    grads.emplace_back(before.grads[i], options.shift);
    buffers.emplace_back(before.buffers[i], options.shift);
    segments.push_back({params[i].get(), grads[i].get(), buffers[i].get(), shapes[i], int(i)});
    clocks.push_back({options.clocks_on_device ? steps.get() + i : nullptr, kStrength});
  }
  const bool amp = options.grad_scale > 0;
  const cuda::SgdSettings settings{options.prox,
                                   options.lr_on_device ? 0 : kLr,
                                   options.lr_on_device ? lr.get() : nullptr,
                                   options.rho,
                                   options.maximize,
                                   amp ? grad_scale.get() : nullptr,
                                   amp ? found_inf.get() : nullptr};
  Scratch scratch;
  CHECK(cuda::prox_sgd_step(kDType<T>, segments, clocks, settings, scratch.allocate(), nullptr) == cudaSuccess,
        "launch");
  cudaDeviceSynchronize();
  State<T> after;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    after.params.push_back(params[i].read());
    after.grads.push_back(grads[i].read());
    after.buffers.push_back(buffers[i].read());
  }
  after.steps = steps.read();
  return after;
}

template <class T>
void compare(const State<T>& before, const State<T>& after, std::size_t t, const GroupLayout& shape,
             const Options& options) {
  const bool skipped = options.found_inf != 0;
  const double scale = options.grad_scale > 0 ? options.grad_scale : 1;
  const double factor = (options.maximize ? -options.rho : options.rho) / scale;
  const double tolerance = kTolerance<Compute<T>> * 4, size = double(shape.outer * shape.inner);
  CHECK(same_bits(before.grads[t], after.grads[t]), "only read");
  CHECK(after.steps[t] == (options.clocks_on_device && !skipped ? kStep + 1 : kStep), "step %g", after.steps[t]);
  if (skipped) {
    CHECK(same_bits(before.params[t], after.params[t]) && same_bits(before.buffers[t], after.buffers[t]), "inf");
    return;
  }
  std::vector<double> x(before.params[t].size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double buffer = (1 - options.rho) * before.buffers[t][i] + factor * value(before.grads[t][i]);
    const double got = after.buffers[t][i];
    CHECK(close(got, buffer, tolerance), "M %zu [%zu]: %g want %g", t, i, got, buffer);
    x[i] = value(before.params[t][i]) - kLr * buffer;
  }
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    double square = 0;
    for_group(shape, g, [&](std::size_t i) { square += x[i] * x[i]; });
    const double shrink = prox_scale(options.prox, square, kLr * kStrength, size);
    for_group(shape, g, [&](std::size_t i) {
      const double want = shrink * x[i], got = value(after.params[t][i]);
      CHECK(close(got, want, kTolerance<T> * 4), "W %zu [%zu]: %g want %g", t, i, got, want);
    });
  }
}

template <class T>
void test(const std::vector<GroupLayout>& shapes, const Options& options) {
  if (!tested<T>()) return;
  State<T> before;
  for (const GroupLayout& shape : shapes) {
    before.params.push_back(normal<T>(numel(shape)));
    before.grads.push_back(normal<T>(numel(shape)));
    before.buffers.push_back(normal<Compute<T>>(numel(shape)));
  }
  before.steps.assign(shapes.size(), kStep);
  const auto after = step(before, shapes, options);
  another_order();
  const auto again = step(before, shapes, options);
  for (std::size_t t = 0; t < shapes.size(); ++t) {
    CHECK(same_bits(after.params[t], again.params[t]) && same_bits(after.buffers[t], again.buffers[t]),
          "tensor %zu: other bits in another order", t);
    compare(before, after, t, shapes[t], options);
  }
}

}  // namespace

int main() {
  return run([] {
    const std::vector<GroupLayout> few{{1, 300, 1}, {1, 7, 40}, {70, 33, 1}, {20, 4, 9}};
    Options shifted;
    shifted.shift = 1;
    test<float>(layouts(), {});
    test<float>(few, shifted);
    test<double>(few, {});
    test<__half>(few, {});
    test<__nv_bfloat16>(few, shifted);
    Options amp;
    amp.maximize = true;
    amp.rho = 1;
    amp.lr_on_device = true;
    amp.grad_scale = 8;
    test<float>(few, amp);
    amp.found_inf = 1;
    test<float>(few, amp);
    Options host;
    host.clocks_on_device = false;
    host.prox = Prox::hard;
    test<double>(few, host);
    test<float>(std::vector<GroupLayout>(150, {3, 7, 1}), {});  // more than one table, of clocks too
    with_clusters([] { test<float>(strips(), {}); });
  });
}
