// rmda_step_ against plain loops.
#include "check.h"
#include "rmda_step.cu"

using namespace sparse_accel;
using namespace check;

namespace {

struct Options {
  Prox prox = Prox::soft;
  double momentum = 0.3;
  bool maximize = false;
  bool clocks_on_device = true;
  bool lr_on_device = false;
  float grad_scale = 0, found_inf = 0;  // grad_scale > 0: as under AMP, both on the device
  std::size_t shift = 0;
  std::int64_t copies = 1;  // segments of its layout in a tensor
};

constexpr double kLr = 0.25, kStrength = 0.4, kAlpha = 0.75;
constexpr float kStep = 3;

template <class T>
struct State {
  using A = Compute<T>;
  std::vector<std::vector<T>> params, grads;
  std::vector<std::vector<A>> points, anchors;
  std::vector<float> steps;
  std::vector<double> alphas;
};

template <class T>
State<T> step(const State<T>& before, const std::vector<GroupLayout>& shapes, const Options& options) {
  using A = Compute<T>;
  const std::size_t count = shapes.size();
  std::vector<Device<T>> params, grads;
  std::vector<Device<A>> points, anchors;
  Device<float> steps(before.steps);
  Device<double> alphas(before.alphas);
  Device<double> lr(std::vector<double>{kLr});
  Device<float> grad_scale(std::vector<float>{options.grad_scale}), found_inf(std::vector<float>{options.found_inf});
  std::vector<cuda::RmdaSegment> segments;
  std::vector<cuda::RmdaClock> clocks;
  for (std::size_t i = 0; i < count; ++i) {
    params.emplace_back(before.params[i], options.shift);
    grads.emplace_back(before.grads[i], options.shift);
    points.emplace_back(before.points[i], options.shift);
    anchors.emplace_back(before.anchors[i], options.shift);
    segments.push_back(
        {params[i].get(), grads[i].get(), points[i].get(), anchors[i].get(), shapes[i], int(i), options.copies});
    if (options.clocks_on_device) {
      clocks.push_back({steps.get() + i, alphas.get() + i, 0, 0, kStrength});
    } else {
      clocks.push_back({nullptr, nullptr, before.steps[i], before.alphas[i], kStrength});
    }
  }
  const bool amp = options.grad_scale > 0;
  const cuda::RmdaSettings settings{options.prox,
                                    options.lr_on_device ? 0 : kLr,
                                    options.lr_on_device ? lr.get() : nullptr,
                                    options.momentum,
                                    options.maximize,
                                    amp ? grad_scale.get() : nullptr,
                                    amp ? found_inf.get() : nullptr};
  Scratch scratch;
  CHECK(cuda::rmda_step(kDType<T>, segments, clocks, settings, scratch.allocate(), nullptr) == cudaSuccess, "launch");
  cudaDeviceSynchronize();
  State<T> after;
  for (std::size_t i = 0; i < count; ++i) {
    after.params.push_back(params[i].read());
    after.grads.push_back(grads[i].read());
    after.points.push_back(points[i].read());
    after.anchors.push_back(anchors[i].read());
  }
  after.steps = steps.read();
  after.alphas = alphas.read();
  return after;
}

template <class T>
void compare(const State<T>& before, const State<T>& after, std::size_t t, const GroupLayout& shape,
             const Options& options) {
  const bool skipped = options.found_inf != 0;
  const RmdaScalars scalars = rmda_scalars(kStep, kAlpha, kLr, kStrength);
  const double scale = options.grad_scale > 0 ? options.grad_scale : 1;
  const double rate = (options.maximize ? -kLr : kLr) / scale;
  const double tolerance = kTolerance<Compute<T>> * 4, size = double(shape.outer * shape.inner);
  CHECK(same_bits(before.grads[t], after.grads[t]) && same_bits(before.anchors[t], after.anchors[t]), "only read");
  const bool ticks = options.clocks_on_device && !skipped;
  CHECK(after.steps[t] == (ticks ? kStep + 1 : kStep), "step %g", double(after.steps[t]));
  CHECK(close(after.alphas[t], ticks ? scalars.alpha : kAlpha, 1e-14), "alpha %g", after.alphas[t]);
  if (skipped) {
    CHECK(same_bits(before.params[t], after.params[t]) && same_bits(before.points[t], after.points[t]), "inf");
    return;
  }
  std::vector<double> point(before.params[t].size());
  for (std::size_t i = 0; i < point.size(); ++i) {
    const double anchor = before.anchors[t][i];
    point[i] = anchor + scalars.decay * (before.points[t][i] - anchor) - rate * value(before.grads[t][i]);
    const double got = after.points[t][i];
    CHECK(close(got, point[i], tolerance), "X %zu [%zu]: %g want %g", t, i, got, point[i]);
  }
  for (std::int64_t at = 0; at < shape.groups * options.copies; ++at) {
    const std::int64_t g = at % shape.groups;
    const std::size_t start = std::size_t(at / shape.groups * numel(shape));
    double square = 0;
    for_group(shape, g, [&](std::size_t i) { square += point[start + i] * point[start + i]; });
    const double factor = prox_scale(options.prox, square, scalars.tau, size);
    for_group(shape, g, [&](std::size_t i) {
      i += start;
      const double want = (1 - options.momentum) * value(before.params[t][i]) + options.momentum * factor * point[i];
      const double got = value(after.params[t][i]);
      CHECK(close(got, want, kTolerance<T> * 4), "W %zu [%zu]: %g want %g", t, i, got, want);
    });
  }
}

template <class T>
void test(const std::vector<GroupLayout>& shapes, const Options& options) {
  if (!tested<T>()) return;
  State<T> before;
  for (const GroupLayout& shape : shapes) {
    const std::int64_t count = numel(shape) * options.copies;
    before.params.push_back(normal<T>(count));
    before.grads.push_back(normal<T>(count));
    before.points.push_back(normal<Compute<T>>(count));
    before.anchors.push_back(normal<Compute<T>>(count));
  }
  before.steps.assign(shapes.size(), kStep);
  before.alphas.assign(shapes.size(), kAlpha);
  const auto after = step(before, shapes, options);
  const auto again = in_another_order(after, [&] { return step(before, shapes, options); });
  for (std::size_t t = 0; t < shapes.size(); ++t) {
    CHECK(same_bits(after.params[t], again.params[t]) && same_bits(after.points[t], again.points[t]),
          "tensor %zu: other bits in another order", t);
    compare(before, after, t, shapes[t], options);
  }
}

}  // namespace

int main() {
  return run([] {
    const std::vector<GroupLayout> few{{1, 300, 1}, {1, 7, 40}, {70, 33, 1}, {20, 4, 9}};
    test<float>(layouts(), {});
    Options shifted;
    shifted.shift = 1;
    const bool all = tested<double>();  // under ThreadSanitizer each kernel once
    test<float>(all ? layouts() : few, shifted);
    test<double>(layouts(), {});
    Options copies;
    copies.copies = 3;
    test<float>({{1, 20, 1}, {1, 7, 40}, {70, 33, 1}, {20, 4, 9}, {9, 64, 1}, {1, 2, 8201}, {300, 1, 9}}, copies);
    test<__half>(layouts(), {});
    test<__nv_bfloat16>(few, shifted);
    Options amp;
    amp.maximize = true;
    amp.momentum = 1;
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
    with_clusters([&] {
      test<float>(strips(), {});
      test<__half>({{333, 40, 1}, {70, 16, 3}}, {});
      test<float>({{9, 64, 1}, {322, 8, 1}}, copies);
      test<float>({{333, 8, 1}}, amp);  // left out
    });
  });
}
