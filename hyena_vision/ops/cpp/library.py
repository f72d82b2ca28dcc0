"""Compiles the C++ in this folder with the machine's C++ compiler on first use, loads them, and hands them memory.

The result is kept in `HYENA_VISION_CACHE`, by default `hyena_vision` in `XDG_CACHE_HOME` or ~/.cache, under a name that
follows from source, compiler and flags, with a checksum at its end. It is loaded from there if the checksum holds and
nobody but the user can write to the folder; else it is made again, for this process alone if need be.
`HYENA_VISION_CPP=0` turns all of this off.
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
from torch import Tensor
from torch.nn import Parameter

from hyena_vision.ops.cache import cache_folder

_FOLDER = Path(__file__).parent
# Vector instructions are those that torch uses: it knows what this CPU has, and ATEN_CPU_CAPABILITY bounds both.
_VECTORS = {
    "AVX512": ["-DLANES=16", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "AVX2": ["-DLANES=8", "-mavx2", "-mfma"],
}
_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi"]


def library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        RuntimeError: There is none; the message says what is missing.
    """
    loaded, missing = _load()
    if loaded is None:
        raise RuntimeError(f"backend 'cpp' is not available on this machine: {missing}")
    return loaded


@torch.compiler.assume_constant_result
def why_not() -> str | None:
    """None if the library is there, compiled now if need be, else a phrase that says what is missing."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("HYENA_VISION_CPP", "1") == "0":
        return None, "HYENA_VISION_CPP is 0"
    if platform.system() != "Linux":
        return None, f"it is for Linux, and this is {platform.system()}"
    command: list[str] = []
    try:
        command = _compiler()
        if not command:
            return None, "there is no C++ compiler: neither c++, g++ nor clang++ is in PATH, and CXX is not set"
        command += [*_FLAGS, *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ["-DLANES=4"])]
        return _built(command), None
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None)
        lines = (output if isinstance(output, str) else "").strip().splitlines() or [str(error)]
        said = next((line for line in lines if "error" in line), lines[-1])
        return None, f"{shlex.join(command) or 'reading CXX'} failed: {said}"


def _compiler() -> list[str]:
    """The start of a command, empty if there is no compiler."""
    named = shlex.split(os.environ.get("CXX", ""))
    return named or [path for path in map(shutil.which, ("c++", "g++", "clang++")) if path][:1]


def _built(command: list[str]) -> ctypes.CDLL:
    """The library that a command makes, from the cache if it is there."""
    sources = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    text = b"".join(path.read_bytes() for path in sources) + shlex.join([platform.machine(), *command]).encode()
    name = f"hyena-{hashlib.sha256(text).hexdigest()[:16]}.so"
    units = [str(source) for source in sources if source.suffix == ".cpp"]

    def build(folder: str | Path) -> Path:
        made = Path(folder, name)
        subprocess.run(
            [*command, *units, "-o", made], check=True, capture_output=True, text=True, errors="replace", timeout=300
        )
        made.chmod(0o700)
        with made.open("r+b") as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)  # behind what a loader reads
        return made

    folder = cache_folder()
    try:
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder is not None and _is_private(folder):
            path = folder / name
            if not _is_whole(path):
                with tempfile.TemporaryDirectory(dir=folder) as other:
                    os.replace(build(other), path)  # whole or not at all, whoever else is making it
            return _declared(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        pass  # nothing can be kept there, or be run from there
    with tempfile.TemporaryDirectory() as other:
        return _declared(ctypes.CDLL(str(build(other))))


def _is_private(path: Path) -> bool:
    """Whether it is this user's, and nobody else can write to it."""
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _is_whole(path: Path) -> bool:
    """Whether this is a library as it was written: loading another could end the process."""
    if not path.is_file() or not _is_private(path):
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


_PLAIN = (Tensor, Parameter)


def address(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], layout: str = "contiguous") -> int:
    """Address of a tensor's first number. All memory that C++ reads or writes passes here.

    Args:
        tensor: On the CPU, plain numbers as they are in memory.
        dtype: That C++ takes them for.
        shape: That C++ takes it to have.
        layout: "contiguous"; "channels_last" for neighbours along axis 1; "strided" where C++ is told all strides.

    Raises:
        RuntimeError: It is anything else; the message has both.
    """
    fits = type(tensor) in _PLAIN and tensor.is_cpu and tensor.dtype is dtype and tensor.shape == shape
    fits = fits and tensor.layout is torch.strided and not (tensor.is_neg() or tensor.is_conj())
    # A tensor whose memory was given back has its shape still
    fits = fits and (tensor.untyped_storage().nbytes() > 0 or tensor.numel() == 0)
    if layout == "contiguous":
        fits = fits and tensor.is_contiguous()
    elif layout == "channels_last":
        fits = fits and (tensor.stride(1) == 1 or shape[1] == 1)
    if not fits:
        given = f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        raise RuntimeError(f"C++ expects a {layout} tensor {tuple(shape)} {dtype} on the CPU, got {given}")
    return tensor.data_ptr()


class Array(ctypes.Structure):
    """A signal, or nothing: address, and strides of sample, H and W in numbers."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_long * 3)]


class Kernel(ctypes.Structure):
    """A kernel: address of displacement 0, strides of sample, channel, H and W, and the taps that count."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("strides", ctypes.c_long * 4),
        *((name, ctypes.c_int) for name in ("before_h", "after_h", "before_w", "after_w")),
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
