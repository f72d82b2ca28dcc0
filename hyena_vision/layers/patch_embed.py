"""timm's patch embedding for tokens that keep the shape of the image."""

from timm.layers import PatchEmbed
from timm.models import register_notrace_function
from torch import Tensor


@register_notrace_function
def check_divisible(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Give back images (B, C, H, W) if the patch size divides them; fx takes the call as one node."""
    if x.shape[-2] % patch_size[0] or x.shape[-1] % patch_size[1]:
        raise ValueError(
            f"height and width of the input must be multiples of the patch size {tuple(patch_size)}, "
            f"got {tuple(x.shape[-2:])}; dynamic_img_pad=True pads them"
        )
    return x


class DynamicPatchEmbed(PatchEmbed):
    """timm's `PatchEmbed` to NHWC, with a check of free sizes that leaves them free under torch.compile.

    The original's messages name the size, for which a graph is bound to that size and compiled again for every other.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_chans, H, W) as tokens (B, H', W', C), contiguous."""
        if self.strict_img_size or self.dynamic_img_pad:
            return super().forward(x).contiguous()
        # Else all blocks would inherit the memory order of the convolution, and each norm would copy its input.
        return self.norm(self.proj(check_divisible(x, self.patch_size)).permute(0, 2, 3, 1).contiguous())
