"""What the public operators refuse, and how they choose a backend."""

import pytest
import torch

from hyena_vision.ops import available_backends, backends, long_conv1d, long_conv2d


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("op", "args", "error", "message"),
    [
        (long_conv1d, (ones(2, 3), ones(3, 4)), ValueError, r"x must have shape \(B, C, L\), got \(2, 3\)"),
        (long_conv1d, (ones(2, 3, 5), ones(4)), ValueError, r"x has shape \(2, 3, 5\), kernel \(4,\)"),
        (long_conv1d, (ones(2, 3, 5), ones(1, 4)), ValueError, r"x has shape \(2, 3, 5\), kernel \(1, 4\)"),
        (long_conv1d, (ones(2, 3, 5), ones(4, 3, 4)), ValueError, r"x has shape \(2, 3, 5\), kernel \(4, 3, 4\)"),
        (long_conv1d, (ones(2, 3, 5), ones(3, 0)), ValueError, r"empty.*kernel \(3, 0\)"),
        (long_conv1d, (ones(2, 3, 0), ones(3, 2)), ValueError, r"empty.*\(2, 3, 0\)"),
        (long_conv1d, (ones(2, 3, 5), ones(3, 4), ones(2)), ValueError, r"x has shape \(2, 3, 5\), skip \(2,\)"),
        (long_conv1d, (ones(2, 3, 5), ones(3, 4), ones(1)), ValueError, r"skip \(1,\)"),
        (long_conv2d, (ones(2, 3, 5), ones(3, 4, 4)), ValueError, r"x must have shape \(B, C, H, W\), got \(2, 3, 5\)"),
        (long_conv2d, (ones(2, 3, 5, 5), ones(3, 4)), ValueError, r"\(C, Kh, Kw\).*kernel \(3, 4\)"),
        (long_conv2d, (ones(2, 3, 5, 5), ones(2, 4, 4)), ValueError, r"kernel \(2, 4, 4\)"),
        (long_conv2d, (ones(2, 3, 5, 5), ones(1, 3, 4, 4)), ValueError, r"kernel \(1, 3, 4, 4\)"),
        (long_conv2d, (ones(2, 3, 5, 5, dtype=torch.int64), ones(3, 4, 4)), TypeError, "x must be .* got torch.int64"),
        (long_conv2d, (ones(2, 3, 5, 5, dtype=torch.complex64), ones(3, 4, 4)), TypeError, "got torch.complex64"),
        (long_conv2d, (ones(2, 3, 5, 5), ones(3, 4, 4, dtype=torch.bool)), TypeError, "kernel must be .* torch.bool"),
        (long_conv2d, (ones(1, 3, 5, 5), ones(3, 4, 4), ones(3, dtype=torch.int32)), TypeError, "skip .* torch.int32"),
        (long_conv2d, (ones(1, 3, 5, 5), ones(3, 4, 4).to("meta")), ValueError, "x is on cpu, kernel on meta"),
    ],
)
def test_wrong_arguments_are_refused_with_both_shapes(op, args, error, message):
    with pytest.raises(error, match=message):
        op(*args)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="'linear' or 'circular', got 'reflect'"):
        long_conv2d(ones(1, 1, 3, 3), ones(1, 3, 3), padding="reflect")


def test_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown backend 'cudnn', expected one of \['cpp', 'fft', 'triton', 'reference'\]"
    ):
        long_conv1d(ones(1, 1, 3), ones(1, 3), backend="cudnn")


def test_named_backend_says_why_it_cannot_run(monkeypatch):
    def refuse(x, kernel):
        return "kernels are limited to 2 taps, got 3"

    limited = backends.Backend("limited", lambda: None, refuse, None, None, None)
    missing = backends.Backend("missing", lambda: "it has no adder", refuse, None, None, None)
    monkeypatch.setattr(backends, "BACKENDS", {"limited": limited, "missing": missing, **backends.BACKENDS})
    with pytest.raises(RuntimeError, match="'limited' cannot run this call: kernels are limited to 2 taps, got 3"):
        long_conv1d(ones(1, 1, 3), ones(1, 3), backend="limited")
    with pytest.raises(RuntimeError, match="'missing' is not available on this machine: it has no adder"):
        long_conv1d(ones(1, 1, 3), ones(1, 3), backend="missing")
    assert "missing" not in available_backends()
    # Without a name one that can run is taken.
    torch.testing.assert_close(long_conv1d(ones(1, 1, 3), ones(1, 3)), torch.tensor([[[2.0, 3, 2]]]))
