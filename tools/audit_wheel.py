"""What a wheel asks of the machine it is installed on: libraries, symbols of torch, versions of glibc and libstdc++.

    python tools/audit_wheel.py WHEEL [--retag]

The compiled module must fit every release of torch: it may link to libtorch_cpu, and take from it nothing but the C
functions of the stable interface that the oldest supported release has. Fails where it takes more. `--retag` names the
wheel after the oldest manylinux policy that its symbols allow.

Needs `nm` and `readelf` of binutils, which come with a compiler. Standard library only.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

# Of torch/csrc/stable/c/shim.h, in torch 2.10 and later.
STABLE = {"torch_parallel_for", "torch_get_num_threads", "torch_get_thread_idx"}
# What every Linux that torch runs on has, besides torch itself and the CUDA runtime that it brings.
LIBRARIES = re.compile(r"lib(torch_cpu|stdc\+\+|m|gcc_s|c|pthread|dl|cudart)\.so(\.\d+)*|ld-linux-x86-64\.so\.2")
# Policies of manylinux by the versions of symbols that they allow.
POLICIES = (
    ("manylinux_2_28", {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}),
    ("manylinux_2_31", {"GLIBC": (2, 31), "GLIBCXX": (3, 4, 28), "CXXABI": (1, 3, 12)}),
    ("manylinux_2_34", {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13)}),
    ("manylinux_2_35", {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13)}),
    ("manylinux_2_39", {"GLIBC": (2, 39), "GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15)}),
)


def output(*command):
    """What a program prints."""
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def undefined(library):
    """Names of the symbols that a library takes from others, demangled, without their versions."""
    lines = output("nm", "-DC", "--undefined-only", library).splitlines()
    return {line.split(maxsplit=1)[1].split("@")[0].strip() for line in lines if " " in line.strip()}


def of_torch(name):
    """Whether a symbol can only come from torch."""
    return bool(re.search(r"\b(at|c10|caffe2|torch)::|^(torch_|aoti_torch_)", name))


def needed(library):
    """Names of the libraries that a library loads."""
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", library)))


def versions(library):
    """The newest version of each family of versioned symbols: {"GLIBC": (2, 32)}."""
    newest = {}
    for family, number in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI)_([\d.]+)\b", output("objdump", "-T", library)):
        version = tuple(int(part) for part in number.split("."))
        newest[family] = max(newest.get(family, ()), version)
    return newest


def policy(found):
    """The oldest policy that allows these versions, or None."""
    for name, allowed in POLICIES:
        if all(version <= allowed[family] for family, version in found.items()):
            return name
    return None


def audit(library):
    """(lines to show, problems) of a compiled module."""
    symbols, libraries, found = undefined(library), needed(library), versions(library)
    torch_symbols = {name for name in symbols if of_torch(name)}
    strange = sorted(torch_symbols - STABLE)
    foreign = sorted(name for name in libraries if not LIBRARIES.fullmatch(name))
    shown = ", ".join(f"{family}_{'.'.join(map(str, version))}" for family, version in sorted(found.items()))
    lines = [
        f"{pathlib.Path(library).name}:",
        f"  symbols of torch: {len(torch_symbols)}, all stable C functions: {', '.join(sorted(torch_symbols & STABLE))}"
        if not strange
        else f"  symbols of torch: {len(torch_symbols)}",
        f"  outside the stable interface: {len(strange)}",
        f"  libraries: {', '.join(sorted(libraries))}",
        f"  versions: {shown}: {policy(found) or 'newer than any manylinux policy known here'}",
    ]
    problems = [f"takes {name} from torch, which is not stable" for name in strange]
    problems += [f"links to {name}" for name in foreign]
    return lines, problems


def audit_wheel(wheel):
    """(lines, problems, policy) of all compiled modules of a wheel."""
    lines, problems, found = [], [], {}
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if re.search(r"\.so$", name)]
        if not modules:
            problems.append("has no compiled module")
        for name in modules:
            path = pathlib.Path(archive.extract(name, folder))
            more, wrong = audit(path)
            lines += more
            problems += [f"{name} {problem}" for problem in wrong]
            for family, version in versions(path).items():
                found[family] = max(found.get(family, ()), version)
    return lines, problems, policy(found)


def retag(wheel, tag):
    """The wheel under the platform tag of a policy; the old file is gone."""
    command = (sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", f"{tag}_x86_64", wheel)
    return pathlib.Path(wheel).parent / output(*command).strip().splitlines()[-1]


def main():
    """Print the audit; the exit status says whether the wheel passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=pathlib.Path)
    parser.add_argument("--retag", action="store_true", help="name the wheel after the policy that it meets")
    options = parser.parse_args()
    lines, problems, tag = audit_wheel(options.wheel)
    print("\n".join(lines))
    if problems:
        sys.exit("\n".join(f"{options.wheel.name}: {problem}" for problem in problems))
    print(retag(options.wheel, tag) if options.retag and tag else options.wheel)


if __name__ == "__main__":
    main()
