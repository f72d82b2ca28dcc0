"""The direct sum against SciPy, torch and cases worked out by hand, before anything is compared with it."""

from functools import partial

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F

from hyena_vision.ops import long_conv1d, long_conv2d

conv1d = partial(long_conv1d, backend="reference")
conv2d = partial(long_conv2d, backend="reference")


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_3x3_impulse_shows_the_kernel_unflipped():
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 1, 1] = 1
    kernel = torch.arange(9.0).reshape(1, 3, 3)
    assert torch.equal(conv2d(x, kernel)[0], kernel)


def test_3x3_by_hand():
    x = torch.tensor([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    kernel = torch.zeros(1, 3, 3)
    kernel[0, 0, 1] = 10  # displacement (-1, 0): each row comes from the one below it
    kernel[0, 1, 2] = 1  # displacement (0, 1): each column comes from the one before it
    expected = torch.tensor([[[[40.0, 51, 62], [70, 84, 95], [0, 7, 8]]]])
    assert torch.equal(conv2d(x, kernel), expected)
    circular = torch.tensor([[[[43.0, 51, 62], [76, 84, 95], [19, 27, 38]]]])
    assert torch.equal(conv2d(x, kernel, padding="circular"), circular)


def test_causal_by_hand():
    x = torch.tensor([[[1.0, 2, 3, 4]]])
    kernel = torch.tensor([[1.0, 10]])
    assert torch.equal(conv1d(x, kernel, causal=True), torch.tensor([[[1.0, 12, 23, 34]]]))
    # Centred, tap 1 of 2 is the centre and tap 0 looks one position ahead.
    assert torch.equal(conv1d(x, kernel), torch.tensor([[[12.0, 23, 34, 40]]]))


def test_even_kernel_has_its_centre_at_half_its_extent():
    x = torch.zeros(1, 1, 5)
    x[..., 2] = 1
    assert conv1d(x, torch.arange(1.0, 5).reshape(1, 4)).tolist() == [[[1, 2, 3, 4, 0]]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "taps"), [(1, 1), (7, 1), (7, 4), (7, 7), (7, 13), (7, 14), (5, 30)])
def test_1d_matches_scipy(length, taps, causal):
    x, kernel = draw(2, 3, length), draw(3, taps)
    start = 0 if causal else taps // 2
    expected = np.stack([[np.convolve(x[b, c], kernel[c])[start : start + length] for c in range(3)] for b in range(2)])
    np.testing.assert_allclose(conv1d(x, kernel, causal=causal), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("padding", ["linear", "circular"])
@pytest.mark.parametrize(("size", "taps"), [((5, 6), (3, 3)), ((5, 6), (9, 11)), ((4, 3), (6, 2)), ((3, 4), (10, 13))])
def test_2d_matches_scipy(size, taps, padding):
    x, kernel, skip = draw(2, 3, *size), draw(2, 3, *taps), draw(3)
    expected = np.empty((2, 3, *size))
    for b in range(2):
        for c in range(3):
            # One kernel's extent of surroundings on each side: zeros, or the image again.
            mode = "wrap" if padding == "circular" else "constant"
            wide = np.pad(x[b, c].numpy(), [(k, k) for k in taps], mode=mode)
            full = scipy.signal.convolve2d(wide, kernel[b, c].numpy())
            rows, columns = (slice(k + k // 2, k + k // 2 + n) for k, n in zip(taps, size, strict=True))
            expected[b, c] = full[rows, columns] + skip[c].item() * x[b, c].numpy()
    np.testing.assert_allclose(conv2d(x, kernel, skip, padding=padding), expected, rtol=0, atol=1e-13)


def test_2d_matches_torch_with_flipped_kernel():
    x, kernel = draw(2, 3, 6, 9), draw(3, 5, 7)
    expected = F.conv2d(x, kernel.flip(-2, -1).unsqueeze(1), padding=(2, 3), groups=3)
    torch.testing.assert_close(conv2d(x, kernel), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype_and_sums_in_float32(dtype):
    # 4096 ones sum to 4096 only if the sum is not kept in half precision, where 2048 + 1 is 2048.
    y = conv1d(torch.ones(1, 1, 4096, dtype=dtype), torch.ones(1, 4096, dtype=dtype), causal=True)
    assert y.dtype == dtype
    assert y[0, 0, -1] == 4096


def test_gradcheck():
    x, kernel, skip = (t.requires_grad_() for t in (draw(1, 2, 3, 4), draw(2, 5, 3), draw(2)))
    for padding in ("linear", "circular"):
        assert torch.autograd.gradcheck(partial(conv2d, padding=padding), (x, kernel, skip))
