// The kernels of sparse_linear, for AVX2.
#define SPARSE_ACCEL_ISA_AVX2
#include "sparse_linear_set.h"
