// The collective helpers on their own, each called twice in a row: a missing barrier between the calls shows.
#include "check.h"
#include "reduce.cuh"

using namespace sparse_accel;
using namespace sparse_accel::cuda;
using namespace check;

namespace {

__global__ void block_reduce_kernel(const double* x, double* out) {
  const int i = int(blockIdx.x) * kThreads + int(threadIdx.x);
  const double sum = block_reduce(x[i], Add());
  const double most = block_reduce(x[i] < 0 ? -x[i] : x[i], Max());
  const double mean = block_reduce(sum + most, Add());
  const double other = block_reduce(x[i] * mean, Add());
  out[4 * i] = sum;
  out[4 * i + 1] = most;
  out[4 * i + 2] = mean;
  out[4 * i + 3] = other;
}

void test_block_reduce() {
  const int blocks = 3;
  const auto x = normal<double>(blocks * kThreads);
  Device<double> in(x), out(4 * x.size());
  launch_kernel(block_reduce_kernel, blocks, kThreads, 0, nullptr, in.get(), out.get());
  cudaDeviceSynchronize();
  const auto got = out.read();
  for (std::size_t i = 0; i < x.size(); ++i) {
    double sum = 0, most = 0;
    for (std::size_t j = i / kThreads * kThreads; j < (i / kThreads + 1) * kThreads; ++j) {
      sum += x[j];
      most = std::max(most, std::fabs(x[j]));
    }
    const double mean = kThreads * (sum + most);
    CHECK(close(got[4 * i], sum, 1e-12) && got[4 * i + 1] == most, "[%zu]", i);
    CHECK(close(got[4 * i + 2], mean, 1e-12) && close(got[4 * i + 3], mean * sum, 1e-12), "[%zu]", i);
  }
}

__global__ void block_prefix_kernel(const unsigned* x, unsigned* out) {
  const int i = int(blockIdx.x) * kThreads + int(threadIdx.x);
  unsigned total, total2;
  const unsigned rank = block_prefix(x[i], total);
  const unsigned rank2 = block_prefix(2 * x[i] + total, total2);
  out[4 * i] = rank;
  out[4 * i + 1] = total;
  out[4 * i + 2] = rank2;
  out[4 * i + 3] = total2;
}

void test_block_prefix() {
  const unsigned blocks = 2;
  std::vector<unsigned> x(blocks * kThreads);
  for (unsigned& v : x) v = generator()() % 5;
  Device<unsigned> in(x), out(4 * x.size());
  launch_kernel(block_prefix_kernel, blocks, kThreads, 0, nullptr, in.get(), out.get());
  cudaDeviceSynchronize();
  const auto got = out.read();
  for (unsigned block = 0; block < blocks; ++block) {
    unsigned total = 0, rank = 0, rank2 = 0;
    for (unsigned j = 0; j < kThreads; ++j) total += x[block * kThreads + j];
    for (unsigned j = 0; j < kThreads; ++j) {
      const unsigned i = block * kThreads + j, total2 = (2 + kThreads) * total;
      CHECK(got[4 * i] == rank && got[4 * i + 1] == total, "[%u] %u %u want %u %u", i, got[4 * i], got[4 * i + 1], rank,
            total);
      CHECK(got[4 * i + 2] == rank2 && got[4 * i + 3] == total2, "[%u] %u %u want %u %u", i, got[4 * i + 2],
            got[4 * i + 3], rank2, total2);
      rank += x[i];
      rank2 += 2 * x[i] + total;
    }
  }
}

// Sums of each team's ranks, weighted, for every team size.
__global__ void team_reduce_kernel(const double* x, double* out) {
  const int i = int(blockIdx.x) * kThreads + int(threadIdx.x);
  int size = 0;
  for (int team = 1; team <= kThreads; team = team == 32 ? kThreads : 2 * team) {
    out[7 * i + size++] = team_reduce(x[i], team, Add());
  }
}

void test_team_reduce() {
  const auto x = normal<double>(2 * kThreads);
  Device<double> in(x), out(7 * x.size());
  launch_kernel(team_reduce_kernel, 2, kThreads, 0, nullptr, in.get(), out.get());
  cudaDeviceSynchronize();
  const auto got = out.read();
  const std::size_t teams[] = {1, 2, 4, 8, 16, 32, kThreads};
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t t = 0; t < 7; ++t) {
      double sum = 0;
      for (std::size_t j = i / teams[t] * teams[t]; j < (i / teams[t] + 1) * teams[t]; ++j) sum += x[j];
      CHECK(close(got[7 * i + t], sum, 1e-12), "team %zu [%zu]: %g want %g", teams[t], i, got[7 * i + t], sum);
    }
  }
}

template <int N>
__global__ void columns_kernel(Cover cover, const float* x, float* sums, float* squares) {
  SHARED(float, shared, [kThreads * N]);
  const Tile tile = find_tile<N>(cover, int(blockIdx.x));
  const auto read = [&](std::int64_t offset) { return load<N>(x + offset); };
  const auto number = [](std::int64_t, const Pack<float, N>& numbers) { return numbers; };
  const auto square = [](std::int64_t, Pack<float, N> out) {
    for (int k = 0; k < N; ++k) out.value[k] *= out.value[k];
    return out;
  };
  const std::int64_t base = tile.chunk * cover.columns();
  reduce_columns<N, 4>(cover, tile, shared, Add(), read, number,
                       [&](std::int64_t c, float sum) { sums[base + c] = sum; });
  reduce_columns<N, 1>(cover, tile, shared, Add(), read, square,
                       [&](std::int64_t c, float sum) { squares[base + c] = sum; });
}

template <int N>
void test_columns(const GroupLayout& layout) {
  const Cover cover = cover_columns(layout, N, N > 1);
  CHECK(cover.packed == (N > 1), "wanted packs of %d", N);
  const auto x = normal<float>(numel(layout));
  const std::size_t columns = std::size_t(cover.columns()), chunks = std::size_t(cover.pieces);
  Device<float> in(x), sums(chunks * columns), squares(chunks * columns);
  launch_kernel(columns_kernel<N>, unsigned(blocks_of(cover, N)), kThreads, 0, nullptr, cover, in.get(), sums.get(),
                squares.get());
  cudaDeviceSynchronize();
  const auto got = sums.read(), got_squares = squares.read();
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    for (std::size_t c = 0; c < columns; ++c) {
      double sum = 0, square = 0;
      for (std::int64_t row = std::int64_t(chunk) * cover.length;
           row < layout.outer && row < std::int64_t(chunk + 1) * cover.length; ++row) {
        const double v = x[std::size_t(row) * columns + c];
        sum += v;
        square += v * v;
      }
      const std::size_t i = chunk * columns + c;
      CHECK(close(got[i], sum, 1e-4) && close(got_squares[i], square, 1e-5), "chunk %zu column %zu", chunk, c);
    }
  }
}

}  // namespace

int main() {
  return run([] {
    test_block_reduce();
    test_block_prefix();
    test_team_reduce();
    test_columns<1>({70, 45, 1});
    test_columns<1>({600, 1, 3});
    test_columns<4>({130, 60, 3});
    test_columns<4>({2, 300, 4});
  });
}
