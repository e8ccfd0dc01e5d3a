// The kernels of all ops but topk_threshold_, for any processor.
#include "kernel_set_table.h"
