// The kernels of topk_threshold_, for any processor.
#include "topk_threshold_set.h"
