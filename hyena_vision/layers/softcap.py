"""A bound on how large tokens become, without weights."""

import torch
from torch import Tensor, nn


class Softcap(nn.Module):
    r"""Tokens whose root mean square over channels stays below a cap.

    $$y_c = x_c \left(1 + \frac{1}{C\,s^2} \sum_{k=1}^{C} x_k^2\right)^{-1/2}$$

    A token far below the cap s is left as it is, to a relative 1/2 (rms / s)². One far above it becomes one of root
    mean square s, as by RMSNorm. RMSNorm itself makes all tokens equally large, which loses what their size says.

    Args:
        cap: s, above 0.

    Raises:
        ValueError: `cap` is not above 0.

    Shape:
        (..., C) -> (..., C), the dtype of the input; the mean is taken in float32, or in float64 for float64.

    Cost:
        Two passes over the tokens; training keeps them once more.

    Source:
        RMSNorm (arXiv:1910.07467) with eps = s², no weights, and scaled by s.

    Example:
        >>> Softcap(10.0)(torch.tensor([[0.1, -0.1], [3e4, -3e4]]))
        tensor([[  0.1000,  -0.1000],
                [ 10.0000, -10.0000]])
    """

    def __init__(self, cap: float) -> None:
        super().__init__()
        if not cap > 0:
            raise ValueError(f"cap must be above 0, got {cap}")
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        """Bound tokens (..., C)."""
        half = x.dtype in (torch.float16, torch.bfloat16)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32 if half else None)
        # 1 + mean(x^2) / s^2, in one call: there are few numbers, and each call costs more than they do
        squared = torch.addcmul(size.new_ones(()), size, size, value=1 / (x.shape[-1] * self.cap**2))
        return x * squared.rsqrt().to(x.dtype)

    def extra_repr(self) -> str:
        """Show the cap."""
        return f"cap={self.cap}"
