"""Compiles the kernels in cpp/ with the machine's C++ compiler on first use, and loads it.

The result is kept in `HYENA_VISION_CACHE`, by default `hyena_vision` in `XDG_CACHE_HOME` or ~/.cache, under a name that
follows from source, compiler and flags. `HYENA_VISION_CPP=0` turns all of this off.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

_FOLDER = Path(__file__).with_name("cpp")
# Vector instructions are those that torch uses: it knows what this CPU has, and ATEN_CPU_CAPABILITY bounds both.
_VECTORS = {
    "AVX512": ["-DLANES=16", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "AVX2": ["-DLANES=8", "-mavx2", "-mfma"],
}
_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi"]


def library() -> ctypes.CDLL:
    """The compiled library; `why_not` must have said None."""
    return _load()[0]


@torch.compiler.assume_constant_result
def why_not() -> str | None:
    """None if the library is there, compiled now if need be, else a phrase that says what is missing."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("HYENA_VISION_CPP", "1") == "0":
        return None, "HYENA_VISION_CPP is 0"
    if platform.system() not in ("Linux", "Darwin"):
        return None, f"it is for Linux and macOS, and this is {platform.system()}"
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which(name) for name in ("c++", "g++", "clang++")]
    compiler = compiler if os.environ.get("CXX") else [path for path in compiler if path][:1]
    if not compiler:
        return None, "there is no C++ compiler: neither c++, g++ nor clang++ is in PATH, and CXX is not set"
    command = [*compiler, *_FLAGS, *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ["-DLANES=4"])]
    try:
        return _declared(_built(command)), None
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        return None, f"{shlex.join(command)} failed: {output.strip().splitlines()[-1]}"


def _built(command: list[str]) -> ctypes.CDLL:
    """The library that a command makes, from the cache if it is there."""
    sources = sorted(_FOLDER.iterdir())
    text = b"".join(path.read_bytes() for path in sources) + shlex.join([platform.machine(), *command]).encode()
    path = _folder() / f"hyena-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            pass  # of another system that shares the folder, or empty after a loss of power: make it again
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        units = [str(source) for source in sources if source.suffix == ".cpp"]
        subprocess.run([*command, *units, "-o", str(made)], check=True, capture_output=True, text=True, timeout=300)
        os.replace(made, path)  # whole or not at all, whoever else is making it
    return ctypes.CDLL(str(path))


def _folder() -> Path:
    """Where libraries are kept; a temporary folder where that cannot be written."""
    base = os.environ.get("HYENA_VISION_CACHE")
    folder = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hyena_vision"
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="hyena_vision-"))


class Array(ctypes.Structure):
    """A signal, or nothing: address, and strides of sample, line and row in numbers."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_long * 3)]


class Kernel(ctypes.Structure):
    """A kernel: address of displacement 0, strides of sample, channel, line and row, and the taps that count."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("strides", ctypes.c_long * 4),
        *((name, ctypes.c_int) for name in ("line_before", "line_after", "row_before", "row_after")),
    ]


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int
    arrays, kernel = ctypes.POINTER(Array), ctypes.POINTER(Kernel)
    functions = {
        "hyena_lanes": ([], number),
        "hyena_new_plan": ([number] * 5, pointer),
        "hyena_free_plan": ([pointer], None),
        "hyena_convolve": ([pointer, number, number, number, arrays, pointer, number, number], None),
        "hyena_gradients": (
            [pointer, number, number, number, arrays, pointer, number, pointer, number, number],
            None,
        ),
        "hyena_spectrum": ([pointer, number, number, kernel, pointer, pointer, number], None),
        "hyena_kernel_gradient": ([pointer, number, number, kernel, pointer, number], None),
    }
    for name, (arguments, result) in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library
