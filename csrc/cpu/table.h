// The function table of one instruction set. Included once per instruction set (no include guard on purpose).
#define SPARSE_ACCEL_NAME_(x) #x
#define SPARSE_ACCEL_NAME(x) SPARSE_ACCEL_NAME_(x)

namespace sparse_accel {
inline namespace CPU_CAPABILITY {

// In the order of dtype_index.
#define SPARSE_ACCEL_ALL_DTYPES(kernel) {&kernel<float>, &kernel<double>, &kernel<c10::BFloat16>, &kernel<c10::Half>}

static const Kernels table = {
    SPARSE_ACCEL_NAME(CPU_CAPABILITY),   SPARSE_ACCEL_ALL_DTYPES(score),      SPARSE_ACCEL_ALL_DTYPES(score_sums),
    SPARSE_ACCEL_ALL_DTYPES(score_join), SPARSE_ACCEL_ALL_DTYPES(prox),       SPARSE_ACCEL_ALL_DTYPES(prox_sums),
    SPARSE_ACCEL_ALL_DTYPES(prox_join),  SPARSE_ACCEL_ALL_DTYPES(prox_apply), SPARSE_ACCEL_ALL_DTYPES(rmda),
    SPARSE_ACCEL_ALL_DTYPES(rmda_sums),  SPARSE_ACCEL_ALL_DTYPES(rmda_join),  SPARSE_ACCEL_ALL_DTYPES(rmda_apply)};

}  // namespace CPU_CAPABILITY
}  // namespace sparse_accel
