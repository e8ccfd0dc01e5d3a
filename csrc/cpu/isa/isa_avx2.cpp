// The kernels of all ops but topk_threshold_, for AVX2.
#define SPARSE_ACCEL_ISA_AVX2
#include "kernel_set_table.h"
