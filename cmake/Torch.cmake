# torch: headers and libraries straight from the installed wheel. Not find_package(Torch): its
# Caffe2 files pull in the whole CUDA toolkit (cuBLAS, cuFFT, NVRTC, ...) and rewrite
# CMAKE_CUDA_FLAGS and CMAKE_CUDA_ARCHITECTURES; these kernels need none of it.
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/cmake/torch_info.py"
  OUTPUT_VARIABLE torch_info RESULT_VARIABLE torch_failed ERROR_VARIABLE torch_error)
if(torch_failed)
  message(FATAL_ERROR "sparse_accel needs torch at build time: ${torch_error}"
    "Install it first (https://pytorch.org/get-started), then build: `pip install .`, or `pip install "
    "scikit-build-core cmake ninja` and `pip install --no-build-isolation .`.")
endif()
list(GET torch_info 0 TORCH_DIR)
list(GET torch_info 1 TORCH_VERSION)
list(GET torch_info 2 TORCH_CUDA_VERSION)

if(NOT EXISTS "${TORCH_DIR}/lib/libtorch_cpu.so") # its stable C functions are all that is linked to
  message(FATAL_ERROR "No libtorch_cpu.so in ${TORCH_DIR}/lib (torch ${TORCH_VERSION}). "
    "sparse_accel builds on Linux against torch's wheels; reinstall torch if this is one.")
endif()

add_library(torch_headers INTERFACE)
target_include_directories(torch_headers SYSTEM INTERFACE "${TORCH_DIR}/include") # pybind11 is among them
# Another torch under the same path: compile everything again.
target_compile_definitions(torch_headers INTERFACE "SPARSE_ACCEL_TORCH=${TORCH_VERSION}")
