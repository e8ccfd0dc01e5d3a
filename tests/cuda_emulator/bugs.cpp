// Does the emulator notice? `bugs` lists the cases, `bugs N` runs one of them.
// Exit code 0: nothing noticed; 1: wrong result; 3: the emulator's error; else a sanitizer's.
// Planted mistakes must be noticed in at least one of the runs of test_cuda_emulator.py, controls in none.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "bugs_controls.h"
#include "bugs_memory.h"
#include "bugs_sync.h"

namespace {

template <class T>
T* device(int size) {
  T* memory;
  cudaMalloc(&memory, std::size_t(size) * sizeof(T));
  return memory;
}
template <class T>
T* device(int size, T value) {
  T* const memory = device<T>(size);
  for (int i = 0; i < size; ++i) memory[i] = value;
  return memory;
}

int expect_ones(const float* out, int size) {
  int bad = 0;
  for (int i = 0; i < size; ++i) bad += !(out[i] == 1.f);
  if (bad) std::printf("  wrong: %d of %d\n", bad, size);
  return bad != 0;
}

// kernel(args..., out, last...) with `size` results.
template <class... Params, class... Args>
int run(void (*kernel)(Params...), int grid, int block, std::size_t shared, int size, float* out, Args... args) {
  launch_kernel(kernel, unsigned(grid), unsigned(block), shared, nullptr, args...);
  const int code = expect_ones(out, size);
  cudaFree(out);
  return code;
}

// One block of 64 threads that write one result each.
template <class... Params>
int block64(void (*kernel)(Params...), std::size_t shared = 0) {
  float* const out = device<float>(64);
  return run(kernel, 1, 64, shared, 64, out, out);
}

int counts_to_eight(void (*kernel)(float*)) {
  float* const sum = device<float>(1, 0.f);
  launch_kernel(kernel, 8, 64, 0, nullptr, sum);
  return *sum != 8.f;
}

int last_block(void (*kernel)(float*, unsigned*, float*)) {
  float* const out = device<float>(1);
  return run(kernel, 8, 64, 0, 1, out, device<float>(8), device<unsigned>(1, 0u), out);
}

// Two clusters of two blocks of 64 threads that write one result each.
int clusters(void (*kernel)(float*)) {
  emu::config.clusters = 2;
  float* const out = device<float>(256);
  launch_cluster(kernel, 4, 64, 2, 64 * sizeof(float), nullptr, false, out);
  const int code = expect_ones(out, 256);
  cudaFree(out);
  return code;
}

struct Case {
  const char* name;
  int (*run)();
};

const Case cases[] = {
    {"OOB write, static shared (SHARED)", [] { return block64(oob_shared); }},
    {"OOB write, static shared (plain, template)", [] { return block64(oob_shared_plain<float>); }},
    {"OOB write, dynamic shared", [] { return block64(oob_dynamic, 64 * sizeof(float)); }},
    {"OOB inside a 2-D shared array (row overrun)", [] { return block64(oob_row); }},
    {"OOB read past the end, global",
     [] {
       float* const out = device<float>(100);
       return run(oob_global, 2, 64, 0, 100, out, device<float>(100, 0.f), out, 100);
     }},
    {"OOB read before the start, global",
     [] {
       float* const out = device<float>(64);
       return run(oob_before, 1, 64, 0, 64, out, device<float>(64, 0.f), out);
     }},
    {"OOB in a local array",
     [] {
       float* const out = device<float>(64);
       return run(oob_local, 1, 64, 0, 64, out, out, 4);
     }},
    {"misaligned float4 load",
     [] {
       float* const out = device<float>(64);
       return run(misaligned, 1, 64, 0, 64, out, device<float>(64, 0.f), out, 1);
     }},
    {"read of unwritten shared memory", [] { return block64(uninitialized_shared); }},
    {"read of unwritten global memory",
     [] {
       float* const out = device<float>(64);
       return run(uninitialized_global, 1, 64, 0, 64, out, device<float>(64), out);
     }},
    {"signed integer overflow in indexing",
     [] {
       float* const out = device<float>(64);
       return run(integer_overflow, 1, 64, 0, 64, out, device<int>(1, 70000), out);
     }},
    {"missing __syncthreads, mirrored read", [] { return block64(missing_mirrored); }},
    {"missing __syncthreads, reads t+1 only", [] { return block64(missing_up); }},
    {"missing __syncthreads, reads t-1 only", [] { return block64(missing_down); }},
    {"missing __syncthreads in a loop (write after read)", [] { return block64(missing_in_loop); }},
    {"missing __syncwarp", [] { return block64(missing_syncwarp); }},
    {"divergent __syncthreads (half skips it)", [] { return block64(divergent_if); }},
    {"two different __syncthreads in if/else", [] { return block64(divergent_two); }},
    {"early return before __syncthreads",
     [] {
       float* const out = device<float>(50);
       return run(early_return, 1, 64, 0, 50, out, out, 50);
     }},
    {"__syncthreads in a thread-dependent loop", [] { return block64(loop_trip); }},
    {"full-mask shuffle in a divergent branch", [] { return block64(shuffle_divergent); }},
    {"shuffle reads a lane outside the mask", [] { return block64(shuffle_outside_mask); }},
    {"shuffle mask lacks the calling lane", [] { return block64(shuffle_bad_mask); }},
    {"part of a warp at a barrier, part at a shuffle", [] { return block64(shuffle_and_barrier); }},
    {"n += 1 in shared memory, no atomic", [] { return block64(increment_shared); }},
    {"*sum += 1 by many blocks, no atomic", [] { return counts_to_eight(increment_global); }},
    {"atomicAdd and plain += on one address", [] { return counts_to_eight(atomic_and_plain); }},
    {"last-block pattern without __threadfence", [] { return last_block(last_block_no_fence); }},
    {"block reads what the previous block wrote",
     [] {
       float* const out = device<float>(8);
       return run(previous_block, 8, 32, 0, 8, out, out);
     }},
    {"missing cluster_sync before another block's shared memory is read",
     [] { return clusters(missing_cluster_sync); }},
    {"shared memory of a block that may have returned", [] { return clusters(block_has_returned); }},
    {"cluster_sync in some blocks of the cluster only", [] { return clusters(divergent_cluster); }},
    {"CONTROL mirrored read with barrier", [] { return block64(ok_mirrored); }},
    {"CONTROL loop with both barriers", [] { return block64(ok_loop); }},
    {"CONTROL __syncwarp with mixed masks", [] { return block64(ok_syncwarp); }},
    {"CONTROL last-block pattern with fence", [] { return last_block(ok_last_block); }},
    {"CONTROL shuffles and votes with masks", [] { return block64(ok_masks); }},
    {"CONTROL cooperative groups tile", [] { return block64(ok_cooperative); }},
    {"CONTROL shared atomic", [] { return block64(ok_shared_atomic); }},
    {"CONTROL clusters that exchange shared memory", [] { return clusters(ok_cluster); }},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    for (const Case& one : cases) std::printf("%s\n", one.name);
    return 0;
  }
  try {
    return cases[std::atoi(argv[1])].run();
  } catch (const emu::error& e) {
    std::printf("%s\n", e.what());
    return 3;
  }
}
