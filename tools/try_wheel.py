"""Install one wheel into clean environments, each with another torch, and run every op in all of them.

    python tools/try_wheel.py WHEEL torch==2.11.0 torch==2.13.0 torch==2.15.0

Environments are kept (`--environments`): another run takes seconds. No compiler is needed, and none is asked for.
Standard library only.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

OPS = pathlib.Path(__file__).resolve().parent / "run_ops.py"


def run(*command, **options):
    """A command that must succeed; no folder of ours on the path, and no compiler."""
    environment = {**os.environ, "CXX": "/nowhere/c++", "CUDACXX": "/nowhere/nvcc"}
    environment.pop("PYTHONPATH", None)
    subprocess.run([str(word) for word in command], check=True, env=environment, **options)


def attempt(wheel, requirement, folder):
    """One torch: seconds that the installation of the wheel took. Raises CalledProcessError."""
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", folder)
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", requirement, "numpy", "safetensors")
    start = time.monotonic()
    run(*pip, "install", "--no-deps", "--force-reinstall", wheel.resolve())
    seconds = time.monotonic() - start
    run(python, OPS, cwd=folder)
    return seconds


def main():
    """A line for each torch; the exit status says whether all passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=pathlib.Path)
    parser.add_argument("torch", nargs="+", help="requirements, such as torch==2.11.0")
    parser.add_argument("--environments", type=pathlib.Path, default=pathlib.Path("build/wheel_environments"))
    options = parser.parse_args()
    failed = []
    for requirement in options.torch:
        name = requirement.replace("==", "-").replace("*", "x")
        try:
            seconds = attempt(options.wheel, requirement, options.environments.resolve() / name)
        except subprocess.CalledProcessError as error:
            print(f"{requirement}: FAILED: {error}", flush=True)
            failed.append(requirement)
        else:
            print(f"{requirement}: every op ran; installed in {seconds:.1f} s", flush=True)
    sys.exit(f"{options.wheel.name} does not work with {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
