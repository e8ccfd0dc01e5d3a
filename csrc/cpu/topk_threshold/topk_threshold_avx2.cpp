// The kernels of topk_threshold_, for AVX2.
#define SPARSE_ACCEL_ISA_AVX2
#include "topk_threshold_set.h"
