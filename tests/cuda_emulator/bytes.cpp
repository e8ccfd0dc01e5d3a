// What each op moves: for every argument "op dtype numbers..." a line "launches allocations read written", in bytes of
// global memory; from the argument "clusters" on, on a device that has them. test_bytes.py has the cases and compares
// with the floor. The kernels are linked, instrumented (emu_count.h).
#include <cstdio>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "emu_count.h"
#include "group_score.h"
#include "group_topk.h"
#include "metric_step.h"
#include "prox.h"
#include "prox_sgd_step.h"
#include "rmda_step.h"
#include "topk_threshold.h"
#include "vec.cuh"

using namespace sparse_accel;
using cuda::DType;

namespace {

struct Case {
  std::string op, dtype;
  std::vector<long> number;

  explicit Case(const char* text) {
    std::istringstream in(text);
    in >> op >> dtype;
    for (long n; in >> n;) number.push_back(n);
  }
  DType type() const {
    return dtype == "f32" ? DType::f32 : dtype == "f64" ? DType::f64 : dtype == "bf16" ? DType::bf16 : DType::f16;
  }
  std::size_t size() const { return dtype == "f32" ? 4 : dtype == "f64" ? 8 : 2; }
  std::size_t compute_size() const { return dtype == "f64" ? 8 : 4; }
  DType compute() const { return dtype == "f64" ? DType::f64 : DType::f32; }
  // Of ops on groups: outer, groups, inner, how many such tensors there are, and copies in each.
  GroupLayout layout() const { return {number[0], number[1], number[2]}; }
  long elements() const { return number[0] * number[1] * number[2] * copies(); }
  int tensors() const { return int(number[3]); }
  long copies() const { return number.size() > 4 ? number[4] : 1; }  // of every segment
};

std::mt19937 rng;

void* normal(std::size_t count, DType type) {
  std::normal_distribution<float> distribution;
  const std::size_t size = type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2;
  auto* const memory = static_cast<char*>(emu::counter.allocate(count * size));
  for (std::size_t i = 0; i < count; ++i) {
    const float x = distribution(rng);
    if (type == DType::f64) reinterpret_cast<double*>(memory)[i] = x;
    if (type == DType::f32) reinterpret_cast<float*>(memory)[i] = x;
    if (type == DType::bf16) reinterpret_cast<__nv_bfloat16*>(memory)[i] = __float2bfloat16_rn(x);
    if (type == DType::f16) reinterpret_cast<__half*>(memory)[i] = __float2half_rn(x);
  }
  return memory;
}

template <class T>
T* filled(std::size_t count, T value) {
  T* const memory = static_cast<T*>(emu::counter.allocate(count * sizeof(T)));
  for (std::size_t i = 0; i < count; ++i) memory[i] = value;
  return memory;
}

int allocations = 0;

// As torch's memory comes to launchers.
cuda::Allocate scratch() {
  const auto pool = std::make_shared<cuda::Pool>([](std::size_t bytes) {
    ++allocations;
    return emu::counter.allocate(bytes);
  });
  return [pool](std::size_t bytes) { return pool->take(bytes); };
}

void rmda(const Case& c) {
  std::vector<cuda::RmdaSegment> segments;
  std::vector<cuda::RmdaClock> clocks;
  const auto count = std::size_t(c.elements());
  for (int t = 0; t < c.tensors(); ++t) {
    segments.push_back({normal(count, c.type()), normal(count, c.type()), normal(count, c.compute()),
                        normal(count, c.compute()), c.layout(), t, c.copies()});
    clocks.push_back({filled<float>(1, 3), filled<double>(1, 1), 0, 0, 0.3});
  }
  cuda::rmda_step(c.type(), segments, clocks, {Prox::soft, 0.1, nullptr, 0.3, false, nullptr, nullptr}, scratch(),
                  nullptr);
}

void sgd(const Case& c) {
  std::vector<cuda::SgdSegment> segments;
  std::vector<cuda::SgdClock> clocks;
  const auto count = std::size_t(c.elements());
  for (int t = 0; t < c.tensors(); ++t) {
    segments.push_back(
        {normal(count, c.type()), normal(count, c.type()), normal(count, c.compute()), c.layout(), t, c.copies()});
    clocks.push_back({filled<float>(1, 3), 0.3});
  }
  cuda::prox_sgd_step(c.type(), segments, clocks, {Prox::soft, 0.1, nullptr, 0.3, false, nullptr, nullptr}, scratch(),
                      nullptr);
}

void metric(const Case& c, cuda::MetricRule rule) {
  std::vector<cuda::MetricSegment> segments;
  std::vector<cuda::MetricClock> clocks;
  const bool ramda = rule == cuda::MetricRule::ramda;
  const auto count = std::size_t(c.elements());
  for (int t = 0; t < c.tensors(); ++t) {
    void* const square =
        c.type() == DType::f64 ? static_cast<void*>(filled<double>(count, 1)) : filled<float>(count, 1);
    segments.push_back({normal(count, c.type()), normal(count, c.type()), normal(count, c.compute()), square,
                        ramda ? normal(count, c.compute()) : nullptr, c.layout(), t, c.copies()});
    clocks.push_back({filled<float>(1, 3), ramda ? filled<double>(1, 1) : nullptr, 0, 0, 0.3});
  }
  const cuda::MetricSettings settings{rule, 0.1, ramda ? 0.3 : 1, 1e-6, 0.9, 0.99, 0, false, nullptr, nullptr, nullptr};
  cuda::metric_step(c.type(), segments, clocks, settings, Prox::soft, scratch(), nullptr);
}

void prox(const Case& c, bool with_value) {
  std::vector<cuda::ProxSegment> segments;
  for (int t = 0; t < c.tensors(); ++t) {
    segments.push_back({normal(std::size_t(c.elements()), c.type()), c.layout(), 0.3, t, c.copies()});
  }
  double* const values = with_value ? filled<double>(std::size_t(c.tensors()), 0) : nullptr;
  cuda::prox(c.type(), segments, Prox::soft, values, scratch(), nullptr);
}

void score(const Case& c) {
  std::vector<cuda::ScoreSegment> segments;
  for (int t = 0; t < c.tensors(); ++t) {
    void* const output = emu::counter.allocate(std::size_t(c.layout().groups * c.copies()) * c.compute_size());
    segments.push_back({normal(std::size_t(c.elements()), c.type()), output, c.layout(), c.copies()});
  }
  cuda::group_score(c.type(), segments, Score::l2, true, scratch(), nullptr);
}

// count, k
void group_topk(const Case& c) {
  const long count = c.number[0];
  auto* const mask = static_cast<bool*>(emu::counter.allocate(std::size_t(count)));
  cuda::group_topk(c.type(), {{normal(std::size_t(count), c.type()), mask, count}}, c.number[1], filled<int>(1, 0),
                   scratch(), nullptr);
}

// rows, columns, k; or rows, columns, n, m
void topk(const Case& c, bool blocks) {
  const long rows = c.number[0], columns = c.number[1], count = rows * columns;
  void* const x = normal(std::size_t(count), c.type());
  const cuda::TopkTask task{c.type(), true,          x,
                            nullptr,  columns,       count,
                            x,        int(c.size()), static_cast<bool*>(emu::counter.allocate(std::size_t(count)))};
  int* const flag = filled<int>(1, 0);
  if (blocks) {
    cuda::topk_blocks(task, int(c.number[2]), int(c.number[3]), flag, nullptr);
  } else {
    cuda::topk_rows(task, rows, c.number[2], flag, scratch(), nullptr);
  }
}

// outer, groups, inner, tensors: half of the groups stay
void topk_groups(const Case& c) {
  const auto groups = std::size_t(c.layout().groups), count = std::size_t(c.elements());
  bool* const keep = filled<bool>(groups, false);
  for (std::size_t g = 0; g < groups; g += 2) keep[g] = true;
  cuda::topk_groups(normal(count, c.type()), int(c.size()), static_cast<bool*>(emu::counter.allocate(count)), keep,
                    c.layout(), 1, nullptr);
}

bool run(const Case& c) {
  if (c.op == "rmda") return rmda(c), true;
  if (c.op == "sgd") return sgd(c), true;
  if (c.op == "ramda") return metric(c, cuda::MetricRule::ramda), true;
  if (c.op == "adamw") return metric(c, cuda::MetricRule::adamw), true;
  if (c.op == "prox" || c.op == "prox_value") return prox(c, c.op == "prox_value"), true;
  if (c.op == "score") return score(c), true;
  if (c.op == "group_topk") return group_topk(c), true;
  if (c.op == "topk" || c.op == "topk_blocks") return topk(c, c.op == "topk_blocks"), true;
  if (c.op == "topk_groups") return topk_groups(c), true;
  return false;
}

}  // namespace

int main(int count, char** texts) {
  for (int i = 1; i < count; ++i) {
    if (std::string(texts[i]) == "clusters") {
      emu::config.clusters = 8;
      continue;
    }
    const Case c(texts[i]);
    emu::counter.start();
    rng.seed(7);  // a case counts the same on its own
    allocations = 0;
    const std::uint64_t before = emu::engine.launches();
    if (!run(c)) return std::fprintf(stderr, "no such op: %s\n", texts[i]), 2;
    const emu::Traffic traffic = emu::counter.traffic();
    std::printf("%llu %d %llu %llu\n", (unsigned long long)(emu::engine.launches() - before), allocations,
                (unsigned long long)traffic.read, (unsigned long long)traffic.written);
  }
  return 0;
}
