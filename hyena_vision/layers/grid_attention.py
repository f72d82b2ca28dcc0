"""timm's attention on tokens that keep the shape of the image, for hybrids."""

from timm.layers import Attention, trunc_normal_
from torch import Tensor, nn


class GridAttention(Attention):
    """timm's `Attention`, with its arguments, on an image of tokens; weights begin as in timm's ViT.

    Shape:
        (B, H, W, C) -> (B, H, W, C), any H and W.

    Cost:
        O(B H W C (C + H W)) time.

    Example:
        >>> GridAttention(16, num_heads=2)(torch.ones(1, 4, 6, 16)).shape
        torch.Size([1, 4, 6, 16])
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections as timm's ViT does."""
        for linear in (self.qkv, self.proj):
            trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # blocks of these models hand no masks on
        """Mix tokens (B, H, W, C)."""
        return super().forward(x.flatten(1, 2)).view(x.shape)
