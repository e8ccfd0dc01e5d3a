#pragma once
// Runs unmodified CUDA kernels on the CPU: each CUDA thread is a fiber on one OS thread, barriers and warp
// operations are rendezvous of fibers, the blocks of a grid run one after another. See README.md.
// Needs a C++17 compiler (g++ or clang++), nothing else.
//
//   cuda_types.h       dim3, float4, __half, cudaStream_t, ...
//   emu_fiber.h        stacks, switching, what sanitizers are told
//   emu_engine.h       the scheduler; emu_schedule.h and emu_run.h are its member functions
//   emu_device.h       what kernels call: __syncthreads, shuffles, atomics, ...
//   emu_runtime.h      what the host calls: launch_kernel, cudaMalloc, ...
#include "cuda_types.h"
#include "emu_device.h"
#include "emu_engine.h"
#include "emu_runtime.h"
