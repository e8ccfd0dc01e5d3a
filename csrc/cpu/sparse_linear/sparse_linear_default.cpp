// The kernels of sparse_linear, for any processor.
#include "sparse_linear_set.h"
