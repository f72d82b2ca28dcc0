"""Small mixers that several test files share."""

from functools import partial

import torch

from hyena_vision.layers import Hyena1d, Hyena2d

small = dict(filter_dim=8, base_grid=4, dtype=torch.float64)
MIXERS = {
    "1d": partial(Hyena1d, dim=6, **small),
    "1d-causal": partial(Hyena1d, dim=6, causal=True, **small),
    "2d": partial(Hyena2d, dim=6, **small),
    "2d-circular": partial(Hyena2d, dim=6, padding="circular", **small),
}
