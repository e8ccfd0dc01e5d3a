// All that is built per instruction set, in order (no include guard on purpose).
// clang-format off
#include "lanes.h"
#include "topk_threshold_lanes.h"
#include "topk_threshold_bits.h"
#include "topk_threshold_bytes.h"
#include "topk_threshold_sort.h"
#include "topk_threshold_scores.h"
#include "topk_threshold_select.h"
#include "topk_threshold_blocks.h"
#include "topk_threshold_groups.h"
#include "topk_threshold_cpu.h"
// clang-format on
