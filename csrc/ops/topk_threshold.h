#pragma once

#include <optional>
#include <vector>

#include "common.h"

namespace sparse_accel {

// Keep the elements of x with the largest scores and set the others to zero, in place. Exactly as many are kept as
// asked for; ties go to the lowest index. NaN is refused, with nothing changed.
//   x       [...] float32, float64, bfloat16 or float16, in memory without gaps
//   scores  as x, of any of these dtypes; none: |x|, times scale
//   scale   of the compute type of x: a factor for each column, where there are no scores
//   mask    bool, as x; written: what was kept

// k of each of `rows` equal parts of a contiguous x; its columns are its last dimension.
void topk_rows(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
               const Tensor& mask, std::int64_t rows, std::int64_t k);

// n of every m neighbours along the last dimension of a contiguous x; the last block of a row may be shorter.
void topk_blocks(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                 const Tensor& mask, std::int64_t n, std::int64_t m);

// Either of the two (k one number, or n and m) where all memory can be taken as it lies and nothing is wrong with the
// call; else false, and nothing has changed: the caller copies, or says what is wrong. `by_row`: rows of the first
// dimension, else all elements together.
bool topk_as_it_is(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                   const Tensor& mask, bool by_row, const std::vector<std::int64_t>& k);

// k of each group of a layout (outer, groups, inner, blocks of the memory of x); columns are groups * inner. CPU only.
void topk_within(const Tensor& x, const std::optional<Tensor>& scores, const std::optional<Tensor>& scale,
                 const Tensor& mask, const std::vector<std::int64_t>& layout, std::int64_t k);

// The k groups of the layout of a contiguous x whose part of `source`, as x or x itself, has the largest norms. As
// topk_as_it_is: false, and x has not changed, where something is in the way. `norms` [groups] in the compute type of
// source and `keep` [groups] bool are written.
bool topk_norms(const Tensor& x, const Tensor& source, const Tensor& norms, const Tensor& keep, const Tensor& mask,
                const std::vector<std::int64_t>& layout, std::int64_t k);

// The groups of a layout that `keep` [blocks * groups] bool names.
void topk_groups(const Tensor& x, const Tensor& mask, const Tensor& keep, const std::vector<std::int64_t>& layout);

}  // namespace sparse_accel
