// ramda_step_ and prox_adamw_step_ against plain loops (check_metric.h).
#include <cstdlib>
#include <cstring>

#include "check_metric.h"
#include "metric_step.cu"

using namespace sparse_accel;
using namespace check;

namespace {

template <class T>
void test(const std::vector<GroupLayout>& shapes, const Options& options) {
  if (!tested<T>()) return;
  using A = Compute<T>;
  State<T> before;
  for (const GroupLayout& shape : shapes) {
    before.params.push_back(normal<T>(numel(shape)));
    before.grads.push_back(normal<T>(numel(shape)));
    before.duals.push_back(normal<A>(numel(shape)));
    before.squares.push_back(normal<A>(numel(shape)));
    before.anchors.push_back(normal<A>(numel(shape)));
    for (A& x : before.squares.back()) x = x * x + A(0.1);
    for (T& x : before.params.back()) x = number<T>(value(x) * options.magnitude);
    for (A& x : before.anchors.back()) x *= A(options.magnitude);
    for (A& x : before.duals.back()) x *= A(options.magnitude);
    if (options.magnitude != 1) {
      for (T& x : before.grads.back()) x = number<T>(0);
    }
    if (options.zero_group && shape.groups) {
      for_group(shape, shape.groups - 1, [&](std::size_t i) {
        before.params.back()[i] = before.grads.back()[i] = number<T>(0);
        before.duals.back()[i] = before.anchors.back()[i] = A(0);
      });
    }
  }
  before.steps.assign(shapes.size(), kStep);
  before.alphas.assign(shapes.size(), options.alpha);
  const auto after = step(before, shapes, options);
  const auto again = in_another_order(after, [&] { return step(before, shapes, options); });
  for (std::size_t t = 0; t < shapes.size(); ++t) {
    CHECK(same_bits(after.params[t], again.params[t]) && same_bits(after.duals[t], again.duals[t]) &&
              same_bits(after.squares[t], again.squares[t]),
          "tensor %zu: other bits in another order", t);
    compare(before, after, t, shapes[t], options);
  }
}

// Rows in shared memory: parts of a warp, a warp and a block for each group, on both sides of kWarpGroup; runs of
// several rows; groups that fill most of the shared memory, and one that has no room there.
const std::vector<GroupLayout> kRows{{1, 37, 12},  {1, 11, 100}, {1, 9, 1023},  {1, 9, 1024}, {1, 3, 1025},
                                     {1, 3, 1028}, {9, 5, 36},   {40, 3, 32},   {3, 2, 1000}, {1, 300, 2},
                                     {1, 2, 9000}, {1, 1, 7000}, {1, 1, 27000}, {1, 1, 29700}};
// Strips: blocks on their own and clusters; runs of 1, 3, 9 and 31; the last strip and the last block not full; so many
// rows that strips are narrow; groups of a row for fewer than all blocks; rows that are no whole packs.
const std::vector<GroupLayout> kColumns{{333, 40, 1},  {50, 40, 1},   {700, 20, 1}, {350, 8, 9},
                                        {400, 12, 3},  {90, 16, 3},   {2, 72, 1},   {130, 4, 31},
                                        {2200, 32, 1}, {14000, 4, 1}, {333, 5, 1}};
// Of these under ThreadSanitizer: each way once.
const std::vector<GroupLayout> kFewRows{{1, 11, 100}, {1, 3, 1028}, {9, 5, 36}};
const std::vector<GroupLayout> kFewColumns{{50, 8, 1}, {350, 12, 3}};

// Large shapes run in one order and its reverse: they are most of the time, and what depends on the order does so in
// small ones.
bool in_forward_order() {
  const char* const order = std::getenv("EMU_ORDER");
  return order == nullptr || std::strcmp(order, "forward") == 0;
}

// Everything that a kernel knows, where numbers fit into shared memory.
void in_shared_memory(cuda::MetricRule rule) {
  Options plain;
  plain.rule = rule;
  const auto everywhere = [rule](const Options& options, bool wide) {
    const bool all = tested<double>() && wide && rule == cuda::MetricRule::ramda && in_forward_order();
    test<float>(all ? kRows : kFewRows, options);
    with_clusters([&] { test<float>(all ? kColumns : kFewColumns, options); });
  };
  everywhere(plain, true);
  Options strong = plain;  // some groups go
  strong.strength = 2.2;
  strong.zero_group = true;
  everywhere(strong, false);
  Options hard = plain;
  hard.prox = Prox::hard;
  everywhere(hard, false);
  if (!in_forward_order() || !tested<double>()) return;  // the rest is arithmetic: the same in all orders and threads
  Options free = plain;
  free.lr_on_device = true;
  free.lr = 0;
  free.alpha = 0;
  everywhere(free, false);
  Options amp = plain;
  amp.maximize = true;
  amp.momentum = 1;
  amp.grad_scale = 8;
  everywhere(amp, false);
  amp.found_inf = 1;
  everywhere(amp, false);
  Options shifted = plain;
  shifted.shift = 1;
  everywhere(shifted, false);
  for (const double magnitude : {1e-30, 1e30}) {
    Options extreme = plain;
    extreme.magnitude = magnitude;
    extreme.strength *= magnitude;
    everywhere(extreme, false);
  }
  Options tiny = plain;  // squares vanish
  tiny.magnitude = 1e-200;
  tiny.strength *= tiny.magnitude;
  tiny.zero_group = true;
  for (const Options& options : {plain, hard, tiny}) {
    test<double>(kFewRows, options);
    with_clusters([&] { test<double>(kFewColumns, options); });
  }
  test<__nv_bfloat16>(kFewRows, plain);
  test<__half>(kFewRows, plain);
  with_clusters([&] {
    test<__nv_bfloat16>(kFewColumns, plain);
    test<__half>(kFewColumns, plain);
  });
}

// Copies of a segment, one after another: as many tensors of one copy give the same bits.
void copies(const GroupLayout& layout) {
  constexpr int kCopies = 3;
  const auto count = std::size_t(numel(layout)) * kCopies;
  const auto params = normal<float>(std::int64_t(count)), grads = normal<float>(std::int64_t(count));
  auto squares = normal<float>(std::int64_t(count));
  for (float& x : squares) x = x * x + 0.1f;
  std::vector<std::vector<float>> found;
  for (const int at_once : {kCopies, 1}) {
    Device<float> param(params), grad(grads), dual(grads), square(squares), anchor(params);
    std::vector<cuda::MetricSegment> segments;
    std::vector<cuda::MetricClock> clocks{{nullptr, nullptr, kStep, kAlpha, 0.4}};
    for (std::int64_t at = 0; at < std::int64_t(count); at += numel(layout) * at_once) {
      segments.push_back({param.get() + at, grad.get() + at, dual.get() + at, square.get() + at, anchor.get() + at,
                          layout, 0, at_once});
    }
    const cuda::MetricSettings settings{
        cuda::MetricRule::ramda, kLr, 0.3, kEps, 0, 0, 0, false, nullptr, nullptr, nullptr};
    Scratch scratch;
    CHECK(cuda::metric_step(DType::f32, segments, clocks, settings, Prox::soft, scratch.allocate(), nullptr) ==
              cudaSuccess,
          "launch");
    cudaDeviceSynchronize();
    found.push_back(param.read());
  }
  CHECK(same_bits(found[0], found[1]), "copies");
}

}  // namespace

int main() {
  return run([] {
    for (const auto rule : {cuda::MetricRule::ramda, cuda::MetricRule::adamw}) in_shared_memory(rule);
    copies({1, 5, 40});
    with_clusters([] { copies({50, 12, 3}); });
    const std::vector<GroupLayout> few{{1, 300, 1}, {1, 7, 40}, {70, 33, 1}, {20, 4, 9}, {1, 2, 700}};
    for (const auto rule : {cuda::MetricRule::ramda, cuda::MetricRule::adamw}) {
      Options plain;
      plain.rule = rule;
      const bool wide = rule == cuda::MetricRule::ramda && tested<double>();  // not under ThreadSanitizer: tenfold
      test<float>(wide ? layouts() : few, plain);
      Options shifted = plain;
      shifted.shift = 1;
      shifted.zero_group = true;
      test<float>(few, shifted);
      test<double>(few, shifted);
      if (rule == cuda::MetricRule::ramda) {
        test<__half>(few, plain);
        test<__nv_bfloat16>(few, shifted);
      }
      Options hard = plain;
      hard.prox = Prox::hard;
      hard.clocks_on_device = false;
      test<double>(few, hard);
      if (!in_forward_order() || !tested<double>()) continue;
      Options none = plain;
      none.strength = 0;
      test<float>(few, none);
      Options amp = plain;
      amp.maximize = true;
      amp.momentum = 1;
      amp.lr_on_device = true;
      amp.grad_scale = 8;
      test<float>(few, amp);
      amp.found_inf = 1;
      test<float>(few, amp);
      Options tiny = plain;  // squares vanish
      tiny.magnitude = 1e-30;
      tiny.strength *= tiny.magnitude;
      test<float>(few, tiny);
      tiny.magnitude = 1e-200;
      tiny.strength = plain.strength * tiny.magnitude;
      tiny.zero_group = true;
      test<double>(few, tiny);
    }
    if (tested<double>())
      test<float>(std::vector<GroupLayout>(150, {3, 7, 1}), {});  // more than one table, of clocks too
  });
}
