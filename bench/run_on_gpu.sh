#!/usr/bin/env bash
# Builds, tests, sanitizes and times everything on a machine with a GPU, in one call and without a network:
#
#   bench/run_on_gpu.sh [full|bench] [--dry-run] [--budget SECONDS]
#
# Needs python3 (PYTHON names another) with a CUDA torch, pytest, cmake and ninja, nvcc, and a C++ compiler. What it
# does and writes: bench/gpu/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHONPATH="$PWD/bench" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 exec "${PYTHON:-python3}" -m gpu "$@"
