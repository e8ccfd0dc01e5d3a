"""The build backend (PEP 517): scikit-build-core's, and a torch whose headers to build with.

The compiled module fits every release of torch from the oldest of `dependencies` on. Headers are all that is wanted
here, and those of any of these releases will do. A torch in `build-system.requires` would make pip fetch gigabytes for
its isolated build, whatever is installed. So torch is asked for here, and only where the interpreter that installs has
none in the supported range; pip then takes the same release for the build and for `dependencies`. cmake/torch_info.py
finds the installed one from inside the isolation.
"""

import os
import runpy

from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403 - the other hooks as they are

TORCH_INFO = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cmake", "torch_info.py")


def get_requires_for_build_wheel(config_settings=None):
    return [*build.get_requires_for_build_wheel(config_settings), *torch_to_fetch()]


def get_requires_for_build_editable(config_settings=None):
    return [*build.get_requires_for_build_editable(config_settings), *torch_to_fetch()]


def torch_to_fetch():
    """The requirement on torch, or nothing where the installed one fits."""
    info = runpy.run_path(TORCH_INFO)
    try:
        info["torch_info"]()
    except LookupError:
        return [info["requirement"]()]
    return []
