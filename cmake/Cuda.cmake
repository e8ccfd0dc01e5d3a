# Decides between CUDA kernels (with_cuda), compiling them as a check (check_cuda), and neither.
set(with_cuda OFF)
set(check_cuda OFF)
if(NOT SPARSE_ACCEL_CUDA MATCHES "^(AUTO|ON|OFF|CHECK)$")
  message(FATAL_ERROR "SPARSE_ACCEL_CUDA is '${SPARSE_ACCEL_CUDA}'; expected AUTO, ON, OFF or CHECK.")
endif()
set(how_to_nvcc "Install the CUDA toolkit (https://developer.nvidia.com/cuda-downloads), or put its nvcc on PATH or \
name it in the environment variable CUDACXX, or build without CUDA: SPARSE_ACCEL_CUDA=OFF.")

if(SPARSE_ACCEL_CUDA STREQUAL "ON" AND NOT TORCH_CUDA_VERSION)
  message(FATAL_ERROR "SPARSE_ACCEL_CUDA=ON needs a CUDA build of torch, but torch ${TORCH_VERSION} in ${TORCH_DIR} "
    "is CPU-only. Install a CUDA build (https://pytorch.org/get-started) and build with "
    "`pip install --no-build-isolation .`, or set SPARSE_ACCEL_CUDA=OFF.")
endif()

# AUTO with a CPU torch looks no further.
if(SPARSE_ACCEL_CUDA MATCHES "^(ON|CHECK)$" OR (SPARSE_ACCEL_CUDA STREQUAL "AUTO" AND TORCH_CUDA_VERSION))
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "${SPARSE_ACCEL_CUDA_ARCHITECTURES}")
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared) # the one cudart that torch has loaded
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX}) # not only PATH
    find_program(nvcc_program nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
    if(nvcc_program)
      set(ENV{CUDACXX} "${nvcc_program}")
    endif()
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(SPARSE_ACCEL_CUDA STREQUAL "CHECK")
      set(check_cuda ON)
    else()
      set(with_cuda ON)
    endif()
  elseif(SPARSE_ACCEL_CUDA STREQUAL "AUTO")
    message(WARNING "torch ${TORCH_VERSION} has CUDA ${TORCH_CUDA_VERSION} but no working nvcc was found: building "
      "without CUDA kernels; CUDA tensors will take the slow path. ${how_to_nvcc}")
  else()
    message(FATAL_ERROR "SPARSE_ACCEL_CUDA=${SPARSE_ACCEL_CUDA} needs nvcc, and no working one was found. ${how_to_nvcc}")
  endif()
endif()

if(with_cuda OR check_cuda)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_STANDARD 17) # CMake 3.25.1 knows no CUDA20 for nvcc 13
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
endif()
if(with_cuda)
  string(REGEX MATCH "^[0-9]+" torch_cuda_major "${TORCH_CUDA_VERSION}")
  if(NOT torch_cuda_major EQUAL CUDAToolkit_VERSION_MAJOR)
    message(FATAL_ERROR "torch ${TORCH_VERSION} was built with CUDA ${TORCH_CUDA_VERSION}, but ${CMAKE_CUDA_COMPILER} "
      "is CUDA ${CUDAToolkit_VERSION}: the major versions must match. Name an nvcc of CUDA ${torch_cuda_major} in the "
      "environment variable CUDACXX, or install a torch for CUDA ${CUDAToolkit_VERSION_MAJOR} "
      "(https://pytorch.org/get-started), or build without CUDA: SPARSE_ACCEL_CUDA=OFF.")
  endif()
endif()
