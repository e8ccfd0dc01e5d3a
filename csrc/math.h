#pragma once
// Formulas shared by the CPU and the CUDA kernels, written on scalars in the compute type
// (float for half, bfloat16 and float; double for double). Traversal lives elsewhere.
#include <cmath>

#ifdef __CUDACC__
#define SPARSE_ACCEL_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: the CPU kernels include this once per instruction set, and no AVX-512 copy of a
// shared function may end up in the default build.
#define SPARSE_ACCEL_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace sparse_accel {

// a * b + c, rounded once where the processor has an instruction for it.
template <class T>
SPARSE_ACCEL_HOST_DEVICE T fused(T a, T b, T c) {
#if defined(__FMA__) || defined(__CUDA_ARCH__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Which proximal operator a penalty asks for.
enum class Prox : int {
  soft = 0,  // tau * sqrt(|g|) * ||x_g||     -> scale by max(0, 1 - tau sqrt(|g|) / ||x_g||)
  hard = 1,  // tau * |g| * [x_g != 0]        -> keep g where ||x_g||^2 > 2 tau |g|
};

// What a group is scored by.
enum class Score : int { l2 = 0, l2sq = 1, l1 = 2, sum = 3, amax = 4 };

// The factor that prox applies to a group of `size` elements with squared norm `square`.
// tau = 0 leaves every group as it is. A NaN norm gives a NaN factor under `soft` (so that it shows).
template <class T>
SPARSE_ACCEL_HOST_DEVICE T prox_scale(Prox prox, T square, T tau, T size) {
  if (tau == T(0)) return T(1);
  if (prox == Prox::hard) return square <= T(2) * tau * size ? T(0) : T(1);
  const T threshold = tau * std::sqrt(size);
  const T norm = std::sqrt(square);
  return norm <= threshold ? T(0) : T(1) - threshold / norm;
}

// The penalty, without its strength, of a group that had squared norm `square` before it was scaled.
template <class T>
SPARSE_ACCEL_HOST_DEVICE T penalty_value(Prox prox, T square, T scale, T size) {
  if (prox == Prox::hard) return scale * square > T(0) ? size : T(0);
  return std::sqrt(size) * scale * std::sqrt(square);
}

// One RMDA step's numbers for one tensor (Huang & Lee, ICLR 2022, Algorithm 1), from the state before the step:
// t steps done in this stage, alpha = sum of their s = lr * beta, beta = sqrt(step).
//
// The paper keeps V = sum of s * grad and forms X = W0 - V / beta in every step. Kept is X itself, since
//   X <- W0 - (V + s grad) / beta' = W0 + (beta / beta') (X - W0) - lr grad,
// so that the pass that shrinks X reads one array, not two. The first step (beta = 0) forgets what X was.
struct RmdaScalars {
  double decay;  // beta / beta' = sqrt(t / (t + 1))
  double tau;    // alpha' / beta' * strength
  double alpha;  // alpha' = alpha + lr * beta'
};

SPARSE_ACCEL_HOST_DEVICE RmdaScalars rmda_scalars(double t, double alpha, double lr, double strength) {
  const double beta = std::sqrt(t + 1.0);
  const double next = alpha + lr * beta;
  return RmdaScalars{std::sqrt(t) / beta, next / beta * strength, next};
}

}  // namespace sparse_accel
