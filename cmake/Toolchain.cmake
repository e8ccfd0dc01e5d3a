# C++ compiler and Python, each with a message that says what to do where it is missing.
include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  message(FATAL_ERROR "sparse_accel needs a C++20 compiler (GCC 11 or later, Clang 14 or later) and found none that "
    "works. Install one (Debian, Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`; conda: `conda install "
    "-c conda-forge cxx-compiler`), or name yours in the environment variable CXX.")
endif()
enable_language(CXX)

find_package(Python 3.10 QUIET COMPONENTS Interpreter Development.Module)
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "sparse_accel needs Python 3.10 or later with its C headers (Python.h), found "
    "'${Python_EXECUTABLE}' ${Python_VERSION} without them. Debian, Ubuntu: `apt install python3-dev`; "
    "Fedora: `dnf install python3-devel`; Pythons of conda, uv, pyenv and python.org have them.")
endif()
