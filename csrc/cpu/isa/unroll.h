#pragma once
// Before loops over what is to stay in registers: -O2 leaves them as loops over memory, at half the speed.
#if defined(__clang__)
#define SPARSE_ACCEL_UNROLL _Pragma("unroll")
#else
#define SPARSE_ACCEL_UNROLL _Pragma("GCC unroll 16")
#endif
