// Begins a translation unit that is compiled once per instruction set (no include guard on purpose). The file names the
// set: SPARSE_ACCEL_ISA_AVX2, SPARSE_ACCEL_ISA_AVX512, or neither for any processor. Defines CPU_CAPABILITY, the
// namespace of all that follows, if the compiler's flags have the set and SPARSE_ACCEL_PORTABLE does not leave it out;
// and what at::vec asks for, which is scalar without.
#if defined(SPARSE_ACCEL_ISA_AVX512)
#define SPARSE_ACCEL_ISA avx512
#if !defined(SPARSE_ACCEL_PORTABLE) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX2__) && defined(__BMI2__) && defined(__FMA__) && defined(__F16C__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns inside its own intrinsics
#endif
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#endif
#elif defined(SPARSE_ACCEL_ISA_AVX2)
#define SPARSE_ACCEL_ISA avx2
#if !defined(SPARSE_ACCEL_PORTABLE) && defined(__AVX2__) && defined(__BMI2__) && defined(__FMA__) && defined(__F16C__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#endif
#else
#define SPARSE_ACCEL_ISA default
#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#endif

#define SPARSE_ACCEL_JOIN_(a, b) a##_##b
#define SPARSE_ACCEL_JOIN(a, b) SPARSE_ACCEL_JOIN_(a, b)
#define SPARSE_ACCEL_NAME_(x) #x
#define SPARSE_ACCEL_NAME(x) SPARSE_ACCEL_NAME_(x)

// Ends it: the set's kernels, or null where the flags lack the set.
#ifdef CPU_CAPABILITY
#define SPARSE_ACCEL_EXPORT(Table, name, table) \
  const Table* const SPARSE_ACCEL_JOIN(name, SPARSE_ACCEL_ISA) = &CPU_CAPABILITY::table;
#else
#define SPARSE_ACCEL_EXPORT(Table, name, table) const Table* const SPARSE_ACCEL_JOIN(name, SPARSE_ACCEL_ISA) = nullptr;
#endif
