r"""Implicit filters: long kernels that a small network computes from position.

$$k_c(u) = g \cdot \mathrm{MLP}(\phi(u))_c \cdot (w_c(u) + s_c)$$

u is the displacement between two tokens on each axis, $\phi$ its position features, the MLP has sine activations
$\sin(\omega \odot (W z + b))$ with learnt $\omega$, and w is a window that falls off with distance. The filter is a
function and not a table, so it is evaluated on whatever grid is at hand, with the same parameters.

Coordinates. With `coords="relative"` u is measured in image extents (a displacement of H tokens in an image of H rows
is 1) and the gain g is $\prod_a n^0_a / n_a$ for a grid n and the base grid $n^0$: the sum over tokens then
approximates one and the same integral over the image at every resolution. With `coords="absolute"` u is measured in
base grids of a fixed number of tokens and g = 1: a filter means the same number of tokens at every resolution, and
larger images continue it. Both are equal on the base grid.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_vision.layers.untouched import fast_weights, saves_plainly
from hyena_vision.ops.implicit_filter import hidden_layers, implicit_kernel, window
from hyena_vision.ops.tensors import without_autocast

FEATURES = ("fourier", "sinusoid", "coords")
WINDOWS = ("exponential", "radial", "gaussian", "none")
COORDS = ("relative", "absolute")


class FilterLinear(nn.Linear):
    """`nn.Linear` that computes in the dtype of its input: filters run in float32 whatever their weights are kept in.

    Shape:
        (..., in_features) -> (..., out_features)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x, of any floating dtype."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Sine(nn.Module):
    """Sine activation with a learnt frequency per channel, sin(omega * x).

    Args:
        dim: Channels.
        device: Device of the frequencies.
        dtype: Their dtype.

    Shape:
        (..., dim) -> (..., dim)
    """

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Begin at 1; a filter gives its first layer another frequency."""
        nn.init.ones_(self.omega)

    def forward(self, x: Tensor) -> Tensor:
        """Activate x in its own dtype."""
        return torch.sin(self.omega.to(x.dtype) * x)


def rename_omega(key: str) -> str:
    """The name of a filter's weight in a state dict of before frequencies were modules: `omega.0` to `sine.0.omega`."""
    return re.sub(r"(^|\.)omega\.(\d+)$", r"\1sine.\2.omega", key)


def _rename_omega(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}omega.")]:
        state_dict[prefix + rename_omega(key.removeprefix(prefix))] = state_dict.pop(key)


class ImplicitFilter(nn.Module):
    r"""Base of `ImplicitFilter1d` and `ImplicitFilter2d`, which differ in the number of axes and in defaults.

    Args:
        dim: Channels of the signal, C.
        num_filters: Kernels per channel, >= 1; they share the MLP up to its last layer.
        causal: Whether the kernel covers displacements 0..n-1 instead of -(n-1)..n-1 on each axis.
        filter_dim: Width of the MLP, >= 1.
        filter_emb_dim: Number of position features: rank * (1 + 2 * bands) for "fourier", a multiple of 2 * rank for
            "sinusoid", rank for "coords". None picks a usual number.
        num_inner_layers: Hidden layers of the MLP after the first one, >= 0.
        omega_0: Initial frequency of the first layer's sine; None is 1, and 10 for "coords". Other layers begin at 1.
        features: "fourier": u and `bands` cosines and sines of it per axis, of 0 to bands - 1 periods over the kernel
            (Hyena). "sinusoid": sines and cosines of the position in base-grid tokens, wavelengths 2 pi to 20000 pi
            (HyenaPixel). "coords": u itself (SIREN, as in nvSubquadratic).
        learn_features: Whether the features are a learnt table on the base grid (it starts at the values above). With
            relative coordinates other grids interpolate it: linearly at the exact positions in 1D, and in 2D as
            HyenaPixel does, bicubically and antialiased from one kernel's extent to the other's. With absolute
            coordinates they take its middle (its beginning if causal).
        table_size: Tokens per axis whose displacements a learnt table covers on the base grid; None is `base_size`. A
            kernel ends where its table does.
        window: "exponential": $\exp(-\delta_c \sum_a |u_a|)$. "radial": $\exp(-\delta_c \lVert u \rVert_2)$.
            "gaussian": $\exp(-\sum_a u_a^2 / 2 \sigma_{c,a}^2)$. "none": 1. None is exponential in 1D, radial in 2D.
        learn_window: Whether $\delta$ and the shift s, or $\log \sigma$, are parameters. None does as the papers do:
            fixed for "exponential", learnt for "radial" and "gaussian".
        window_shift: Initial shift s of the exponential and radial windows, a constant unless they are learnt.
        slow_decay: Distance in units of u at which the exponential of the first channel reaches 0.01. Hyena begins at
            1.5, and HyenaPixel at 3 (1.5 kernel extents); with wider windows what lies far away is learnt better.
        fast_decay: The same for the last channel; those between are spaced linearly in $\delta$. Hyena begins at 0.3,
            and HyenaPixel at 0.6.
        coords: "relative" or "absolute", see the module's text.
        base_size: Tokens per axis (one number, or one per axis) of the base grid, usually that of the training
            images. It sets no shape unless `learn_features`, and like all settings it is not in the state dict: weights
            mean what they meant only with the base size that they were trained with.
        cond_dim: Width of a per-sample vector that scales and shifts the hidden activations (FiLM), 0 for none.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: An argument is out of its range; the message has both.

    Example:
        >>> issubclass(ImplicitFilter2d, ImplicitFilter)
        True
    """

    rank: int  # number of axes of the signal
    default_window: str

    def __init__(
        self,
        dim: int,
        *,
        num_filters: int = 1,
        causal: bool = False,
        filter_dim: int = 64,
        filter_emb_dim: int | None = None,
        num_inner_layers: int = 2,
        omega_0: float | None = None,
        features: str = "fourier",
        learn_features: bool = False,
        table_size: int | tuple[int, ...] | None = None,
        window: str | None = None,
        learn_window: bool | None = None,
        window_shift: float = 0.0,
        slow_decay: float = 10.0,
        fast_decay: float = 2.0,
        coords: str = "relative",
        base_size: int | tuple[int, ...] = 14,
        cond_dim: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        window = self.default_window if window is None else window
        for name, value, known in (("features", features, FEATURES), ("window", window, WINDOWS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if coords not in COORDS:
            raise ValueError(f"coords must be one of {COORDS}, got {coords!r}")
        at_least_1 = dict(dim=dim, num_filters=num_filters, filter_dim=filter_dim)
        at_least_0 = dict(cond_dim=cond_dim, num_inner_layers=num_inner_layers)
        for least, numbers in ((1, at_least_1), (0, at_least_0)):
            for name, number in numbers.items():
                if number < least:
                    raise ValueError(f"{name} must be at least {least}, got {number}")
        if min(slow_decay, fast_decay) <= 0:
            raise ValueError(f"slow_decay and fast_decay must be positive, got {slow_decay} and {fast_decay}")
        dd = {"device": device, "dtype": dtype}
        self.dim = dim
        self.num_filters = num_filters
        self.causal = causal
        self.features = features
        self.window = window
        self.coords = coords
        self.base_size = self._to_size(base_size)
        if table_size is not None and not learn_features:
            raise ValueError(f"table_size is for learn_features=True, got {table_size} without")
        self.table_size = self.base_size if table_size is None else self._to_size(table_size)
        self.slow_decay = slow_decay
        self.fast_decay = fast_decay
        self.window_shift = window_shift
        learn_window = window in ("radial", "gaussian") if learn_window is None else learn_window
        self.filter_emb_dim = self._check_emb_dim(filter_emb_dim)
        self.omega_0 = omega_0 if omega_0 is not None else (10.0 if features == "coords" else 1.0)

        channels = num_filters * dim
        widths = [self.filter_emb_dim] + [filter_dim] * (num_inner_layers + 1)
        self.hidden = nn.ModuleList([FilterLinear(i, o, **dd) for i, o in pairwise(widths)])
        self.sine = nn.ModuleList([Sine(filter_dim, **dd) for _ in self.hidden])
        self.out = FilterLinear(filter_dim, channels, bias=False, **dd)
        self.cond_dim = cond_dim
        self.film = FilterLinear(cond_dim, 2 * filter_dim * len(self.hidden), **dd) if cond_dim else None
        shape = (self.filter_emb_dim, *self._extents(self.table_size))
        self.z = nn.Parameter(torch.empty(shape, **dd)) if learn_features else None

        def window_tensor(shape: tuple[int, ...]) -> Tensor:
            tensor = torch.empty(shape, **dd)
            return nn.Parameter(tensor) if learn_window else nn.Buffer(tensor)

        exponential = window in ("exponential", "radial")
        self.decay = window_tensor((channels,)) if exponential else None
        self.log_sigma = window_tensor((self.rank, channels)) if window == "gaussian" else None
        self.shift = nn.Parameter(torch.empty(channels, **dd)) if exponential and learn_window else None
        self.register_load_state_dict_pre_hook(_rename_omega)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Settings that the sub-modules do not show."""
        return (
            f"dim={self.dim}, num_filters={self.num_filters}, causal={self.causal}, features={self.features!r}, "
            f"window={self.window!r}, coords={self.coords!r}, base_size={self.base_size}"
        )

    @property
    def settings(self) -> tuple:
        """All that a kernel depends on besides the weights and the size."""
        return (
            self.causal,
            self.features,
            self.window,
            self.coords,
            self.base_size,
            self.table_size,
            self.window_shift,
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters; each kernel then has unit energy (sum of squares) on the base grid, on average.

        Hidden layers follow SIREN (Sitzmann et al. 2020, arXiv:2006.09661): activations keep their spread with depth.
        """
        for index, (linear, sine) in enumerate(self._network()):
            raw_coordinates = index == 0 and self.features == "coords"
            bound = 2 * math.pi / self.rank if raw_coordinates else math.sqrt(6 / linear.in_features)
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.uniform_(linear.bias, -1 / math.sqrt(linear.in_features), 1 / math.sqrt(linear.in_features))
            nn.init.constant_(sine.omega, self.omega_0 if index == 0 else 1.0)
        if self.film is not None:
            # Not zero: FiLM that begins as the identity was seen to stay there (nvSubquadratic, with LAMB).
            nn.init.trunc_normal_(self.film.weight, std=0.02)
            nn.init.zeros_(self.film.bias)

        def ramp(like: Tensor) -> Tensor:
            return torch.linspace(0, 1, self.dim, dtype=torch.float32, device=like.device).repeat(self.num_filters)

        if self.decay is not None:
            slow, fast = -math.log(0.01) / self.slow_decay, -math.log(0.01) / self.fast_decay
            self.decay.copy_(slow + (fast - slow) * ramp(self.decay))
        if self.log_sigma is not None:
            # The narrowest Gaussian falls to 0.1 within one token of the base grid, the widest at the image's extent.
            per_unit = 1 / math.sqrt(2 * math.log(10))
            for sigma, size in zip(self.log_sigma, self.base_size, strict=True):
                sigma.copy_(math.log(per_unit) + math.log(size) * (ramp(sigma) - 1))
        if self.shift is not None:
            nn.init.constant_(self.shift, self.window_shift)
        if self.z is not None:
            axes = self._axes(self.table_size, self.base_size, self.z.device)
            self.z.copy_(self._position_features(axes).movedim(-1, 0))
        nn.init.normal_(self.out.weight, std=math.sqrt(2 / self.out.in_features))
        # Where the window is: `accelerate` may have put parameters elsewhere than buffers
        device = next((t.device for t in (self.decay, self.log_sigma) if t is not None), self.out.weight.device)
        values = self._window(self._distances(self.base_size, self.base_size, device), self._dtype)
        energy = torch.ones_like(self.out.weight[:, 0]) if values is None else values.square().sum(0)
        self.out.weight.div_(energy.sqrt()[:, None].clamp_min(1e-12))

    def forward(
        self, size: int | tuple[int, ...], cond: Tensor | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Evaluate the kernels for a grid of tokens.

        The computation runs in float32 at least, under autocast too: in half precision neighbouring positions merge.

        Args:
            size: Tokens per axis, (H, W) or (L,); one number stands for all axes.
            cond: (B, cond_dim), a vector per sample, if and only if `cond_dim` was set.
            device: Where to compute, None for where the weights are.

        Returns:
            (num_filters, C, *K), or (num_filters, B, C, *K) with `cond`; channels are neighbours in memory. K is n per
            axis if causal, else 2n - 1.

        Raises:
            ValueError: `size` has the wrong number of axes, or `cond` does not fit `cond_dim`.
        """
        size = self._to_size(size)
        self._check_cond(cond)
        device = self._device if device is None else device
        with without_autocast(device.type):
            features, distances, extents = self._positions(size, device)
            if self.fast_weights() is not None and (not torch.is_grad_enabled() or saves_plainly()):
                kernel = self._kernel(features, distances, self._layers(), size, slice(None))
            else:
                kernel = self._plain(features, distances, size, cond)
        kernel = kernel.unflatten(-1, (self.num_filters, self.dim)).unflatten(-3, extents)
        # (*K, filters, C) to (filters, C, *K)
        return kernel.movedim((-2, -1), (0, -1 - self.rank))

    def fast_weights(self, *signals: Tensor | None) -> list[Tensor] | None:
        """The weights behind kernels for all samples alike, where nobody would miss a call; as the function's."""
        weights = fast_weights(self, FILTER_TYPES, *signals)
        return weights if weights is not None and self.film is None and self.out.bias is None else None

    def _plain(self, features: Tensor, distances: Tensor, size: tuple[int, ...], cond: Tensor | None) -> Tensor:
        """Kernels (P, num_filters * C) or (B, P, num_filters * C), by calls of the layers."""
        dtype, hidden, modulation = features.dtype, features, None
        if cond is not None and self.film is not None:
            modulation = self.film(cond.to(dtype)).unflatten(-1, (len(self.hidden), 2, 1, -1))
        for index, (linear, sine) in enumerate(self._network()):
            hidden = sine(linear(hidden))
            if modulation is not None:
                hidden = (1 + modulation[:, index, 0]) * hidden + modulation[:, index, 1]
        kernel, factor = self.out(hidden) * self._gain(size), self._window(distances, dtype)
        return kernel if factor is None else kernel * factor

    @torch.no_grad()
    def channels_in_turn(
        self, size: int | tuple[int, ...], groups: Sequence[slice], index: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """Evaluate one kernel per channel for some channels at a time, so that not all need be in memory.

        For filters that `fast_weights` finds untouched, without `cond_dim`, and without gradients.

        Args:
            size: As for `forward`.
            groups: Of channels.
            index: Of the filter, 0 to num_filters - 1.

        Yields:
            Each group, and its kernels (c, *K).
        """
        size = self._to_size(size)
        with without_autocast(self._device.type):
            features, distances, extents = self._positions(size, self._device)
            hidden = hidden_layers(features, self._layers())
        for group in groups:
            rows = slice(index * self.dim + group.start, index * self.dim + group.stop)
            with without_autocast(self._device.type):
                kernel = self._kernel(hidden, distances, [], size, rows)
            yield group, kernel.unflatten(0, extents).movedim(-1, 0)

    def _network(self) -> list[tuple[FilterLinear, Sine]]:
        """The hidden layers; tools may have put others in their place."""
        return list(zip(cast(list[FilterLinear], self.hidden), cast(list[Sine], self.sine), strict=True))

    def _layers(self) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """What `implicit_kernel` calls so."""
        dtype = self._dtype
        return [
            (linear.weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype), sine.omega.to(dtype))
            for linear, sine in self._network()
        ]

    def _kernel(
        self,
        features: Tensor,
        distances: Tensor,
        layers: list[tuple[Tensor, Tensor | None, Tensor]],
        size: tuple[int, ...],
        channels: slice,
    ) -> Tensor:
        """`implicit_kernel` of some of num_filters * C channels."""
        dtype, gain = self._dtype, self._gain(size)
        out = self.out.weight[channels].to(dtype)
        out = out if gain == 1 else out * gain
        decay, log_sigma, shift = (None if t is None else t[..., channels] for t in self._window_weights(dtype))
        return implicit_kernel(features, distances, layers, out, decay=decay, log_sigma=log_sigma, shift=shift)

    def _gain(self, size: tuple[int, ...]) -> float:
        if self.coords == "absolute":
            return 1.0
        return math.prod([base / n for base, n in zip(self.base_size, size, strict=True)])

    def _window_weights(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Arguments `decay`, `log_sigma` and `shift` of `implicit_kernel`."""
        given: Tensor | None = self.shift
        if self.decay is not None and given is None and self.window_shift:
            given = torch.full_like(self.decay, self.window_shift)
        decay, log_sigma, shift = (None if t is None else t.to(dtype) for t in (self.decay, self.log_sigma, given))
        return decay, log_sigma, shift

    def _window(self, distances: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Window plus shift, (P, num_filters * C), None for none."""
        return window(distances, *self._window_weights(dtype))

    def set_table_size(self, table_size: int | tuple[int, ...]) -> None:
        """Make room for a learnt table of another size; the parameter stays, its values are left to be loaded.

        Args:
            table_size: As at construction.

        Raises:
            ValueError: The filter has no learnt table, or the number of axes is wrong.
        """
        if self.z is None:
            raise ValueError(f"table_size is for learn_features=True, got {table_size} without")
        self.table_size = self._to_size(table_size)
        self.z.grad = None
        self.z.data = self.z.data.new_empty((self.filter_emb_dim, *self._extents(self.table_size)))

    def extents(self, size: int | tuple[int, ...]) -> tuple[int, ...]:
        """Taps of a kernel on each axis."""
        return self._extents(self._covered(self._to_size(size)))

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        """Of the computation."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def _to_size(self, size: int | tuple[int, ...]) -> tuple[int, ...]:
        size = tuple(size) if isinstance(size, (tuple, list, torch.Size)) else (size,) * self.rank
        if len(size) != self.rank:
            raise ValueError(f"size must have {self.rank} axes, got {size}")
        if min(size) < 1:
            raise ValueError(f"every axis must have at least 1 token, got {size}")
        return size

    def _covered(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Grid whose displacements have taps: all of it, or what a learnt table knows."""
        if self.z is None:
            return size
        return tuple(min(n, table) for n, table in zip(size, self._table_grid(size), strict=True))

    def _table_grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Grid whose displacements the learnt table covers when the image has `size` tokens."""
        if self.coords == "absolute":
            return self.table_size
        if self.table_size == self.base_size:
            return size
        sizes = zip(self.table_size, size, self.base_size, strict=True)
        return tuple(max(1, (2 * table * n + base) // (2 * base)) for table, n, base in sizes)

    def _extents(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return size if self.causal else tuple(2 * n - 1 for n in size)

    def _check_emb_dim(self, emb_dim: int | None) -> int:
        usual = {"fourier": 33 if self.rank == 1 else 34, "sinusoid": 32, "coords": self.rank}
        emb_dim = usual[self.features] if emb_dim is None else emb_dim
        fits, rule = {
            "fourier": (emb_dim % (2 * self.rank) == self.rank, f"{self.rank} * (1 + 2 * bands)"),
            "sinusoid": (emb_dim % (2 * self.rank) == 0, f"a multiple of {2 * self.rank}"),
            "coords": (emb_dim == self.rank, f"{self.rank}"),
        }[self.features]
        if not fits or emb_dim < 1:
            raise ValueError(f"filter_emb_dim of {self.features!r} features must be {rule}, got {emb_dim}")
        return emb_dim

    def _check_cond(self, cond: Tensor | None) -> None:
        if (cond is None) != (self.cond_dim == 0):
            given = "None" if cond is None else f"a tensor of shape {tuple(cond.shape)}"
            raise ValueError(
                f"cond must be given if and only if cond_dim is set: cond is {given}, cond_dim {self.cond_dim}"
            )
        if cond is not None and (cond.ndim != 2 or cond.shape[1] != self.cond_dim):
            raise ValueError(f"cond must have shape (B, {self.cond_dim}), got {tuple(cond.shape)}")

    def _positions(self, size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Features (P, filter_emb_dim) and distances (P, D) of a kernel's taps, and its extents."""
        covered = self._covered(size)
        if self.z is None:
            features = self._position_features(self._axes(covered, size, device)).flatten(0, -2)
        else:
            features = self._table_features(size)
        return features, self._distances(covered, size, device), self._extents(covered)

    def _axes(self, covered: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> list[Tensor]:
        """Displacements within a covered grid along each axis: in extents of the image, or in base grids."""
        scales = size if self.coords == "relative" else self.base_size
        return [
            torch.arange(0 if self.causal else 1 - n, n, dtype=self._dtype, device=device) / scale
            for n, scale in zip(covered, scales, strict=True)
        ]

    def _distances(self, covered: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Tensor:
        """What the window falls off with, (P, 1), or (P, rank) for "gaussian"."""
        axes = self._axes(covered, size, device)
        if self.window == "exponential":
            lengths = [_along(axis.abs()[:, None], a, self.rank) for a, axis in enumerate(axes)]
            return reduce(torch.add, lengths).view(-1, 1)
        squares = [_along(axis.square()[:, None], a, self.rank) for a, axis in enumerate(axes)]
        if self.window == "gaussian":
            return torch.cat(torch.broadcast_tensors(*squares), -1).flatten(0, -2)
        return reduce(torch.add, squares).sqrt().view(-1, 1)

    def _axis_features(self, axes: list[Tensor]) -> list[Tensor]:
        """Features of the displacements along each axis, (n, filter_emb_dim / rank)."""
        if self.features == "coords":
            return [axis[:, None] for axis in axes]
        if self.features == "fourier":
            bands = (self.filter_emb_dim // self.rank - 1) // 2
            frequency = torch.linspace(
                1e-4, max(bands - 1, 1e-4), bands, dtype=torch.float32, device=axes[0].device
            ).to(axes[0].dtype)
            # Once round over the kernel, which is as long as the image if causal and twice as long if centred.
            angles = [(2 if self.causal else 1) * math.pi * axis[:, None] * frequency for axis in axes]
            return [
                torch.cat([axis[:, None], angle.cos(), -angle.sin()], 1)
                for axis, angle in zip(axes, angles, strict=True)
            ]
        per_axis = self.filter_emb_dim // self.rank
        exponent = torch.arange(0, per_axis, 2, dtype=axes[0].dtype, device=axes[0].device) / per_axis
        # Positions from the first tap on; a table may reach further than the base grid, or less far
        angles = [
            (axis * base + (0 if self.causal else table - 1))[:, None] * 10000.0**-exponent
            for axis, base, table in zip(axes, self.base_size, self.table_size, strict=True)
        ]
        return [torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1) for angle in angles]

    def _in_order(self, of_axes: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to each axis, in the order of the features: columns before rows for "sinusoid" (HyenaPixel)."""
        return list(of_axes[::-1] if self.features == "sinusoid" else of_axes)

    def _position_features(self, axes: list[Tensor]) -> Tensor:
        """Features of all taps, (*K, filter_emb_dim)."""
        grids = [_along(part, axis, self.rank) for axis, part in enumerate(self._axis_features(axes))]
        return torch.cat(self._in_order(torch.broadcast_tensors(*grids)), -1)

    def _table_features(self, size: tuple[int, ...]) -> Tensor:
        """Learnt features (P, filter_emb_dim) of a kernel's taps."""
        assert self.z is not None
        table = self.z.to(self._dtype)
        if self.rank == 1 and self.coords == "relative" and size != self.base_size:
            return self._sample_table(table, self._axes(self._covered(size), size, table.device)[0]).T
        given = self._extents(self._table_grid(size))
        if given != tuple(table.shape[1:]):
            table = F.interpolate(table[None], size=given, mode="bicubic", antialias=True)[0]
        for axis, (extent, whole) in enumerate(zip(self.extents(size), given, strict=True), start=1):
            table = table.narrow(axis, 0 if self.causal else (whole - extent) // 2, extent)
        return table.flatten(1).T

    def _sample_table(self, table: Tensor, coordinates: Tensor) -> Tensor:
        """Features (filter_emb_dim, P) between those of a table (filter_emb_dim, K), linearly; its ends continue."""
        length = table.shape[1]
        position = coordinates * self.base_size[0] + (0 if self.causal else self.table_size[0] - 1)
        position = position.clamp(0, length - 1)
        below = position.floor().long().clamp_max(max(length - 2, 0))
        above = (below + 1).clamp_max(length - 1)
        return torch.lerp(table[:, below], table[:, above], position - below)


def _along(of_axis: Tensor, axis: int, rank: int) -> Tensor:
    """(n, width) as (1, ..., n, ..., 1, width), with n on one of the axes."""
    return of_axis.view(*[-1 if other == axis else 1 for other in range(rank)], of_axis.shape[-1])


class ImplicitFilter1d(ImplicitFilter):
    """Implicit filter of a sequence; by default Hyena's: 33 Fourier features, two inner layers, fixed exponential.

    Arguments are those of `ImplicitFilter`.

    Source:
        Hyena (arXiv:2302.10866), section 3.3 and appendix D.3; two inner layers are its authors' correction to the
        released ImageNet recipe.

    Example:
        >>> ImplicitFilter1d(4)(6).shape  # a kernel for each channel
        torch.Size([1, 4, 11])
    """

    rank = 1
    default_window = "exponential"


class ImplicitFilter2d(ImplicitFilter):
    """Implicit filter of an image; by default a learnt radial window (HyenaPixel) on Fourier features of each axis.

    Arguments are those of `ImplicitFilter`.

    Source:
        HyenaPixel (arXiv:2402.19305), section 3.2.

    Example:
        >>> ImplicitFilter2d(4)((6, 5)).shape  # a kernel for each channel
        torch.Size([1, 4, 11, 9])
    """

    rank = 2
    default_window = "radial"


# Modules whose arithmetic `implicit_kernel` knows
FILTER_TYPES = (ImplicitFilter1d, ImplicitFilter2d, FilterLinear, Sine)
