// The kernels of topk_threshold_, for AVX512.
#define SPARSE_ACCEL_ISA_AVX512
#include "topk_threshold_set.h"
