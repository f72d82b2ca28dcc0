"""The fused kernels against the direct sum: on a GPU where there is one, else by Triton's interpreter on the CPU."""

import pytest
import torch
from operators import OPERATORS
from torch._subclasses.fake_tensor import FakeTensorMode

from hyena_vision.ops import long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.testing import Problem, assert_within_tolerance, lay_out, relative_errors

pytest.importorskip("triton")
import triton

from hyena_vision.ops.triton import half_frequency
from hyena_vision.ops.triton import long_conv as long_conv_triton

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("nan_filled_empties")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16)
CASES = [
    ("causal", Problem((1,), (1,), batch=1, channels=2)),
    ("causal", Problem((12,), (30,), channels=2, per_sample=True, layout="slice")),
    ("causal", Problem((37,), (37,), layout="channels_last")),
    ("centred", Problem((37,), (73,), batch=3, channels=2, layout="slice")),
    ("centred", Problem((197,), (41,), channels=2, skip=False)),
    ("centred", Problem((300,), (802,), batch=1, channels=2, per_sample=True)),
    ("linear", Problem((1, 1), (3, 3), channels=2)),
    ("linear", Problem((7, 3), (13, 5), per_sample=True, layout="slice")),
    ("linear", Problem((14, 14), (27, 27), batch=1, channels=2, layout="channels_last")),
    ("linear", Problem((16, 17), (40, 1), batch=3, channels=1, skip=False)),
    ("linear", Problem((5, 33), (9, 65), batch=1, channels=2, layout="slice")),
    ("circular", Problem((1, 1), (2, 5), channels=2)),
    ("circular", Problem((5, 8), (3, 40), channels=2, per_sample=True, layout="slice")),
    ("circular", Problem((15, 16), (29, 31), channels=2, layout="channels_last")),
    ("circular", Problem((31, 12), (61, 23), batch=1, channels=2, skip=False)),
]
NAMES = ("y", "dx", "dgate", "dout_gate", "dkernel", "dskip")


def arguments(problem, dtype, gates=(True, True)):
    """x, gates, kernel and skip; gates are near 1, since products of heavy tails are not what tolerances are for."""
    x, kernel, skip = problem.tensors(dtype, DEVICE)
    generator = torch.Generator().manual_seed(2)
    given = []
    for wanted in gates:
        gate = 1 + torch.randn(x.shape, generator=generator, dtype=torch.float64) / 4
        given.append(lay_out(gate.to(DEVICE, dtype), problem.layout) if wanted else None)
    return [x, *given, kernel, skip]


def values_and_gradients(name, tensors, backend):
    """Output, and gradients of all tensors in the order of `NAMES`."""
    op, kwargs = OPERATORS[name]
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, gate, out_gate, kernel, skip = leaves
    y = op(x, kernel, skip, gate=gate, out_gate=out_gate, **kwargs, backend=backend)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).bfloat16()
    y.backward(cotangent.to(y))
    return [y, *(None if leaf is None else leaf.grad for leaf in leaves)]


def check(name, tensors, truth_by="reference"):
    dtype = tensors[0].dtype
    values = values_and_gradients(name, tensors, "triton")
    truths = values_and_gradients(name, [None if t is None else t.double() for t in tensors], truth_by)
    for what, value, truth in zip(NAMES, values, truths, strict=True):
        if truth is None:
            continue
        assert value.dtype == dtype
        if dtype == torch.bfloat16 and long_conv_triton.interpreted() and what not in ("dkernel", "dskip"):
            # The interpreter cuts numbers off instead of rounding them, which doubles the error of what kernels store
            value = truth + (value.double() - truth) / 2
        assert_within_tolerance(value, truth, dtype, what)


def id_of(case):
    return str(getattr(case, "size", case))


# float16 goes the way of float32 but for loads and stores, and the interpreter takes seconds for a case
@pytest.mark.parametrize(
    ("name", "problem", "dtype"),
    [
        *((*case, torch.float32) for case in CASES),
        *((*case, torch.bfloat16) for case in CASES[1::2]),
        *((*case, torch.float16) for case in CASES[3::8]),
    ],
    ids=id_of,
)
def test_matches_direct_sum(name, problem, dtype):
    check(name, arguments(problem, dtype))


@pytest.mark.parametrize("gates", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("name", ["centred", "circular"])
def test_gates_are_free(name, gates):
    problem = Problem((20,), (39,), 1, 2) if name == "centred" else Problem((5, 6), (9, 11), 1, 2)
    check(name, arguments(problem, torch.bfloat16, gates))


def use_blocks(size, monkeypatch):
    """Launch kernels with blocks of that size where tiles are as large."""

    def blocks_of(name, plan, exact):
        most = dict(BLOCK_H=plan.tile_h, BLOCK_W=plan.tile_w, BLOCK=plan.frequencies_w, CHUNK=plan.frequencies_h)
        return {key: min(size, most[key]) if key in most else n for key, n in usual(name, plan, exact).items()}

    usual = long_conv_triton.blocks_of
    monkeypatch.setattr(long_conv_triton, "blocks_of", blocks_of)


@pytest.mark.parametrize(
    ("name", "problem", "dtype"),
    [
        ("causal", Problem((300,), (300,), batch=1, channels=2), torch.float32),
        ("centred", Problem((270,), (539,), batch=2, channels=1, per_sample=True, layout="slice"), torch.bfloat16),
        ("linear", Problem((20, 17), (39, 33), batch=2, channels=1, layout="channels_last"), torch.bfloat16),
        ("circular", Problem((33, 18), (65, 35), batch=1, channels=1, skip=False), torch.float32),
    ],
    ids=id_of,
)
def test_tiles_in_parts_match_direct_sum(name, problem, dtype, monkeypatch):
    monkeypatch.setattr(long_conv_triton, "_WHOLE", 8)
    use_blocks(16, monkeypatch)
    check(name, arguments(problem, dtype), "fft")


@pytest.mark.parametrize(
    ("name", "problem", "dtype"),
    [
        ("centred", Problem((4096,), (8191,), batch=1, channels=1), torch.bfloat16),
        ("linear", Problem((64, 64), (127, 127), batch=1, channels=1), torch.float32),
        ("linear", Problem((70, 40), (139, 79), batch=1, channels=1), torch.bfloat16),
        ("circular", Problem((40, 100), (79, 199), batch=1, channels=1), torch.bfloat16),
        ("causal", Problem((9000,), (9000,), batch=1, channels=1, skip=False), torch.bfloat16),
    ],
    ids=id_of,
)
def test_large_tiles_match_float64_transforms(name, problem, dtype):
    plan = half_frequency.make_plan(problem.size, name == "circular")
    assert long_conv_triton.is_whole(plan, dtype == torch.float32, torch.device(DEVICE, 0))
    assert long_conv_triton.blocks_of("whole", plan, dtype == torch.float32)["CHUNK"] < plan.frequencies_h
    check(name, arguments(problem, dtype), "fft")


@pytest.mark.parametrize("name", ["causal", "linear"])
def test_gradient_of_a_kernel_is_summed_over_samples(name, monkeypatch):
    # Groups of two samples and of one
    monkeypatch.setattr(long_conv_triton, "_WARPS", 4)
    problem = Problem((9,), (9,), 3, 2) if name == "causal" else Problem((3, 4), (5, 7), 3, 2)
    check(name, arguments(problem, torch.float32))


def test_parts_with_a_kernel_per_sample_and_channel(monkeypatch):
    monkeypatch.setattr(long_conv_triton, "_WHOLE", 8)
    problem = Problem((270,), (39,), 2, 2, per_sample=True)
    check("centred", arguments(problem, torch.bfloat16, (False, True)), "fft")


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_gradients_keep_the_range_of_the_input(dtype, scale, parts, monkeypatch):
    if parts:
        monkeypatch.setattr(long_conv_triton, "_WHOLE", 8)
    size = (20, 17) if parts else (6, 7)
    problem = Problem(size, tuple(2 * n - 1 for n in size), 1, 1)
    x, _, _, kernel, skip = arguments(problem, dtype, (False, False))
    check("linear", [x * scale, None, None, kernel, skip], "fft")


def test_constant_images_and_kernels_stay_in_range():
    x, kernel = (torch.ones(shape, dtype=torch.bfloat16, device=DEVICE) for shape in ((1, 1, 128, 128), (1, 255, 255)))
    y = long_conv2d(x, kernel, backend="triton")
    torch.testing.assert_close(y.double(), torch.full_like(y, 128**2).double(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("setting", ["autocast", "default"])
def test_settings_of_the_caller_change_no_number(setting):
    tensors = arguments(Problem((5, 6), (9, 11), 1, 1), torch.float32)
    half_frequency._weights.cache_clear()
    half_frequency._displacement_tables.cache_clear()
    plain = values_and_gradients("circular", tensors, "triton")
    half_frequency._weights.cache_clear()
    half_frequency._displacement_tables.cache_clear()
    before = torch.get_default_dtype()
    try:
        if setting == "autocast":
            with torch.autocast(DEVICE, torch.bfloat16):
                changed = values_and_gradients("circular", tensors, "triton")
        else:
            torch.set_default_dtype(torch.bfloat16)
            changed = values_and_gradients("circular", tensors, "triton")
    finally:
        torch.set_default_dtype(before)
    for value, truth in zip(changed, plain, strict=True):
        assert torch.equal(value, truth)


def test_backward_operator_is_registered_as_torch_asks():
    x, gate, out_gate, kernel, skip = arguments(Problem((3, 4), (5, 7), 1, 2, layout="channels_last"), torch.float32)
    torch.library.opcheck(
        torch.ops.hyena_vision.long_conv_backward,
        (x, x, kernel, skip, gate, out_gate, [2, 3], False, "triton"),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("name", ["centred", "linear"])
def test_largest_sizes(name, monkeypatch):
    if long_conv_triton.interpreted():
        # Fewer steps, a thousand of which would take a minute
        use_blocks(128, monkeypatch)
    op, kwargs = OPERATORS[name]
    problem = Problem((65536,), (131071,), 1, 1) if name == "centred" else Problem((256, 256), (511, 511), 1, 1)
    x, kernel, skip = problem.tensors(torch.float32, DEVICE)
    truth = op(x.double(), kernel.double(), skip.double(), **kwargs, backend="fft")
    assert_within_tolerance(op(x, kernel, skip, **kwargs, backend="triton"), truth, torch.float32)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_float16_products_keep_the_range_of_the_input(dtype, scale):
    """Neither the smallest gradients nor the largest activations may leave the range of float16."""
    x, _, _, kernel, skip = arguments(Problem((12, 12), (23, 23), 1, 2), dtype, (False, False))
    x, kernel, skip = x * scale, kernel * scale**0.4, skip * scale**0.4
    y = long_conv2d(x, kernel, skip, backend="triton")
    truth = long_conv2d(x.double(), kernel.double(), skip.double(), backend="reference")
    assert relative_errors(y, truth)[0] < (8e-3 if dtype == torch.bfloat16 else 3e-6)


def test_zeros_give_zeros():
    x, gate, out_gate, kernel, skip = arguments(Problem((5, 5), (9, 9), 1, 2), torch.bfloat16)
    for zero in (x, kernel):
        zero.zero_()
        y = long_conv2d(x, kernel, 0 * skip, gate=gate, out_gate=out_gate, backend="triton")
        assert y.eq(0).all()


def test_mixed_dtypes_give_what_torch_would():
    x, gate, out_gate, kernel, skip = arguments(Problem((9,), (17,)), torch.bfloat16)
    tensors = [x, gate.float(), out_gate, kernel.float(), skip.double()]
    y = long_conv1d(tensors[0], *tensors[3:], gate=tensors[1], out_gate=tensors[2], backend="triton")
    assert y.dtype == torch.float32
    tensors = [t.double() for t in tensors]
    truth = long_conv1d(tensors[0], *tensors[3:], gate=tensors[1], out_gate=tensors[2], backend="reference")
    assert_within_tolerance(y, truth, torch.float32)


@pytest.mark.parametrize("name", ["centred", "linear"])
def test_equal_calls_give_equal_bits(name):
    problem = Problem((40,), (79,), 3, 1) if name == "centred" else Problem((6, 7), (11, 13), 3, 1)
    tensors = arguments(problem, torch.float32)
    first = values_and_gradients(name, tensors, "triton")
    for _ in range(49 if DEVICE == "cuda" else 1):
        for value, again in zip(first, values_and_gradients(name, tensors, "triton"), strict=True):
            assert torch.equal(value, again)


def test_nothing_but_the_arguments_is_kept_for_the_backward_pass():
    x, gate, out_gate, kernel, skip = (t.requires_grad_() for t in arguments(Problem((6, 5), (11, 9)), torch.float32))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        long_conv2d(x, kernel, skip, gate=gate, out_gate=out_gate, backend="triton")
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in (x, gate, out_gate, kernel, skip)}


def test_second_derivatives_are_those_of_the_other_backends():
    problem = Problem((4, 5), (7, 9), 2, 1)

    def penalty(backend):
        tensors = [t.requires_grad_() for t in arguments(problem, torch.float32)]
        x, gate, out_gate, kernel, skip = tensors
        y = long_conv2d(x, kernel, skip, gate=gate, out_gate=out_gate, backend=backend)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    for value, truth in zip(penalty("triton"), penalty("fft"), strict=True):
        assert relative_errors(value, truth.double())[0] < 1e-5


@pytest.mark.parametrize(
    ("problem", "gates"),
    [
        (Problem((6, 5), (11, 9), 1, 1, layout="channels_last"), (True, True)),
        (Problem((7,), (9,), 2, 1, per_sample=True, skip=False), (True, False)),
    ],
)
def test_operator_is_registered_as_torch_asks(problem, gates):
    x, gate, out_gate, kernel, skip = (
        None if t is None else t.requires_grad_() for t in arguments(problem, torch.float32, gates)
    )
    centre = [taps // 2 for taps in problem.kernel_size]
    torch.library.opcheck(torch.ops.hyena_vision.long_conv, (x, kernel, skip, gate, out_gate, centre, False, "triton"))


def test_compiles_to_one_graph_for_all_sizes():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=count, dynamic=True)
    def run(x, gate, kernel):
        return long_conv2d(x, kernel, gate=gate, backend="triton")

    for size in ((5, 6), (7, 9), (12, 4)):
        x, gate, _, kernel, _ = arguments(Problem(size, tuple(2 * n - 1 for n in size), 1, 2), torch.float32)
        truth = long_conv2d(x, kernel, gate=gate, backend="fft")
        torch.testing.assert_close(run(x, gate, kernel), truth, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("size", [(5, 40), (40,)])
def test_a_compiler_makes_the_tables(size):
    """What it captures as a CUDA graph may not make tensors that stay."""
    of_image = (half_frequency._displacement_tables, half_frequency._weights)
    caches = (
        long_conv_triton._tables,
        *(of_image if len(size) == 2 else (half_frequency._sequence_tables,)),
    )
    tensors = arguments(Problem(size, tuple(2 * n - 1 for n in size), 1, 1), torch.float32)
    for cache in caches:
        cache.cache_clear()
    with FakeTensorMode() as mode:
        x, gate, out_gate, kernel, skip = (mode.from_tensor(t) for t in tensors)
        centre = [n - 1 for n in size]
        torch.ops.hyena_vision.long_conv(x, kernel, skip, gate, out_gate, centre, False, "triton")
    assert {cache.cache_info().currsize for cache in caches} == {1}
    values_and_gradients("linear" if len(size) == 2 else "centred", tensors, "triton")
    assert {cache.cache_info().misses for cache in caches} == {1}


@pytest.mark.parametrize("rank", [1, 2])
def test_prepared_kernels(rank):
    problem = Problem((20,), (39,), 2, 1) if rank == 1 else Problem((5, 6), (9, 11), 2, 1)
    x, gate, out_gate, kernel, skip = arguments(problem, torch.float32)
    prepare, op = (prepare_kernel1d, long_conv1d) if rank == 1 else (prepare_kernel2d, long_conv2d)
    truth = op(x, kernel, skip, gate=gate, out_gate=out_gate, backend="triton")
    prepared = prepare(x, kernel, skip, backend="triton")
    assert torch.equal(op(x, prepared, gate=gate, out_gate=out_gate), truth)
    # It serves other dtypes than it was prepared with, too
    prepared = prepare(x.bfloat16(), kernel, skip, backend="triton")
    assert torch.equal(op(x, prepared, gate=gate, out_gate=out_gate), truth)
    y = op(x.bfloat16(), prepared, gate=gate.bfloat16(), out_gate=out_gate)
    assert relative_errors(y, truth.double())[0] < 5e-3


def test_empty_batches():
    x, gate, out_gate, kernel, skip = arguments(Problem((5, 6), (9, 11), batch=0), torch.float32)
    y, dx, *_, dkernel, dskip = values_and_gradients("linear", [x, gate, out_gate, kernel, skip], "triton")
    assert y.shape == dx.shape == x.shape
    assert dkernel.eq(0).all()
    assert dskip.eq(0).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(1, 1, 3, dtype=torch.float64), "its sums are float32, and x is float64"),
        (torch.ones(1, 1, 65537), r"at most 65536 tokens on each axis, and x has \(65537,\)"),
        (torch.ones(1, 1, 4, 257), r"at most 256 tokens on each axis, and x has \(4, 257\)"),
    ],
)
def test_says_what_it_cannot_run(x, message):
    op, kernel = (long_conv1d, torch.ones(1, 3)) if x.ndim == 3 else (long_conv2d, torch.ones(1, 3, 3))
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run this call: .*{message}"):
        op(x.to(DEVICE), kernel.to(DEVICE), backend="triton")


class OnGpu(torch.Tensor):
    """As far as its device goes."""

    device = torch.device("cuda", 0)


@pytest.fixture
def on_card(monkeypatch):
    """Return a function that makes `reason_not` and `is_whole` believe in a card: what it says of a size and dtype."""
    monkeypatch.setattr(long_conv_triton, "interpreted", lambda: False)
    monkeypatch.setattr(long_conv_triton, "is_watched", lambda *tensors: False)

    def on_card(capability, kilobytes, size, dtype=torch.bfloat16):
        monkeypatch.setattr(long_conv_triton, "_DEVICES", [long_conv_triton.Device(capability, kilobytes * 1024)])
        x = torch.ones(1, 1, *size, dtype=dtype).as_subclass(OnGpu)
        plan = half_frequency.make_plan(size, False)
        return long_conv_triton.reason_not(x, x), long_conv_triton.is_whole(plan, dtype != torch.bfloat16, x.device)

    return on_card


def test_what_does_not_fit_a_card_is_declined_or_done_in_parts(on_card):
    # sm_80, sm_89, and a card of little memory
    assert on_card(80, 163, (128, 128)) == on_card(90, 227, (16384,)) == (None, True)
    assert on_card(89, 99, (128, 128)) == on_card(80, 163, (128, 128), torch.float32) == (None, False)
    assert on_card(86, 99, (64, 64), torch.float32) == on_card(120, 99, (4096,), torch.float16) == (None, True)
    for size in ((64, 64), (3, 33), (4096,), (1025,)):
        reason, _ = on_card(80, 64, size, torch.float32)
        assert reason == "it needs 98304 bytes of shared memory for this size, and cuda:0 has 65536"
        assert on_card(80, 64, size)[0] is None
    for size in ((32, 32), (1024,), (65, 65), (4097,)):
        assert on_card(80, 64, size, torch.float32)[0] is None
        assert "49152 bytes" in on_card(80, 47, size)[0]
    assert "do not fit GPUs before sm_80, and cuda:0 is sm_75" in on_card(75, 64, (8, 8))[0]


def test_other_devices_are_declined(monkeypatch):
    monkeypatch.setattr(long_conv_triton, "interpreted", lambda: False)
    x = torch.ones(1, 1, 3, device="meta")
    assert long_conv_triton.reason_not(x, x) == "it is for GPUs, and x is on meta"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    monkeypatch.setattr(long_conv_triton, "is_watched", lambda *tensors: False)
    x = torch.ones(1, 1, 3).as_subclass(OnGpu)
    assert long_conv_triton.reason_not(x, x) == "it is for NVIDIA's GPUs, and cuda:0 is another"


def test_a_compiler_can_ask_whether_a_card_takes_a_call(monkeypatch):
    """What is read of a card is plain numbers: properties of a real one cannot be traced."""
    monkeypatch.setattr(long_conv_triton, "_DEVICES", [long_conv_triton.Device(89, 101376)])
    torch.compiler.reset()

    @torch.compile(backend="eager", fullgraph=True, dynamic=True)
    def asked(x):
        device, needed = long_conv_triton._DEVICES[0], long_conv_triton.shared_memory(x.shape[2:], True)
        return x + 1 if device.capability < 80 or device.shared_memory < needed else x

    for size in ((5, 9), (40, 40), (70, 70), (300,), (3000,)):
        assert torch.equal(asked(torch.zeros(1, 1, *size)), torch.zeros(1, 1, *size))


@pytest.mark.parametrize("call", ["forward", "backward", "prepared"])
def test_another_version_of_triton_that_needs_more_is_told_in_one_line(call, monkeypatch):
    x, kernel, _ = Problem((4, 5), (7, 9), 1, 2, skip=False).tensors(torch.float32, DEVICE)
    x.requires_grad_()
    y, prepared = long_conv2d(x, kernel, backend="triton"), prepare_kernel2d(x.detach(), kernel, backend="triton")

    def fail(*args, **kwargs):
        raise triton.OutOfResources(123456, 101376, "shared memory")

    monkeypatch.setattr(long_conv_triton, "_launch_whole", fail)
    calls = {
        "forward": lambda: long_conv2d(x, kernel, backend="triton"),
        "backward": lambda: y.sum().backward(),
        "prepared": lambda: long_conv2d(x.detach(), prepared),
    }
    with pytest.raises(RuntimeError, match=r"cannot run \(1, .*123456.*101376.*backend 'fft' can") as raised:
        calls[call]()
    assert isinstance(raised.value.__cause__, triton.OutOfResources)
