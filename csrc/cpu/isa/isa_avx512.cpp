// The kernels of all ops but topk_threshold_, for AVX512.
#define SPARSE_ACCEL_ISA_AVX512
#include "kernel_set_table.h"
