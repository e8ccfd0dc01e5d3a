// Products with weights in the bitmask format. A warp takes a tile, half of it at a time: a lane a word of bits, whose
// values stand where the counts of the words before it say. Values come in 16-byte loads, and stay in shared memory
// until the lanes have picked theirs. A block is a panel: eight warps that share 256 columns of the inputs.
#include "sparse_linear.h"

#include "../math.h"
#include "vec.cuh"

// Tests count what kernels move from and to global memory.
#ifndef COUNT_GLOBAL_BYTES
#define COUNT_GLOBAL_BYTES(bytes) (void)(bytes)
#endif

namespace sparse_accel::cuda {
namespace {

constexpr int kWarps = kPanelTiles;
constexpr int kThreadsOfPanel = 32 * kWarps;
constexpr int kHalf = kTileRows * kTileColumns / 2;  // weights that a warp takes at a time, 32 of a lane
constexpr int kLanesOfRow = kTileColumns / 32;
constexpr std::int64_t kWantedBlocks = 1024;  // fills the largest of today's GPUs several times
constexpr std::int64_t kTilesOfSplit = 4;     // at least: a split writes and reads a sum for each row

SPARSE_ACCEL_HOST_DEVICE float widen(signed char x) { return float(x); }
using cuda::widen;

template <class T>
__device__ __forceinline__ T global(const T* from) {
  COUNT_GLOBAL_BYTES(sizeof(T));
  return *from;
}
// The same address for the whole warp: one access.
template <class T>
__device__ __forceinline__ T global_of_warp(const T* from) {
  if (threadIdx.x % 32 == 0) COUNT_GLOBAL_BYTES(sizeof(T));
  return *from;
}
template <class T>
__device__ __forceinline__ void to_global(T* to, T value) {
  COUNT_GLOBAL_BYTES(sizeof(T));
  *to = value;
}

// What a lane knows of its word in half a tile.
struct Word {
  unsigned bits;
  int before;  // values of the words before it
  int total;   // of the half
};

__device__ __forceinline__ Word word_of(const SparseWeight& w, std::int64_t tile, int half) {
  const int lane = threadIdx.x % 32;
  Word word;
  word.bits = global(reinterpret_cast<const unsigned*>(w.bits) + tile * (kTileBytes / 4) + half * 32 + lane);
  int sum = __popc(word.bits);
  const int own = sum;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  word.before = sum - own;
  word.total = __shfl_sync(0xffffffffu, sum, 31);
  return word;
}

template <class T>
constexpr int kUnits = kHalf * int(sizeof(T)) / kValueAlign + 1;  // one more where a half begins inside of one

// The `total` values from number `first` on into a warp's memory; where the first stands there.
template <class T>
__device__ __forceinline__ const T* stage(const T* values, std::int64_t first, int total, uint4* staged) {
  constexpr int kOfUnit = kValueAlign / int(sizeof(T));
  const int skip = int(first % kOfUnit), units = (skip + total + kOfUnit - 1) / kOfUnit;
  const uint4* const from = reinterpret_cast<const uint4*>(values) + first / kOfUnit;
  __syncwarp();  // the half before has been read
  for (int unit = threadIdx.x % 32; unit < units; unit += 32) staged[unit] = global(from + unit);
  __syncwarp();
  return reinterpret_cast<const T*>(staged) + skip;
}

// Of a lane's row; all lanes take part.
template <class T>
__device__ __forceinline__ float scale_of(const SparseWeight& w, std::int64_t row, std::int64_t column_tile) {
  if constexpr (sizeof(T) == 1) {
    const int lane = threadIdx.x % 32, first = lane / kLanesOfRow * kLanesOfRow;  // one lane of a row reads
    float scale = 0.0f;
    if (lane == first && row < w.rows) scale = global(w.scales + row * w.column_tiles + column_tile);
    return __shfl_sync(0xffffffffu, scale, first);
  } else {
    return 1.0f;
  }
}

struct Product {
  SparseWeight w;
  const void* x;  // [batch, columns]
  int batch;
  float* partial;  // [splits, batch, rows]
  std::int64_t tiles_of_split;
};

template <class T, class X, int kBatch>
__global__ void __launch_bounds__(kThreadsOfPanel) sparse_linear_kernel(Product product) {
  SHARED(float, inputs, [kBatch][kTileColumns]);
  SHARED(uint4, staged, [kWarps][kUnits<T>]);
  const SparseWeight& w = product.w;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t row_tile = std::int64_t(blockIdx.x) * kPanelTiles + warp;
  const std::int64_t begin = blockIdx.y * product.tiles_of_split;
  const std::int64_t end = min(begin + product.tiles_of_split, w.column_tiles);
  const T* const values = static_cast<const T*>(w.values);
  const X* const x = static_cast<const X*>(product.x);
  float sums[2][kBatch] = {};
  for (std::int64_t column_tile = begin; column_tile < end; ++column_tile) {
    __syncthreads();  // the columns before have been read
    for (int i = threadIdx.x; i < kBatch * kTileColumns; i += kThreadsOfPanel) {
      const int b = i / kTileColumns, c = i % kTileColumns;
      const std::int64_t column = column_tile * kTileColumns + c;
      const bool inside = b < product.batch && column < w.columns;
      inputs[b][c] = inside ? widen(global(x + b * w.columns + column)) : 0.0f;
    }
    __syncthreads();
    if (row_tile >= w.row_tiles) continue;  // the whole warp
    const std::int64_t tile = tile_index(row_tile, column_tile, w.row_tiles, w.column_tiles);
    std::int64_t first = std::int64_t(global_of_warp(w.offsets + tile)) * (kValueAlign / int(sizeof(T)));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Word word = word_of(w, tile, half);
      const T* from = stage(values, first, word.total, staged[warp]) + word.before;
      first += word.total;
      const int column = lane % kLanesOfRow * 32;
      float part[kBatch] = {};
      while (word.bits) {
        const int place = column + __ffs(int(word.bits)) - 1;
        word.bits &= word.bits - 1;
        const float weight = widen(*from++);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) part[b] += weight * inputs[b][place];
      }
      const std::int64_t row = row_tile * kTileRows + half * (kTileRows / 2) + lane / kLanesOfRow;
      const float scale = scale_of<T>(w, row, column_tile);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) sums[half][b] += sizeof(T) == 1 ? scale * part[b] : part[b];
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = row_tile * kTileRows + half * (kTileRows / 2) + lane / kLanesOfRow;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float sum = sums[half][b];
      for (int step = kLanesOfRow / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane % kLanesOfRow == 0 && row < w.rows && b < product.batch) {
        to_global(product.partial + (std::int64_t(blockIdx.y) * product.batch + b) * w.rows + row, sum);
      }
    }
  }
}

struct Finish {
  const void* from;  // [parts, count]
  std::int64_t parts;
  std::int64_t count;  // batch * rows
  std::int64_t rows;
  const void* bias;
  Activation activation;
  void* to;  // [count]
};

// The sum of the parts, in their order.
template <class From, class X>
__global__ void __launch_bounds__(kThreadsOfPanel) sparse_finish_kernel(Finish finish) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreadsOfPanel + threadIdx.x;
  if (i >= finish.count) return;
  const From* const from = static_cast<const From*>(finish.from) + i;
  float sum = 0.0f;
  for (std::int64_t part = 0; part < finish.parts; ++part) sum += widen(global(from + part * finish.count));
  if (finish.bias != nullptr) sum += widen(global(static_cast<const X*>(finish.bias) + i % finish.rows));
  X out;
  narrow(activate(sum, finish.activation), out);
  to_global(static_cast<X*>(finish.to) + i, out);
}

// A warp goes through the words of half a tile, its lanes through the bits of one: neighbours in memory.
// body(row, column, number of the value) for each place inside of the matrix; the number is -1 where nothing is kept.
template <class T, class Before, class Body>
__device__ __forceinline__ void for_places(const SparseWeight& w, std::int64_t row_tile, std::int64_t column_tile,
                                           const Before& before, const Body& body) {
  const int lane = threadIdx.x % 32;
  const std::int64_t tile = tile_index(row_tile, column_tile, w.row_tiles, w.column_tiles);
  std::int64_t first = std::int64_t(global_of_warp(w.offsets + tile)) * (kValueAlign / int(sizeof(T)));
  for (int half = 0; half < 2; ++half) {
    const Word word = word_of(w, tile, half);
    before(first, word.total);
    for (int other = 0; other < 32; ++other) {
      const unsigned bits = __shfl_sync(0xffffffffu, word.bits, other);
      const int kept_before = __shfl_sync(0xffffffffu, word.before, other);
      const std::int64_t row = row_tile * kTileRows + half * (kTileRows / 2) + other / kLanesOfRow;
      const std::int64_t column = column_tile * kTileColumns + other % kLanesOfRow * 32 + lane;
      const bool kept = bits >> lane & 1;
      const int number = kept ? kept_before + __popc(bits & ((1u << lane) - 1)) : -1;
      if (row < w.rows && column < w.columns) body(row, column, first, number);
    }
    first += word.total;
  }
}

template <class T, class X>
__global__ void __launch_bounds__(kThreadsOfPanel)
    sparse_unpack_kernel(SparseWeight w, std::int64_t first_tile, std::int64_t last_tile, X* dense) {
  SHARED(uint4, staged, [kWarps][kUnits<T>]);
  const int warp = threadIdx.x / 32;
  const std::int64_t row_tile = first_tile + std::int64_t(blockIdx.x) * kPanelTiles + warp, column_tile = blockIdx.y;
  if (row_tile >= last_tile) return;  // the whole warp; no barrier of the block follows
  const T* from = nullptr;
  for_places<T>(
      w, row_tile, column_tile,
      [&](std::int64_t first, int total) { from = stage(static_cast<const T*>(w.values), first, total, staged[warp]); },
      [&](std::int64_t row, std::int64_t column, std::int64_t, int number) {
        float value = 0.0f;
        if (number >= 0) value = widen(from[number]);
        if constexpr (sizeof(T) == 1) value *= global(w.scales + row * w.column_tiles + column_tile);
        X out;
        narrow(value, out);
        to_global(dense + (row - first_tile * kTileRows) * w.columns + column, out);
      });
}

template <class X>
__global__ void __launch_bounds__(kThreadsOfPanel) sparse_collect_kernel(SparseWeight w, const X* dense, X* values) {
  const std::int64_t row_tile = std::int64_t(blockIdx.x) * kPanelTiles + threadIdx.x / 32, column_tile = blockIdx.y;
  if (row_tile >= w.row_tiles) return;  // the whole warp; no barrier of the block follows
  for_places<X>(
      w, row_tile, column_tile, [](std::int64_t, int) {},
      [&](std::int64_t row, std::int64_t column, std::int64_t first, int number) {
        if (number >= 0) to_global(values + first + number, global(dense + row * w.columns + column));
      });
}

std::int64_t panels_of(std::int64_t row_tiles) { return (row_tiles + kPanelTiles - 1) / kPanelTiles; }

// body(value of the inputs' type)
template <class Body>
cudaError_t for_inputs(DType type, const Body& body) {
  switch (type) {
    case DType::f32:
      return body(float());
    case DType::bf16:
      return body(__nv_bfloat16());
    case DType::f16:
      return body(__half());
    default:
      return cudaErrorInvalidValue;
  }
}

template <class T, class X>
void launch_product(const Product& product, dim3 grid, cudaStream_t stream) {
  auto* const kernel = product.batch == 1   ? sparse_linear_kernel<T, X, 1>
                       : product.batch <= 4 ? sparse_linear_kernel<T, X, 4>
                                            : sparse_linear_kernel<T, X, 8>;
  launch_kernel(kernel, grid, kThreadsOfPanel, 0, stream, product);
}

template <class From, class X>
void launch_finish(const Finish& finish, cudaStream_t stream) {
  launch_kernel(sparse_finish_kernel<From, X>, unsigned((finish.count + kThreadsOfPanel - 1) / kThreadsOfPanel),
                kThreadsOfPanel, 0, stream, finish);
}

}  // namespace

cudaError_t sparse_linear(SparseTypes types, const SparseWeight& w, const void* x, std::int64_t batch, const void* bias,
                          Activation activation, void* y, const Allocate& allocate, cudaStream_t stream) {
  const std::int64_t panels = panels_of(w.row_tiles), tiles = w.column_tiles > 0 ? w.column_tiles : 1;
  const std::int64_t wanted = max(std::int64_t(1), min(tiles / kTilesOfSplit, kWantedBlocks / panels));
  const std::int64_t of_split = (tiles + wanted - 1) / wanted, splits = (tiles + of_split - 1) / of_split;
  return for_inputs(types.inputs, [&](auto input) {
    using X = decltype(input);
    constexpr std::int64_t kMost = 8;
    auto* const partial =
        static_cast<float*>(allocate(std::size_t(splits * min(batch, kMost) * w.rows) * sizeof(float)));
    for (std::int64_t first = 0; first < batch; first += kMost) {
      const std::int64_t count = min(kMost, batch - first);
      const Product product{w, static_cast<const X*>(x) + first * w.columns, int(count), partial, of_split};
      const dim3 grid{unsigned(panels), unsigned(splits)};
      if (types.int8) {
        launch_product<signed char, X>(product, grid, stream);
      } else {
        launch_product<X, X>(product, grid, stream);
      }
      launch_finish<float, X>(
          {partial, splits, count * w.rows, w.rows, bias, activation, static_cast<X*>(y) + first * w.rows}, stream);
    }
    return cudaGetLastError();
  });
}

cudaError_t sparse_unpack(SparseTypes types, const SparseWeight& w, std::int64_t first, std::int64_t last, void* dense,
                          cudaStream_t stream) {
  const dim3 grid{unsigned(panels_of(last - first)), unsigned(w.column_tiles)};
  return for_inputs(types.inputs, [&](auto input) {
    using X = decltype(input);
    auto* const kernel = types.int8 ? sparse_unpack_kernel<signed char, X> : sparse_unpack_kernel<X, X>;
    launch_kernel(kernel, grid, kThreadsOfPanel, 0, stream, w, first, last, static_cast<X*>(dense));
    return cudaGetLastError();
  });
}

cudaError_t sparse_collect(DType type, const SparseWeight& w, const void* dense, void* values, cudaStream_t stream) {
  const dim3 grid{unsigned(panels_of(w.row_tiles)), unsigned(w.column_tiles)};
  return for_inputs(type, [&](auto input) {
    using X = decltype(input);
    launch_kernel(sparse_collect_kernel<X>, grid, kThreadsOfPanel, 0, stream, w, static_cast<const X*>(dense),
                  static_cast<X*>(values));
    return cudaGetLastError();
  });
}

cudaError_t sparse_finish(DType type, void* y, std::int64_t batch, std::int64_t rows, const void* bias,
                          Activation activation, cudaStream_t stream) {
  if (bias == nullptr && activation == Activation::none) return cudaSuccess;
  return for_inputs(type, [&](auto input) {
    using X = decltype(input);
    launch_finish<X, X>({y, 1, batch * rows, rows, bias, activation, y}, stream);
    return cudaGetLastError();
  });
}

}  // namespace sparse_accel::cuda
