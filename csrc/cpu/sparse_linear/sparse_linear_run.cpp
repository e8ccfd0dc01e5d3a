#include "sparse_linear_run.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "../../torch_runtime.h"
#include "../isa/kernel_set.h"

namespace sparse_accel::cpu {
namespace {

constexpr int64_t kFewInputs = 4;          // inputs up to which a weight's place is a register's lane
constexpr int64_t kSparseGrain = 1 << 15;  // weights times inputs that are worth a thread

int64_t sparse_grain(const SparseWeight& w, int64_t batch) {
  return std::max<int64_t>(1, kSparseGrain / std::max<int64_t>(1, kTileRows * w.columns * batch));
}

int64_t padded_columns(const SparseWeight& w) { return w.column_tiles * kTileColumns; }

void finish_row(float* y, int64_t from, int64_t to, const float* bias, Activation activation) {
  if (bias != nullptr) {
    for (int64_t i = from; i < to; ++i) y[i] += bias[i];
  }
  if (activation != Activation::none) {
    for (int64_t i = from; i < to; ++i) y[i] = activate(y[i], activation);
  }
}

void few_inputs(int dtype, const SparseWeight& w, const float* x, int64_t batch, const float* bias,
                Activation activation, float* y) {
  const auto kernel = sparse_kernels().few[dtype];
  std::vector<float> whole;  // tiles are read to their ends
  int64_t stride = w.columns;
  if (padded_columns(w) != w.columns) {
    stride = padded_columns(w);
    whole.assign(static_cast<size_t>(batch * stride), 0.0f);
    for (int64_t b = 0; b < batch; ++b) std::copy(x + b * w.columns, x + (b + 1) * w.columns, &whole[b * stride]);
    x = whole.data();
  }
  parallel_for(0, w.row_tiles, sparse_grain(w, batch), [&](int64_t first, int64_t last) {
    kernel(w, SparseInput{x, stride, batch}, first, last, y);
    for (int64_t b = 0; b < batch; ++b) {
      finish_row(y + b * w.rows, first * kTileRows, std::min(last * kTileRows, w.rows), bias, activation);
    }
  });
}

// Neighbouring inputs that go through the weights together.
struct InputChunk {
  int kind;  // of SparseKernels::width
  int width;
  int64_t first;
  int64_t count;  // up to width
  float* x;       // [padded columns, width]
};

void many_inputs(int dtype, const SparseWeight& w, const float* x, int64_t batch, const float* bias,
                 Activation activation, float* y) {
  const SparseKernels& kernels = sparse_kernels();
  std::vector<InputChunk> chunks;
  int64_t floats = 0;
  for (int64_t first = 0; first < batch;) {
    int kind = 2;
    while (kind > 0 && kernels.width[kind - 1] >= batch - first) --kind;
    const int width = kernels.width[kind];
    chunks.push_back({kind, width, first, std::min<int64_t>(width, batch - first), nullptr});
    floats += padded_columns(w) * width;
    first += width;
  }
  const std::unique_ptr<float[]> columns(new float[static_cast<size_t>(floats)]);
  floats = 0;
  for (InputChunk& chunk : chunks) {
    chunk.x = columns.get() + floats;
    floats += padded_columns(w) * chunk.width;
  }
  // Columns beyond the last have no bits, so that nobody reads them.
  parallel_for(0, w.columns, std::max<int64_t>(1, kSparseGrain / batch), [&](int64_t first, int64_t last) {
    for (const InputChunk& chunk : chunks) {
      for (int64_t column = first; column < last; ++column) {
        float* const to = chunk.x + column * chunk.width;
        for (int64_t b = 0; b < chunk.count; ++b) to[b] = x[(chunk.first + b) * w.columns + column];
        for (int64_t b = chunk.count; b < chunk.width; ++b) to[b] = 0.0f;
      }
    }
  });
  parallel_for(0, w.row_tiles, sparse_grain(w, batch), [&](int64_t first, int64_t last) {
    alignas(64) float sums[kPanelRows * 32];
    for (int64_t tile = first; tile < last;) {  // a panel's weights stay in cache for all chunks
      const int64_t end = std::min(last, (tile / kPanelTiles + 1) * kPanelTiles);
      const int64_t row = tile * kTileRows, rows = std::min(end * kTileRows, w.rows) - row;
      for (const InputChunk& chunk : chunks) {
        kernels.many[dtype][chunk.kind](w, chunk.x, tile, end, sums);
        for (int64_t b = 0; b < chunk.count; ++b) {
          float* const out = y + (chunk.first + b) * w.rows;
          for (int64_t r = 0; r < rows; ++r) out[row + r] = sums[r * chunk.width + b];
          finish_row(out, row, row + rows, bias, activation);
        }
      }
      tile = end;
    }
  });
}

}  // namespace

void sparse_linear(int dtype, const SparseWeight& w, const float* x, int64_t batch, const float* bias,
                   Activation activation, float* y) {
  (batch <= kFewInputs ? few_inputs : many_inputs)(dtype, w, x, batch, bias, activation, y);
}

void sparse_unpack(int dtype, const SparseWeight& w, int64_t first, int64_t last, float* dense) {
  const auto kernel = sparse_kernels().unpack[dtype];
  parallel_for(first, last, sparse_grain(w, 1),
               [&](int64_t from, int64_t to) { kernel(w, from, to, dense + (from - first) * kTileRows * w.columns); });
}

void sparse_collect(int size, const SparseWeight& w, const void* dense, void* values) {
  const auto kernel = sparse_kernels().collect[size == 4 ? 0 : 1];
  parallel_for(0, w.row_tiles, sparse_grain(w, 1),
               [&](int64_t first, int64_t last) { kernel(w, first, last, dense, values); });
}

void sparse_finish(float* y, int64_t batch, int64_t rows, const float* bias, Activation activation) {
  if (bias == nullptr && activation == Activation::none) return;
  parallel_for(0, batch, std::max<int64_t>(1, kSparseGrain / std::max<int64_t>(1, rows)),
               [&](int64_t from, int64_t to) {
                 for (int64_t b = from; b < to; ++b) finish_row(y + b * rows, 0, rows, bias, activation);
               });
}

}  // namespace sparse_accel::cpu
