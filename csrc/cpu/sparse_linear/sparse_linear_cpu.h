// Products with weights in the bitmask format, over the lanes L of an instruction set. Included once per instruction
// set (no include guard on purpose), and by tests, with plain lanes of any width: no header of torch.
#include <algorithm>
#include <cstring>

#include "../isa/unroll.h"
#include "sparse_linear_kernels.h"

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

constexpr int kAhead = 4096;  // bytes of values that are asked for in advance

template <class T>
static inline const T* tile_values(const SparseWeight& w, std::int64_t tile) {
  return static_cast<const T*>(w.values) + std::int64_t(w.offsets[tile]) * (kValueAlign / std::int64_t(sizeof(T)));
}

// body(row tile, column tile) of the row tiles first, ..., last - 1, in the order of memory.
template <class Body>
static inline void for_tiles(const SparseWeight& w, std::int64_t first, std::int64_t last, const Body& body) {
  for (std::int64_t row_tile = first; row_tile < last;) {
    const std::int64_t end = std::min(last, (row_tile / kPanelTiles + 1) * kPanelTiles);
    for (std::int64_t column_tile = 0; column_tile < w.column_tiles; ++column_tile) {
      for (std::int64_t at = row_tile; at < end; ++at) body(at, column_tile);
    }
    row_tile = end;
  }
}

static inline int rows_of(const SparseWeight& w, std::int64_t row_tile) {
  return static_cast<int>(std::min<std::int64_t>(kTileRows, w.rows - row_tile * kTileRows));
}
static inline int columns_of(const SparseWeight& w, std::int64_t column_tile) {
  return static_cast<int>(std::min<std::int64_t>(kTileColumns, w.columns - column_tile * kTileColumns));
}

// The bits of L::kWidth columns.
template <class L>
static inline std::uint32_t bits_of(const std::uint8_t* bits) {
  if constexpr (L::kWidth == 8) {
    return *bits;
  } else {
    static_assert(L::kWidth == 16);
    return bits[0] | std::uint32_t(bits[1]) << 8;
  }
}

template <class T>
static inline float scale_of(const SparseWeight& w, std::int64_t row, std::int64_t column_tile) {
  if constexpr (sizeof(T) == 1) {
    return w.scales[row * w.column_tiles + column_tile];
  } else {
    return 1.0f;
  }
}

// How many weights a row of a tile keeps.
static inline int kept_of(const std::uint8_t* bits) {
  int kept = 0;
  for (int i = 0; i < kRowBytes; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bits + i, sizeof word);
    kept += __builtin_popcountll(word);
  }
  return kept;
}

// kRows rows of a tile with kBatch inputs: the weights' places in registers, each input loaded once for all rows, whose
// sums do not wait for each other. Returns where the next row's values begin.
template <class L, class T, int kBatch, int kRows>
static inline const T* few_rows(const T* values, const std::uint8_t* bits, int vectors, const float* x,
                                std::int64_t stride, float (&sums)[kRows][kBatch]) {
  using V = typename L::V;
  V acc[kRows][kBatch];
  const T* of_row[kRows];
  SPARSE_ACCEL_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SPARSE_ACCEL_UNROLL
    for (int b = 0; b < kBatch; ++b) acc[r][b] = L::zero();
    of_row[r] = values;
    values += kept_of(bits + r * kRowBytes);
  }
  const char* ahead = reinterpret_cast<const char*>(values) + kAhead;  // about as many values as these rows have
  const int per_vector = static_cast<int>((values - of_row[0]) * std::int64_t(sizeof(T)) / std::max(vectors, 1)) + 1;
  for (int vector = 0; vector < vectors; ++vector) {
    __builtin_prefetch(ahead);
    ahead += per_vector;
    V input[kBatch];
    SPARSE_ACCEL_UNROLL
    for (int b = 0; b < kBatch; ++b) input[b] = L::load(x + b * stride + vector * L::kWidth);
    SPARSE_ACCEL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const std::uint32_t kept = bits_of<L>(bits + r * kRowBytes + vector * (L::kWidth / 8));
      const V weight = L::expand(of_row[r], kept);
      of_row[r] += L::count(kept);
      SPARSE_ACCEL_UNROLL
      for (int b = 0; b < kBatch; ++b) acc[r][b] = L::fma(weight, input[b], acc[r][b]);
    }
  }
  SPARSE_ACCEL_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SPARSE_ACCEL_UNROLL
    for (int b = 0; b < kBatch; ++b) sums[r][b] = L::sum(acc[r][b]);
  }
  return values;
}

template <class L, class T, int kBatch>
static void few_of(const SparseWeight& w, const SparseInput& in, std::int64_t first, std::int64_t last, float* y) {
  constexpr int kRows = kBatch <= 2 ? 4 : 2;
  for (int b = 0; b < kBatch; ++b) {
    std::fill(y + b * w.rows + first * kTileRows, y + b * w.rows + std::min(last * kTileRows, w.rows), 0.0f);
  }
  for_tiles(w, first, last, [&](std::int64_t row_tile, std::int64_t column_tile) {
    const std::int64_t tile = tile_index(row_tile, column_tile, w.row_tiles, w.column_tiles);
    const T* values = tile_values<T>(w, tile);
    const std::uint8_t* const bits = w.bits + tile * kTileBytes;
    const int vectors = (columns_of(w, column_tile) + L::kWidth - 1) / L::kWidth;
    const float* const x = in.x + column_tile * kTileColumns;
    for (int from = 0; from < rows_of(w, row_tile); from += kRows) {
      float sums[kRows][kBatch];
      values = few_rows<L, T, kBatch, kRows>(values, bits + from * kRowBytes, vectors, x, in.stride, sums);
      for (int r = 0; r < std::min(kRows, rows_of(w, row_tile) - from); ++r) {
        const std::int64_t row = row_tile * kTileRows + from + r;
        const float scale = scale_of<T>(w, row, column_tile);
        for (int b = 0; b < kBatch; ++b) y[b * w.rows + row] += sizeof(T) == 1 ? scale * sums[r][b] : sums[r][b];
      }
    }
  });
}

template <class L, class T>
static void few(const SparseWeight& w, const SparseInput& in, std::int64_t first, std::int64_t last, float* y) {
  switch (in.batch) {
    case 1:
      return few_of<L, T, 1>(w, in, first, last, y);
    case 2:
      return few_of<L, T, 2>(w, in, first, last, y);
    case 3:
      return few_of<L, T, 3>(w, in, first, last, y);
    default:
      return few_of<L, T, 4>(w, in, first, last, y);
  }
}

// Where the kept weights of a row of a tile stand, times `width`: into `places`, which has room for 8 more. How many.
template <int kTimes>
static inline int places_of(const std::uint8_t* bits, int bytes, std::uint16_t* places) {
  int kept = 0;
  for (int byte = 0; byte < bytes; ++byte) {
    std::uint16_t eight[8];  // apart from both arrays, so that it becomes one vector
    std::memcpy(eight, kSparseTables.place[bits[byte]], sizeof eight);
    const std::uint16_t first = static_cast<std::uint16_t>(byte * 8 * kTimes);
    for (std::uint16_t& place : eight) place = static_cast<std::uint16_t>(place * kTimes + first);
    std::memcpy(places + kept, eight, sizeof eight);
    kept += kSparseTables.count[bits[byte]];
  }
  return kept;
}

// The kept weights of a row of a tile, each with its row of x: into sums[kVectors].
template <class L, int kVectors>
static inline void many_row(const float* values, const std::uint16_t* places, int kept, const float* x, float* sums) {
  using V = typename L::V;
  constexpr int kSets = 2;  // sums that do not wait for each other; as many for every width: the same bits
  V acc[kSets][kVectors];
  SPARSE_ACCEL_UNROLL
  for (int set = 0; set < kSets; ++set) {
    SPARSE_ACCEL_UNROLL
    for (int v = 0; v < kVectors; ++v) acc[set][v] = L::zero();
  }
  const auto step = [&](int i, V(&set)[kVectors]) __attribute__((always_inline)) {
    const V weight = L::broadcast(values[i]);
    const float* const from = x + places[i];
    SPARSE_ACCEL_UNROLL
    for (int v = 0; v < kVectors; ++v) set[v] = L::fma(weight, L::load(from + v * L::kWidth), set[v]);
  };
  int i = 0;
  for (; i + kSets <= kept; i += kSets) {
    SPARSE_ACCEL_UNROLL
    for (int set = 0; set < kSets; ++set) step(i + set, acc[set]);
  }
  for (; i < kept; ++i) step(i, acc[0]);
  SPARSE_ACCEL_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    V total = acc[0][v];
    SPARSE_ACCEL_UNROLL
    for (int set = 1; set < kSets; ++set) total = L::add(total, acc[set][v]);
    L::store(sums + v * L::kWidth, L::add(total, L::load(sums + v * L::kWidth)));
  }
}

template <class L, class T, int kVectors>
static void many(const SparseWeight& w, const float* x, std::int64_t first, std::int64_t last, float* y) {
  constexpr int kBatch = kVectors * L::kWidth;
  alignas(64) std::uint16_t places[kTileColumns + 8];
  alignas(64) float wide[kTileColumns + L::kWidth];
  std::fill(y, y + (std::min(last * kTileRows, w.rows) - first * kTileRows) * kBatch, 0.0f);
  for_tiles(w, first, last, [&](std::int64_t row_tile, std::int64_t column_tile) {
    const std::int64_t tile = tile_index(row_tile, column_tile, w.row_tiles, w.column_tiles);
    const T* values = tile_values<T>(w, tile);
    const std::uint8_t* const bits = w.bits + tile * kTileBytes;
    const int rows = rows_of(w, row_tile), bytes = (columns_of(w, column_tile) + 7) / 8;
    for (int r = 0; r < rows; ++r) {
      const std::int64_t row = row_tile * kTileRows + r;
      const int kept = places_of<kBatch>(bits + r * kRowBytes, bytes, places);
      const float* numbers;
      if constexpr (std::is_same_v<T, float>) {
        numbers = values;
      } else {
        const typename L::V scale = L::broadcast(scale_of<T>(w, row, column_tile));
        for (int i = 0; i < kept; i += L::kWidth) {
          const typename L::V v = L::widen(values + i);
          L::store(wide + i, sizeof(T) == 1 ? L::fma(v, scale, L::zero()) : v);
        }
        numbers = wide;
      }
      for (int ahead = 0; ahead < kept * int(sizeof(T)); ahead += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(values) + kAhead + ahead);
      }
      many_row<L, kVectors>(numbers, places, kept, x + column_tile * kTileColumns * kBatch,
                            y + (row - first * kTileRows) * kBatch);
      values += kept;
    }
  });
}

template <class L, class T>
static void unpack(const SparseWeight& w, std::int64_t first, std::int64_t last, float* dense) {
  for_tiles(w, first, last, [&](std::int64_t row_tile, std::int64_t column_tile) {
    const std::int64_t tile = tile_index(row_tile, column_tile, w.row_tiles, w.column_tiles);
    const T* values = tile_values<T>(w, tile);
    const std::uint8_t* const bits = w.bits + tile * kTileBytes;
    const int rows = rows_of(w, row_tile), columns = columns_of(w, column_tile);
    for (int r = 0; r < rows; ++r) {
      const std::int64_t row = row_tile * kTileRows + r;
      const typename L::V scale = L::broadcast(scale_of<T>(w, row, column_tile));
      float* const to = dense + (row - first * kTileRows) * w.columns + column_tile * kTileColumns;
      for (int column = 0; column < columns; column += L::kWidth) {
        const std::uint32_t kept = bits_of<L>(bits + r * kRowBytes + column / 8);
        typename L::V v = L::expand(values, kept);
        if constexpr (sizeof(T) == 1) v = L::fma(v, scale, L::zero());
        values += L::count(kept);
        if (column + L::kWidth <= columns) {
          L::store(to + column, v);
        } else {
          float lanes[L::kWidth];
          L::store(lanes, v);
          std::copy(lanes, lanes + (columns - column), to + column);
        }
      }
    }
  });
}

template <class T>
static void collect(const SparseWeight& w, std::int64_t first, std::int64_t last, const void* dense, void* values) {
  const std::int64_t unit = kValueAlign / std::int64_t(sizeof(T));
  for_tiles(w, first, last, [&](std::int64_t row_tile, std::int64_t column_tile) {
    const std::int64_t tile = tile_index(row_tile, column_tile, w.row_tiles, w.column_tiles);
    const std::uint8_t* const bits = w.bits + tile * kTileBytes;
    T* to = static_cast<T*>(values) + w.offsets[tile] * unit;
    const int rows = rows_of(w, row_tile), bytes = (columns_of(w, column_tile) + 7) / 8;
    for (int r = 0; r < rows; ++r) {
      const T* const from =
          static_cast<const T*>(dense) + (row_tile * kTileRows + r) * w.columns + column_tile * kTileColumns;
      for (int byte = 0; byte < bytes; ++byte) {
        const int kept = bits[r * kRowBytes + byte], count = kSparseTables.count[kept];
        for (int i = 0; i < count; ++i) *to++ = from[byte * 8 + kSparseTables.place[kept][i]];
      }
    }
    std::fill(to, static_cast<T*>(values) + w.offsets[tile + 1] * unit, T(0));
  });
}

template <class L>
constexpr SparseKernels sparse_kernels_of() {
  return {{&few<L, float>, &few<L, Bfloat16Bits>, &few<L, HalfBits>, &few<L, std::int8_t>},
          {{&many<L, float, 1>, &many<L, float, 2>, &many<L, float, 32 / L::kWidth>},
           {&many<L, Bfloat16Bits, 1>, &many<L, Bfloat16Bits, 2>, &many<L, Bfloat16Bits, 32 / L::kWidth>},
           {&many<L, HalfBits, 1>, &many<L, HalfBits, 2>, &many<L, HalfBits, 32 / L::kWidth>},
           {&many<L, std::int8_t, 1>, &many<L, std::int8_t, 2>, &many<L, std::int8_t, 32 / L::kWidth>}},
          {L::kWidth, 2 * L::kWidth, 32},
          {&unpack<L, float>, &unpack<L, Bfloat16Bits>, &unpack<L, HalfBits>, &unpack<L, std::int8_t>},
          {&collect<std::uint32_t>, &collect<std::uint16_t>}};
}

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
