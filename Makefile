# Everything here sets itself up: `make demo` and `make test` work in a fresh clone on a machine with
# Python >= 3.10 and a C++ compiler.
#
# Variables: PYTHON (base interpreter), VENV, TORCH (a requirement such as torch==2.15.0; empty: the torch
# that VENV has, or the base interpreter's if it has CUDA, or torch==2.13.0), JOBS (compile jobs),
# WORKERS (test processes, one thread each unless OMP_NUM_THREADS says otherwise), SPARSE_ACCEL_CUDA (AUTO ON OFF CHECK),
# SPARSE_ACCEL_WERROR, ARGS (passed on); of cuda-check: VENV_CUDA, TORCH_CUDA; of wheel: TORCHES (requirements; empty: none is tried).

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
TORCH ?=
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 8 ] && echo 8 || echo $$n)
WORKERS ?= $(JOBS)
ARGS ?=
VENV_CUDA ?= .venv-cuda
TORCH_CUDA ?= torch==2.11.0
TORCHES ?= torch==2.11.0 torch==2.13.0 torch==2.15.0

bin := $(VENV)/bin
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)
export SPARSE_ACCEL_CUDA ?= AUTO
export SPARSE_ACCEL_WERROR ?= OFF
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Most of what torch and others bring is never imported; what is, Python compiles then. (PIP_NO_COMPILE=1 is not this: it turns compiling on.)
export PIP_COMPILE := 0
# Tests start many interpreters: compiled files are kept, or each would spend seconds on the same sources again.
export PYTHONDONTWRITEBYTECODE :=

built_from := pyproject.toml CMakeLists.txt $(wildcard cmake/*) $(shell find csrc -type f)
formatted := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# Another TORCH sets up again, and a changed setting or environment builds again.
env := $(VENV)/.env-$(if $(TORCH),$(shell printf %s '$(TORCH)' | cksum | cut -d' ' -f1),any)
settings := $(VENV)/.build-$(SPARSE_ACCEL_CUDA)-$(SPARSE_ACCEL_WERROR)

.DELETE_ON_ERROR:
.PHONY: help demo test build lint format ready bench docs wheel cuda-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(settings) $(VENV)/.run ## train, remove, compare on scikit-learn's digits; writes to out/
	$(bin)/sparse-accel demo $(ARGS)

test: $(settings) $(VENV)/.test ## the whole test suite
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(bin)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

build: $(settings) $(VENV)/.run ## editable installation in .venv

lint: $(VENV)/.lint $(settings) ## ruff, clang-format, mypy: checks only
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(if $(formatted),$(bin)/clang-format --dry-run -Werror $(formatted))
	$(bin)/mypy

format: $(VENV)/.lint ## format Python and C++ in place
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(if $(formatted),$(bin)/clang-format -i $(formatted))

ready: $(settings) $(VENV)/.lint ## all that the others need, at once: make -j2 ready compiles while pip installs

bench: $(settings) $(VENV)/.test ## all benchmarks
	$(bin)/sparse-accel bench $(ARGS)

docs: ## the documentation with its gallery, in build/docs/index.html; a warning is an error
	$(MAKE) --no-print-directory -j2 $(VENV)/.docs $(settings) # pip beside the compiler
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(bin)/python -m sphinx -j 2 -b html -d build/docs-cache -W --keep-going $(ARGS) docs build/docs

wheel: $(settings) ## a wheel in dist/, its audit, and every op of it under several torches (gigabytes)
	rm -rf dist
	PATH="$(abspath $(bin)):$$PATH" $(bin)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .
	$(bin)/python -m pip install --quiet wheel
	$(bin)/python tools/audit_wheel.py --retag dist/*.whl
	$(if $(TORCHES),$(bin)/python tools/try_wheel.py dist/*.whl $(TORCHES))

cuda-check: $(VENV_CUDA)/.env ## build the CUDA kernels against a CUDA torch and import them: no GPU, but gigabytes
	PYTHONPATH=bench $(VENV_CUDA)/bin/python -m gpu.cuda_check --jobs $(JOBS)

clean: ## remove .venv, .venv-cuda, build/, out/ and what the documentation's build writes
	rm -rf $(VENV) $(VENV_CUDA) build dist out docs/api docs/auto_gallery docs/sg_execution_times.rst

$(VENV_CUDA)/.env:
	$(PYTHON) -m venv --clear $(VENV_CUDA)
	$(VENV_CUDA)/bin/python -m pip install --quiet '$(TORCH_CUDA)' numpy safetensors cmake ninja
	@touch $@

$(env): pyproject.toml tools/setup_venv.py cmake/torch_info.py
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.10 or later on PATH; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@rm -f $(VENV)/.env-*
	$(PYTHON) tools/setup_venv.py --venv $(VENV) --torch '$(TORCH)' --groups build
	@touch $@

# One after the other: two pips at work in one environment can get in each other's way.
$(VENV)/.run: $(env)
	$(bin)/python -m pip install --quiet --group demo
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(bin)/python -m pip install --quiet --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(bin)/python -m pip install --quiet --group lint
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(bin)/python -m pip install --quiet --group docs
	@touch $@

$(settings): $(env) $(built_from)
	@rm -f $(VENV)/.build-*
	PATH="$(abspath $(bin)):$$PATH" $(bin)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@
