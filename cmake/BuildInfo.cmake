# Writes _build_info.py, which sparse_accel.build_info() and the checks at import read.
set(build_version "${SKBUILD_PROJECT_VERSION_FULL}")
if(NOT build_version) # plain cmake, without scikit-build-core
  file(STRINGS pyproject.toml version_line REGEX "^version = " LIMIT_COUNT 1)
  string(REGEX REPLACE "^version = \"(.*)\"$" "\\1" build_version "${version_line}")
endif()

# The commit, where this folder is the top of a git work tree: an unpacked source archive inside
# another project's work tree is not.
set(build_commit "")
find_package(Git QUIET)
if(GIT_FOUND AND EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/.git")
  execute_process(COMMAND "${GIT_EXECUTABLE}" describe --always --abbrev=12 --dirty --exclude=*
    WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
    OUTPUT_VARIABLE build_commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()

set(build_cuda "")
set(build_cuda_architectures "")
if(with_cuda)
  set(build_cuda "${CUDAToolkit_VERSION}")
  set(build_cuda_architectures "${CMAKE_CUDA_ARCHITECTURES}")
endif()
string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
string(STRIP "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} ${CMAKE_CXX_FLAGS_${build_type}}" build_compiler)
configure_file(cmake/_build_info.py.in "${CMAKE_CURRENT_BINARY_DIR}/_build_info.py" @ONLY)
