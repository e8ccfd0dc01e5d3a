// The kernels of sparse_linear, for AVX512.
#define SPARSE_ACCEL_ISA_AVX512
#include "sparse_linear_set.h"
