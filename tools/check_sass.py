"""Holds the machine code of the CUDA kernels to a table: registers, no spills, wide loads in flight. Needs no GPU.

    python tools/check_sass.py BUILD [--print]

BUILD is a folder of objects that nvcc has written with --no-compress, as a build with SPARSE_ACCEL_CUDA=CHECK has it;
or one such object, or a cubin. Of every kernel in it, for every architecture:

- no local memory (stack, spilled registers) but what KERNELS says;
- no more registers than it allows. Threads times registers is what limits how many blocks a multiprocessor holds;
- where it says so, that many 16-byte loads of global memory at a time on their way, nothing waiting for the first
  of them. Fewer in flight do not fill the memory's latency; narrow ones are more instructions for the same bytes.

A kernel that KERNELS does not name has the limits of OTHERS. Reads the ELF images and the 128-bit instructions of sm_70
to sm_90 itself: the few codes below are those that `cuobjdump -sass` shows. Needs `c++filt` of binutils; standard
library only.
"""

import argparse
import pathlib
import re
import struct
import subprocess
import sys

# By how the kernel's name begins (the longest counts): the most registers, the least 16-byte loads in flight, and bytes
# of stack that are known of: some compiler would rather put a register aside.
KERNELS = {
    "shrink_elements_kernel<ProxBody": (64, 2, 0),
    "shrink_elements_kernel<RmdaBody": (64, 4, 0),
    "shrink_fused_kernel<ProxBody": (64, 2, 0),
    "shrink_fused_kernel<RmdaBody": (64, 3, 0),
    "shrink_strips_kernel<ProxBody": (64, 2, 0),
    "shrink_strips_kernel<RmdaBody": (64, 5, 0),
    "shrink_strips_kernel<SgdBody": (64, 4, 0),
    "shrink_squares_kernel<ProxBody": (64, 2, 8),
    "shrink_squares_kernel<RmdaBody": (64, 3, 8),
    "shrink_finish_kernel<ProxBody": (64, 2, 8),
    "shrink_finish_kernel<RmdaBody": (64, 3, 8),
    "shrink_elements_kernel<SgdBody": (72, 2, 8),
    "shrink_fused_kernel<SgdBody": (72, 2, 8),
    "shrink_squares_kernel<SgdBody": (72, 2, 8),
    "shrink_finish_kernel<SgdBody": (72, 2, 8),
    "group_score_kernel": (64, 4, 0),
    "score_strips_kernel": (64, 4, 0),
    "metric_elements_kernel": (64, 4, 0),
    "metric_elements_kernel<double": (104, 8, 0),
    "metric_groups_kernel": (128, 0, 0),
    "metric_rows_kernel": (64, 2, 0),
    "metric_rows_kernel<double": (112, 4, 0),
    "metric_rows_kernel<float": (64, 4, 0),
    "metric_strips_kernel": (64, 2, 8),
    "metric_strips_kernel<double": (112, 4, 0),
    "metric_strips_kernel<float": (64, 3, 8),
    "sparse_linear_kernel": (104, 0, 0),
    "sparse_unpack_kernel": (64, 0, 8),
    "topk_blocks_kernel": (120, 0, 8),
}
OTHERS = (64, 0, 0)  # a quarter of the registers: four blocks of 256 threads on a multiprocessor

LOAD, STORE, LOAD_LOCAL, STORE_LOCAL = 0x981, 0x986, 0x983, 0x387
WIDE = 6  # the width's code: 16 bytes
NO_BARRIER = 7
REGISTERS, FRAME = 0x2F, 0x11  # attributes in .nv.info
CUDA_MACHINE = b"\x7fELF\x02\x01\x01"


class Cubin:
    """One ELF image: code, registers and stack frame of its kernels."""

    def __init__(self, data):
        flags, self.kernels = struct.unpack_from("<I", data, 48)[0], {}
        self.architecture = flags >> 8 & 0xFF or flags & 0xFF
        offset, (size, count, names) = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<3H", data, 58)
        headers = [struct.unpack_from("<2I4Q2I2Q", data, offset + i * size) for i in range(count)]
        title = headers[names][4]
        sections = {text(data, title + header[0]): header for header in headers}
        symbols, strings = sections[".symtab"], sections[".strtab"][4]
        symbol = [text(data, strings + struct.unpack_from("<I", data, at)[0]) for at in spans(symbols, 24)]
        for name, header in sections.items():
            if name.startswith(".text."):
                code = [struct.unpack_from("<2Q", data, at) for at in spans(header, 16)]
                self.kernels[name[6:]] = {"code": code, REGISTERS: 0, FRAME: 0}
        for attribute, value in attributes(data, sections[".nv.info"]):
            index, number = value
            if symbol[index] in self.kernels:
                self.kernels[symbol[index]][attribute] = number


def text(data, at):
    return data[at : data.index(b"\0", at)].decode()


def spans(header, size):
    """Where the entries of a section begin."""
    return range(header[4], header[4] + header[5], size)


def attributes(data, header):
    """Those of .nv.info that give a symbol a number."""
    at, end = header[4], header[4] + header[5]
    while at < end:
        form, kind, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == 4:  # of that many bytes; the others have their value in the place of the size
            if kind in (REGISTERS, FRAME):
                yield kind, struct.unpack_from("<2I", data, at)
            at += size


def cubins(path):
    """The images in an object, which has them one after another in a section of its own, or in a cubin."""
    data, at = path.read_bytes(), -1
    while (at := data.find(CUDA_MACHINE, at + 1)) >= 0:
        if struct.unpack_from("<H", data, at + 18)[0] == 190:
            yield Cubin(data[at:])


def in_flight(code):
    """The most 16-byte loads on their way at a time, and instructions that touch local memory.

    A load that sets barrier b is on its way until an instruction waits for b; the compiler's order is taken for the
    order of execution, and what is in flight at a store's turn stays in flight."""
    waiting, most, local = [0] * 6, 0, 0
    for low, high in code:
        operation = low & 0xFFF
        for barrier in range(6):
            if high >> 52 + barrier & 1:
                waiting[barrier] = 0
        local += operation in (LOAD_LOCAL, STORE_LOCAL)
        barrier = high >> 46 & 7
        if operation == LOAD and high >> 9 & 7 == WIDE and barrier != NO_BARRIER:
            waiting[barrier] += 1
            most = max(most, sum(waiting))
    return most, local


def plain(names):
    """Kernels' names without namespaces, results and arguments."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    for name in done.stdout.splitlines():
        short = re.sub(r"sparse_accel::|cuda::|\(anonymous namespace\)::|^void ", "", name)
        short = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", short)  # (Score)1: an enumerator
        yield short.split("(")[0]


def check(path, kernels=KERNELS):
    """Rows (name, architecture, registers, loads in flight) of all kernels, and what is wrong with them."""
    files = sorted(path.rglob("*.cu.o")) if path.is_dir() else [path]
    images = [(file, image) for file in files for image in cubins(file)]
    if not images:
        raise SystemExit(f"{path}: no object of a .cu file with code for a GPU (nvcc --no-compress) in it")
    rows, wrong = [], []
    for _, image in images:
        for name, kernel in zip(plain(image.kernels), image.kernels.values(), strict=True):
            loads, local = in_flight(kernel["code"])
            where = f"sm_{image.architecture} {name}"
            rows.append((name, image.architecture, kernel[REGISTERS], loads))
            known = max((begin for begin in kernels if name.startswith(begin)), key=len, default="")
            most, least, stack = kernels.get(known, OTHERS)
            if kernel[FRAME] > stack or (local and not stack):
                wrong.append(
                    f"{where}: {kernel[FRAME]} bytes of stack and {local} accesses of it, expected {stack} bytes"
                )
            if kernel[REGISTERS] > most:
                wrong.append(f"{where}: {kernel[REGISTERS]} registers, expected at most {most}")
            if loads < least:
                wrong.append(f"{where}: {loads} 16-byte loads in flight, expected at least {least}")
    return rows, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=pathlib.Path, help="folder with nvcc's objects, an object or a cubin")
    parser.add_argument("--print", action="store_true", help="every kernel with its numbers")
    options = parser.parse_args()
    rows, wrong = check(options.build)
    for name, architecture, registers, loads in sorted(rows) if options.print else []:
        print(f"sm_{architecture} {registers:3} registers {loads:2} in flight  {name}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    names = {row[0] for row in rows}
    print(f"{len(rows)} kernels, {len(names)} names, sm_{sorted({row[1] for row in rows})}: {len(wrong)} faults")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
