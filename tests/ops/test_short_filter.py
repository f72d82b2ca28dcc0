"""Short filter and first gate: torch calls against hand-made cases, Triton kernels against torch in float64."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from hyena_vision.ops.short_filter import gated_short_filter
from hyena_vision.ops.short_filter_torch import filter_by_torch
from hyena_vision.testing import assert_within_tolerance

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOW = (torch.float16, torch.bfloat16)

# size, filter, signals, channels of each, causal, layout of x, bias
CASES = [
    ((1,), (3,), 3, 5, False, "contiguous", True),
    ((2,), (5,), 2, 3, False, "slice", False),
    ((37,), (3,), 3, 7, False, "slice", True),
    ((1,), (3,), 2, 4, True, "contiguous", False),
    ((33,), (4,), 3, 6, True, "transposed", True),
    ((29,), (1,), 4, 3, True, "slice", True),
    ((135,), (2,), 2, 2, True, "contiguous", False),  # gradients of taps in two parts
    ((1, 1), (3, 3), 3, 5, False, "slice", True),
    ((3, 6), (3, 5), 2, 6, False, "transposed", True),
    ((7, 3), (5, 3), 3, 4, False, "slice", False),
    ((3, 5), (3, 3), 3, 33, False, "contiguous", True),  # two blocks of channels
    ((3, 11), (1, 1), 4, 3, False, "transposed", False),
    ((2, 3), (5, 5), 2, 2, False, "contiguous", True),
]


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
TRITON = pytest.param("triton", marks=needs_triton)


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def draw(size, taps, signals, channels, layout="contiguous", bias=True, batch=2, dtype=torch.float32):
    """x, weight and bias that all dtypes of a test can hold, so that they are the same to the truth."""
    generator = torch.Generator().manual_seed(0)
    width = signals * channels

    def values(*shape):
        return torch.randn(shape, generator=generator).bfloat16().to(DEVICE, dtype)

    x = lay_out(values(batch, *size, width), layout)
    return x, values(width, 1, *taps), values(width) if bias else None


def lay_out(x, layout):
    """The same tokens: in a buffer that is NaN elsewhere, or with the channels slowest."""
    if layout == "transposed":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "slice":
        buffer = x.new_full([n + 3 for n in x.shape[:-1]] + [2 * x.shape[-1] + 3], float("nan"))
        window = buffer[(*(slice(1, n + 1) for n in x.shape[:-1]), slice(1, 2 * x.shape[-1] + 1, 2))]
        window.copy_(x)
        return window
    return x


def cotangent(y):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y)


def values_and_gradients(tensors, **kwargs):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = gated_short_filter(*leaves, **kwargs)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, cotangent(y))]


def check(tensors, dtype, **kwargs):
    truths = values_and_gradients([None if t is None else t.double() for t in tensors], **kwargs)
    values = values_and_gradients(tensors, **kwargs, backend="triton")
    names, leaves = ("y", "dx", "dweight", "dbias")[: len(values)], [tensors[0], *tensors][: len(values)]
    for what, value, truth, leaf in zip(names, values, truths, leaves, strict=True):
        assert value.dtype == leaf.dtype and value.is_contiguous() and value.shape == truth.shape
        assert_within_tolerance(value, truth, dtype, what)


# The torch path


def test_hand_made_image():
    """Two signals of one channel on 3 x 3 tokens: a filter that looks up and right, and one that passes its input."""
    x = torch.arange(1.0, 10.0).reshape(1, 3, 3, 1).repeat(1, 1, 1, 2)
    weight = torch.zeros(2, 1, 3, 3)
    weight[0, 0, 0, 2] = 2.0  # one row before, one column after
    weight[1, 0, 1, 1] = 1.0
    y = gated_short_filter(x, weight, torch.tensor([1.0, 0.5]), signals=2)
    filtered = torch.tensor([[1.0, 1.0, 1.0], [5.0, 7.0, 1.0], [11.0, 13.0, 1.0]])
    assert torch.equal(y[0, 0, 0], filtered * (x[0, :, :, 1] + 0.5))


def test_hand_made_causal_sequence():
    x = torch.tensor([[[1.0, 1.0, 7.0], [2.0, 1.0, 8.0], [3.0, 1.0, 9.0]]])
    weight = torch.tensor([[[10.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    y = gated_short_filter(x, weight, signals=3, causal=True)
    assert torch.equal(y[0, :, 0], torch.tensor([[1.0, 12.0, 23.0], [7.0, 8.0, 9.0]]))


def test_torch_path_is_a_depthwise_convolution_and_a_product():
    x, weight, bias = draw((5, 6), (3, 5), 4, 3, dtype=torch.float64)
    filtered = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=(1, 2), groups=12)
    y = gated_short_filter(x, weight, bias, signals=4)
    assert y.is_contiguous() and y.shape == (2, 3, 3, 5, 6)
    torch.testing.assert_close(y[:, :2].flatten(1, 2), filtered[:, :6])
    torch.testing.assert_close(y[:, 2], filtered[:, 6:9] * filtered[:, 9:])


@pytest.mark.parametrize("dtype", LOW)
def test_torch_path_sums_in_float32(dtype):
    """Also under autocast, and whatever the dtype of the parameters."""
    x, weight, bias = draw((6, 5), (3, 3), 3, 4)
    truth = gated_short_filter(x.double(), weight.double(), bias.double(), signals=3)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = gated_short_filter(x, weight, bias.double(), signals=3)
    assert y.dtype == torch.float32
    assert_within_tolerance(y, truth, torch.float32)
    y = gated_short_filter(x.to(dtype), weight, bias.double(), signals=3)
    assert y.dtype == dtype
    assert_within_tolerance(y, truth, dtype)


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_second_derivatives(backend):
    tensors = [t.requires_grad_() for t in draw((4,), (3,), 3, 2)]

    def penalty(leaves, backend):
        y = gated_short_filter(*leaves, signals=3, backend=backend)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    truths = penalty([t.detach().double().requires_grad_() for t in tensors], "torch")
    for value, truth in zip(penalty(tensors, backend), truths, strict=True):
        assert_within_tolerance(value, truth, torch.float32)


@needs_triton
def test_second_derivatives_of_some_arguments():
    x, weight, bias = draw((4,), (3,), 2, 2)
    weight.requires_grad_()
    y = gated_short_filter(x, weight, bias, signals=2, backend="triton")
    (first,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    assert second.shape == weight.shape and second.isfinite().all()


# The kernels


@needs_triton
@pytest.mark.parametrize(("size", "taps", "signals", "channels", "causal", "layout", "bias"), CASES)
def test_kernels_in_float32(nan_filled_empties, size, taps, signals, channels, causal, layout, bias):
    check(draw(size, taps, signals, channels, layout, bias), torch.float32, signals=signals, causal=causal)


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "size", "taps", "signals", "channels", "causal", "layout", "bias"),
    [(torch.float16, *CASES[2]), *((torch.bfloat16, *CASES[i]) for i in (2, 4, 9))],
)
def test_kernels_in_16_bits(nan_filled_empties, dtype, size, taps, signals, channels, causal, layout, bias):
    tensors = draw(size, taps, signals, channels, layout, bias, dtype=dtype)
    check(tensors, dtype, signals=signals, causal=causal)


@needs_triton
def test_parameters_of_another_dtype():
    x, weight, bias = draw((5, 5), (3, 3), 3, 4)
    check([x.bfloat16(), weight, bias.double()], torch.bfloat16, signals=3)
    check([x, weight.bfloat16(), bias.half()], torch.bfloat16, signals=3)


@needs_triton
def test_parameters_and_gradients_of_any_strides():
    x, weight, bias = draw((5, 6), (3, 3), 3, 4)
    odd = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not odd.is_contiguous()
    y = gated_short_filter(x.requires_grad_(), odd.requires_grad_(), bias[::1], signals=3, backend="triton")
    plain = torch.autograd.grad(y, (x, odd), torch.ones_like(y), retain_graph=True)
    permuted = torch.ones_like(y).permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    for grad in (torch.ones((), device=DEVICE).expand_as(y), permuted):
        for given, expected in zip(torch.autograd.grad(y, (x, odd), grad, retain_graph=True), plain, strict=True):
            assert torch.equal(given, expected)


@needs_triton
def test_empty_batch():
    for backend in ("torch", "triton"):
        x, weight, bias = draw((4, 3), (3, 3), 3, 2, batch=0)
        y, dx, dweight, dbias = values_and_gradients((x, weight, bias), signals=3, backend=backend)
        assert y.shape == (0, 2, 2, 4, 3) and dx.shape == x.shape
        assert not dweight.any() and not dbias.any()


@needs_triton
def test_repeats_are_equal_bit_by_bit():
    tensors = draw((135,), (1,), 2, 2)
    first = values_and_gradients(tensors, signals=2, backend="triton")
    again = values_and_gradients(tensors, signals=2, backend="triton")
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@needs_triton
@pytest.mark.parametrize("bias", [False, True])
def test_registered_operator(bias):
    from hyena_vision.ops.triton import short_filter as short_filter_triton

    tensors = [None if t is None else t.requires_grad_() for t in draw((4,), (3,), 2, 2, "slice", bias)]
    torch.library.opcheck(short_filter_triton.gated_short_filter, (*tensors, 2, False))


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_compiles_to_one_graph(backend):
    tensors = [t.requires_grad_() for t in draw((9,), (3,), 3, 2)]

    def call(x, weight, bias):
        return gated_short_filter(x * 1.0, weight, bias, signals=3, causal=True, backend=backend)

    explained = torch._dynamo.explain(call)(*tensors)
    assert explained.graph_count == 1 and explained.graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    y, expected = compiled(*tensors), call(*tensors)
    assert torch.equal(y, expected)
    given = torch.autograd.grad(y, tensors, cotangent(y))
    for value, truth in zip(given, torch.autograd.grad(expected, tensors, cotangent(y)), strict=True):
        torch.testing.assert_close(value, truth)


@needs_triton
def test_blocks_follow_their_rule():
    from hyena_vision.ops.triton.short_filter import backward_block, forward_block

    assert [forward_block(n, 2) for n in (196, 64, 4096, 1)] == [32, 64, 64, 32]
    assert [forward_block(n, 4) for n in (196, 64, 4096, 1)] == [16, 32, 32, 16]
    assert [backward_block(taps) for taps in (1, 9, 25, 27, 49)] == [16, 16, 8, 4, 4]


# Errors


def test_shapes_that_do_not_fit():
    x, weight, bias = draw((4, 5), (3, 3), 3, 2)
    for match, arguments, kwargs in [
        ("signals must be at least 2, got 1", (x, weight), dict(signals=1)),
        (r"with S = 4.*\(2, 4, 5, 6\)", (x, weight), dict(signals=4)),
        (r"with S = 3.*weight \(3, 1, 3, 3\)", (x, weight[:3]), dict(signals=3)),
        (r"or \(B, H, W, S \* C\).*\(2, 20, 6\)", (x.flatten(1, 2), weight), dict(signals=3)),
        (r"odd extents.*\(6, 1, 2, 3\)", (x, weight[:, :, 1:]), dict(signals=3)),
        ("for sequences", (x, weight), dict(signals=3, causal=True)),
        (r"bias must have shape.*bias \(5,\)", (x, weight, bias[1:]), dict(signals=3)),
        ("no axis but the batch", (x[:, :0], weight), dict(signals=3)),
        ("on meta", (x, weight.to("meta")), dict(signals=3)),
        ("unknown backend 'cuda'.*torch", (x, weight), dict(signals=3, backend="cuda")),
    ]:
        with pytest.raises(ValueError, match=match):
            gated_short_filter(*arguments, **kwargs)
    with pytest.raises(TypeError, match="int64"):
        gated_short_filter(x, weight.long(), signals=3)


@needs_triton
def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    from hyena_vision.ops import short_filter
    from hyena_vision.ops.triton import short_filter as short_filter_triton

    x, weight, _ = draw((11,), (51,), 2, 2)
    with pytest.raises(RuntimeError, match="'triton'.*at most 49 taps"):
        gated_short_filter(x, weight, signals=2, backend="triton")
    with pytest.raises(RuntimeError, match="'triton'.*no float64"):
        gated_short_filter(x.double(), weight, signals=2, backend="triton")
    monkeypatch.setattr(short_filter_triton, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="'triton'.*x is on cpu"):
        gated_short_filter(x.cpu(), weight[..., :3].cpu(), signals=2, backend="triton")
    monkeypatch.setattr(short_filter, "_HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="'triton'.*not installed"):
        gated_short_filter(x, weight, signals=2, backend="triton")
    assert filter_by_torch(x, weight, None, 2, False).shape == (2, 1, 2, 11)
