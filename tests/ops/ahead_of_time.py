"""Compiles the fused kernels for GPUs that need not be there, as they are launched; prints what the compiler reports.

A program of its own, since the tests run in a process where Triton interprets:

    python ahead_of_time.py ARCHITECTURE {bf16,fp32} [SIZE ...]     sm_80, sm_89, ...; a size: 64x64, 4096

docs/gpu.md lists the architectures that were tried.

Instructions are those of a program of a whole tile, of one sample; of other programs, those of one turn of each loop.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyena_vision.ops.triton import long_conv as long_conv_triton
from hyena_vision.ops.triton import long_conv_kernels, long_conv_parts_kernels, short_filter_kernels
from hyena_vision.ops.triton import short_filter as short_filter_triton
from hyena_vision.ops.triton.half_frequency import make_plan

SIZES = ((256, 256), (128, 128), (16384,), (64, 64), (4096,), (32, 32), (16, 16))
KERNELS = {
    "_long_conv_fwd_kernel": "whole",
    "_long_conv_bwd_kernel": "whole",
    "_spectrum_bwd_kernel": "spectrum",
    "_spectrum_w_bwd_kernel": "spectrum_w",
    "_transform_w_kernel": "transform_w",
    "_convolve_h_kernel": "convolve_h",
    "_transform_w_back_kernel": "transform_w",
}


def constant(value):
    """A parameter that the kernel is compiled for."""
    return ("constant", value)


def arguments(plan, exact):
    """Of every parameter: the type, a constant, or a tuple of these; * and %16 stand for multiples of 16."""
    large = max(plan.tile_h, plan.tile_w) > 64
    number = "*fp32" if exact else "*bf16"
    strides = ["i32%16"] * 4
    strides[3 if plan.rank == 2 else 2] = constant(1)
    signal = (number, tuple(strides))
    signals = "x gate out_gate y dy dx dgate dout_gate factor other_factor other_y"
    return dict.fromkeys(signals.split(), signal) | {
        **({"dout_gate": constant(None)} if large else {}),
        **dict.fromkeys(("workspace", "x_w", "dy_w"), "*fp32"),
        "dspectrum": "*fp32",
        "scales": "*fp32",
        "spectrum": "*fp32" if exact else "*fp16",
        "tables": ("*fp16", "*fp16", *(("*fp32", "*fp16") if plan.rank == 1 else (constant(None), constant(None)))),
        "size": ("i32%16", "i32%16"),
        "batch": "i32",
        "channels": "i32%16",
        "samples": "i32",
        "PER_SAMPLE": constant(False),
        "CONJUGATE": constant(False),
        **{key: constant(value) for key, value in long_conv_triton.constants_of(plan, exact).items()},
    }


def short_filter_arguments(exact, backward):
    """As `arguments`, of the kernels of a 3 x 3 filter of three signals."""
    number = "*fp32" if exact else "*bf16"
    tokens = (
        short_filter_triton.backward_block(9)
        if backward
        else short_filter_triton.forward_block(4096, 4 if exact else 2)
    )
    constants = dict(SIGNALS=3, HAS_BIAS=True, TH=3, TW=3, TOP=1, LEFT=1, TOKENS=tokens, CHANNELS=32)
    constants["STEPS"] = short_filter_triton.CHUNK // tokens
    strides = "stride_b stride_h stride_w grad_stride_b grad_stride_s grad_stride_c"
    return (
        dict.fromkeys("x_ptr out_ptr grad_ptr dsignal_ptr dx_ptr".split(), number)
        | dict.fromkeys("weight_ptr bias_ptr partial_ptr".split(), "*fp32")
        | dict.fromkeys(("tokens", "height", "width"), "i32")
        | dict.fromkeys((*strides.split(), "channels"), "i32%16")
        | {key: constant(value) for key, value in dict(constants, stride_c=1, grad_stride_t=1).items()}
    )


def tool(name, *arguments):
    """What one of the programs that come with Triton prints."""
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def executed(assembly, turns):
    """Instructions of a warp, those of each loop `turns` times; of several outcomes of a test all are counted."""
    places, loops, count = {}, [], 0
    for line in assembly.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            places[label[1]] = count
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*);", line):
            target = re.search(r"BRA.*`\((\.L\w+)\)", instruction[1])
            # A program ends with a jump to itself
            if target and places.get(target[1], count) < count:
                loops.append(count + 1 - places[target[1]])
            count += "NOP" not in instruction[1]
    return count + sum(loops) * (turns - 1)


def compile_kernel(kernel, given, target, turns, **options):
    """Registers, bytes of stack per thread (what was spilled), of shared memory; instructions of all warps if turns."""
    constants, attributes = {}, {}

    def walk(kind, path):
        if isinstance(kind, tuple) and kind[0] == "constant":
            constants[path] = kind[1]
            return "constexpr"
        if isinstance(kind, tuple):
            return tuple(walk(part, (*path, index)) for index, part in enumerate(kind))
        if kind.startswith("*") or kind.endswith("%16"):
            attributes[path] = [["tt.divisibility", 16]]
        return kind.removesuffix("%16")

    signature = {name: walk(given[name], (index,)) for index, name in enumerate(kernel.arg_names)}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        registers, stack = re.search(
            r"REG:(\d+) STACK:(\d+)", tool("cuobjdump", "--dump-resource-usage", file)
        ).groups()
        assembly = tool("nvdisasm", "-c", file) if turns else ""
    threads = 32 * compiled.metadata.num_warps
    report = {"registers": int(registers), "threads": threads, "stack": int(stack), "shared": compiled.metadata.shared}
    return report | ({"instructions": compiled.metadata.num_warps * executed(assembly, turns)} if turns else {})


def main(target, sizes=(), without=(), instructions=True):
    """Print one line of JSON per kernel and size; kernels that work on parts of a tile come with the first one only.

    Kernels whose names begin as one of `without` are left out.
    """
    architecture, dtype = target
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    exact, parts = dtype == "fp32", set()
    for size in [tuple(map(int, size.split("x"))) for size in sizes] or SIZES:
        plan = make_plan(size, False)
        is_whole = long_conv_triton.is_whole(plan, exact, torch.device("cpu"))
        launches = ["whole"] if is_whole else ["transform_w", "convolve_h"]
        launches += ["spectrum"] if max(plan.tile_h, plan.tile_w) <= 64 else ["transform_w", "spectrum_w"]
        for kernel, launch in KERNELS.items():
            if launch not in launches or kernel in parts or kernel.startswith(tuple(without)):
                continue
            if launch not in ("whole", "spectrum"):
                parts.add(kernel)
            blocks = long_conv_triton.blocks_of(launch, plan, exact)
            given = arguments(plan, exact) | {key: constant(n) for key, n in blocks.items()}
            module = long_conv_kernels if launch in ("whole", "spectrum") else long_conv_parts_kernels
            given["KEEP"] = constant(blocks["CHUNK"] == plan.frequencies_h if launch == "whole" else None)
            options = {key: n for key, n in blocks.items() if not key.isupper()}
            # Whole tiles have one loop, over chunks, or, where there is one chunk, over samples
            turns = plan.frequencies_h // blocks["CHUNK"] if launch == "whole" else 1
            report = compile_kernel(getattr(module, kernel), given, target, instructions and turns, **options)
            print(json.dumps({"kernel": kernel, "size": size, **report}), flush=True)
    names = "_short_filter_fwd_kernel", "_short_filter_bwd_signals_kernel", "_short_filter_bwd_inputs_kernel"
    for kernel in names:
        if kernel.startswith(tuple(without)):
            continue
        given = short_filter_arguments(exact, backward="inputs" in kernel)
        report = compile_kernel(
            getattr(short_filter_kernels, kernel), given, target, int(instructions), num_warps=short_filter_triton.WARPS
        )
        print(json.dumps({"kernel": kernel, **report}), flush=True)


if __name__ == "__main__":
    assert "TRITON_INTERPRET" not in os.environ
    main(sys.argv[1:3], sys.argv[3:])
