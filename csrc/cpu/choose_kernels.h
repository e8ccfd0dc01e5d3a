#pragma once
// Which of three builds of the same kernels runs.
#include <ATen/Version.h>  // get_cpu_capability

#include <string>

namespace sparse_accel::cpu {

// The kernels for this machine (honours ATEN_CPU_CAPABILITY): null where an instruction set was not compiled in.
template <class Table>
const Table& choose_kernels(const Table* plain, const Table* avx2, const Table* avx512) {
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512" && avx512) return *avx512;
  if ((capability == "AVX512" || capability == "AVX2") && avx2) return *avx2;
  return *plain;
}

}  // namespace sparse_accel::cpu
