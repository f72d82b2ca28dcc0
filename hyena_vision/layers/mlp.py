"""MLPs of the blocks: timm's, with fewer passes over memory on the CPU where nobody could tell."""

import torch
from timm.layers import Mlp
from timm.models.metaformer import StarReLU
from torch import Tensor, nn

from hyena_vision.layers.untouched import fast_weights

# Tokens for which an MLP is computed at a time where no gradient is wanted, on the CPU. All its hidden activations at
# once, four times the size of the tokens, are more than the allocator keeps: each call would begin with fresh pages.
PART_TOKENS = 2048


class LeanStarReLU(StarReLU):
    """timm's `StarReLU`, scale * relu(x)^2 + bias; on the CPU, without gradients, in two passes over memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate x of any shape."""
        if torch.is_grad_enabled() or fast_weights(self, _STAR_TYPES, x) is None or not x.is_cpu:
            return super().forward(x)
        if any(t.dtype != x.dtype or t.device != x.device for t in (self.scale, self.bias)):
            return super().forward(x)
        y = torch.relu(x)
        return torch.addcmul(self.bias, y, y, value=self.scale.item(), out=y)


_STAR_TYPES = (LeanStarReLU, nn.ReLU)


class PartMlp(Mlp):
    """timm's `Mlp`; on the CPU, without gradients, it goes through `PART_TOKENS` tokens at a time if it is untouched.

    Shape:
        (..., C) -> (..., C)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of tokens (..., C)."""
        large = type(x) is Tensor and x.is_cpu and x.numel() > PART_TOKENS * x.shape[-1]
        if torch.is_grad_enabled() or not large or fast_weights(self, _TYPES, x) is None:
            return super().forward(x)
        if any(drop.training and drop.p for drop in (self.drop1, self.drop2)):
            return super().forward(x)  # parts would draw other random numbers
        tokens = x.reshape(-1, x.shape[-1])
        parts = tokens.chunk(-(-len(tokens) // PART_TOKENS))
        return torch.cat([super(PartMlp, self).forward(part) for part in parts]).view(*x.shape[:-1], -1)


# Layers that treat each token alone, and the MLP itself
_TYPES = (PartMlp, nn.Linear, nn.Dropout, nn.Identity, nn.GELU, nn.ReLU, nn.SiLU, StarReLU, LeanStarReLU)
