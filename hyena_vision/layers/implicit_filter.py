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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = ("fourier", "sinusoid", "coords")
WINDOWS = ("exponential", "radial", "gaussian", "none")
COORDS = ("relative", "absolute")

# Taps whose hidden layers are computed at a time where no gradient is wanted: they should stay in the cache.
_POSITIONS = 4096


class ImplicitFilter(nn.Module):
    r"""Base of `ImplicitFilter1d` and `ImplicitFilter2d`, which differ in the number of axes and in defaults.

    Args:
        rank: Number of axes of the signal.
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
            "gaussian": $\exp(-\sum_a u_a^2 / 2 \sigma_{c,a}^2)$. "none": 1.
        learn_window: Whether $\delta$ and the shift s, or $\log \sigma$, are parameters. None does as the papers do:
            fixed for "exponential", learnt for "radial" and "gaussian".
        window_shift: Initial shift s of the exponential and radial windows, a constant unless they are learnt.
        slow_decay: Distance in units of u at which the exponential of the first channel reaches 0.01.
        fast_decay: The same for the last channel; those between are spaced linearly in $\delta$.
        coords: "relative" or "absolute", see the module's text.
        base_size: Tokens per axis (one number, or one per axis) of the base grid, usually that of the training
            images. It sets no shape unless `learn_features`, and like all settings it is not in the state dict: weights
            mean what they meant only with the base size that they were trained with.
        cond_dim: Width of a per-sample vector that scales and shifts the hidden activations (FiLM), 0 for none.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: An argument is out of its range; the message has both.
    """

    def __init__(
        self,
        rank: int,
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
        window: str = "exponential",
        learn_window: bool | None = None,
        window_shift: float = 0.0,
        slow_decay: float = 1.5,
        fast_decay: float = 0.3,
        coords: str = "relative",
        base_size: int | tuple[int, ...] = 14,
        cond_dim: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", "device", "dtype")}
        super().__init__()
        self.arguments = arguments
        for name, value, known in (("features", features, FEATURES), ("window", window, WINDOWS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if coords not in COORDS:
            raise ValueError(f"coords must be one of {COORDS}, got {coords!r}")
        at_least = dict(dim=(dim, 1), num_filters=(num_filters, 1), filter_dim=(filter_dim, 1), cond_dim=(cond_dim, 0))
        at_least["num_inner_layers"] = (num_inner_layers, 0)
        for name, (value, least) in at_least.items():
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if min(slow_decay, fast_decay) <= 0:
            raise ValueError(f"slow_decay and fast_decay must be positive, got {slow_decay} and {fast_decay}")
        dd = {"device": device, "dtype": dtype}
        self.rank = rank
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
        self.hidden = nn.ModuleList([nn.Linear(i, o, **dd) for i, o in pairwise(widths)])
        self.omega = nn.ParameterList([nn.Parameter(torch.empty(filter_dim, **dd)) for _ in self.hidden])
        self.out = nn.Linear(filter_dim, channels, bias=False, **dd)
        self.film = nn.Linear(cond_dim, 2 * filter_dim * len(self.hidden), **dd) if cond_dim else None
        shape = (self.filter_emb_dim, *self._extents(self.table_size))
        self.z = nn.Parameter(torch.empty(shape, **dd)) if learn_features else None

        def window_tensor(shape: tuple[int, ...]) -> Tensor:
            tensor = torch.empty(shape, **dd)
            return nn.Parameter(tensor) if learn_window else nn.Buffer(tensor)

        exponential = window in ("exponential", "radial")
        self.decay = window_tensor((channels,)) if exponential else None
        self.log_sigma = window_tensor((rank, channels)) if window == "gaussian" else None
        self.shift = nn.Parameter(torch.empty(channels, **dd)) if exponential and learn_window else None
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
        for index, (linear, omega) in enumerate(zip(self.hidden, self.omega, strict=True)):
            raw_coordinates = index == 0 and self.features == "coords"
            bound = 2 * math.pi / self.rank if raw_coordinates else math.sqrt(6 / linear.in_features)
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.uniform_(linear.bias, -1 / math.sqrt(linear.in_features), 1 / math.sqrt(linear.in_features))
            nn.init.constant_(omega, self.omega_0 if index == 0 else 1.0)
        if self.film is not None:
            # Not zero: FiLM that begins as the identity was seen to stay there (nvSubquadratic, with LAMB).
            nn.init.trunc_normal_(self.film.weight, std=0.02)
            nn.init.zeros_(self.film.bias)
        ramp = torch.linspace(0, 1, self.dim, device=self.out.weight.device).repeat(self.num_filters)
        if self.decay is not None:
            slow, fast = -math.log(0.01) / self.slow_decay, -math.log(0.01) / self.fast_decay
            self.decay.copy_(slow + (fast - slow) * ramp)
        if self.log_sigma is not None:
            # The narrowest Gaussian falls to 0.1 within one token of the base grid, the widest at the image's extent.
            per_unit = 1 / math.sqrt(2 * math.log(10))
            for sigma, size in zip(self.log_sigma, self.base_size, strict=True):
                sigma.copy_(math.log(per_unit) + math.log(size) * (ramp - 1))
        if self.shift is not None:
            nn.init.constant_(self.shift, self.window_shift)
        coordinates = self._coordinates(self.base_size, self.base_size)
        if self.z is not None:
            self.z.copy_(self._position_features(self._axes(self.table_size, self.base_size)).movedim(-1, 0))
        energy = self._window(self._distances(coordinates)).square().sum(-1)
        nn.init.normal_(self.out.weight, std=math.sqrt(2 / self.out.in_features))
        self.out.weight.div_(energy.sqrt()[:, None].clamp_min(1e-12))

    def forward(self, size: int | tuple[int, ...], cond: Tensor | None = None) -> Tensor:
        """Evaluate the kernels for a grid of tokens.

        The computation runs in float32 at least, under autocast too: in half precision neighbouring positions merge.

        Args:
            size: Tokens per axis, (H, W) or (L,); one number stands for all axes.
            cond: (B, cond_dim), a vector per sample, if and only if `cond_dim` was set.

        Returns:
            (num_filters, C, *K), or (num_filters, B, C, *K) with `cond`. K is n per axis if causal, else 2n - 1.

        Raises:
            ValueError: `size` has the wrong number of axes, or `cond` does not fit `cond_dim`.
        """
        size = self._to_size(size)
        self._check_cond(cond)
        with self._without_autocast():
            first, coordinates, extents = self._first_layer(size)
            kernel = self._values(self._hidden(first, cond), self._distances(coordinates), size, slice(None))
        kernel = kernel.unflatten(-1, extents).unflatten(-1 - self.rank, (self.num_filters, self.dim))
        return kernel.movedim(-2 - self.rank, 0)

    @torch.no_grad()
    def at(self, size: int | tuple[int, ...], taps: Tensor, index: int = 0) -> Callable[[slice, slice], Tensor]:
        """Prepare to evaluate one kernel per channel at chosen taps, a part at a time; without gradients.

        Args:
            size: As for `forward`.
            taps: (P,), int64, positions in a flattened kernel, or -1 where the value is to be 0.
            index: Of the filter, 0 to num_filters - 1.

        Returns:
            `(channels, part) -> (c, p)`, the values of some channels at `taps[part]`.

        Raises:
            ValueError: `size` has the wrong number of axes, or the filter is conditioned on samples.
        """
        size = self._to_size(size)
        self._check_cond(None)
        with self._without_autocast():
            first, coordinates, _ = self._first_layer(size)
            distances = self._distances(coordinates)[:, taps]
            hidden = first.new_empty(len(taps), first.shape[1])
            for start in range(0, len(taps), _POSITIONS):
                part = slice(start, start + _POSITIONS)
                hidden[part] = self._hidden(first[taps[part]], in_place=True)
            hidden[taps < 0] = 0

        @torch.no_grad()
        def values(channels: slice, part: slice) -> Tensor:
            start, stop, _ = channels.indices(self.dim)
            rows = slice(index * self.dim + start, index * self.dim + stop)
            with self._without_autocast():
                return self._values(hidden[part], distances[:, part], size, rows, in_place=True)

        return values

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
        self.arguments["table_size"] = self.table_size
        self.z.grad = None
        self.z.data = self.z.data.new_empty((self.filter_emb_dim, *self._extents(self.table_size)))

    def extents(self, size: int | tuple[int, ...]) -> tuple[int, ...]:
        """Taps of a kernel on each axis."""
        return self._extents(self._covered(self._to_size(size)))

    def _without_autocast(self) -> AbstractContextManager:
        device = self.out.weight.device
        autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, enabled=False) if autocast else nullcontext()

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
        if (cond is None) != (self.film is None):
            given = "None" if cond is None else f"a tensor of shape {tuple(cond.shape)}"
            cond_dim = 0 if self.film is None else self.film.in_features
            raise ValueError(f"cond must be given if and only if cond_dim is set: cond is {given}, cond_dim {cond_dim}")
        if cond is not None and (cond.ndim != 2 or cond.shape[1] != self.film.in_features):
            raise ValueError(f"cond must have shape (B, {self.film.in_features}), got {tuple(cond.shape)}")

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.out.weight.dtype, torch.float32)

    def _axes(self, covered: tuple[int, ...], size: tuple[int, ...]) -> list[Tensor]:
        """Displacements within a covered grid along each axis: in extents of the image, or in base grids."""
        scales = size if self.coords == "relative" else self.base_size
        return [
            torch.arange(0 if self.causal else 1 - n, n, device=self.out.weight.device, dtype=self._dtype) / scale
            for n, scale in zip(covered, scales, strict=True)
        ]

    def _coordinates(self, covered: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        """Displacement of every tap, (rank, P)."""
        return torch.stack([axis.flatten() for axis in torch.meshgrid(*self._axes(covered, size), indexing="ij")])

    def _axis_features(self, axes: list[Tensor]) -> list[Tensor]:
        """Features of the displacements along each axis, (n, filter_emb_dim / rank)."""
        if self.features == "coords":
            return [axis[:, None] for axis in axes]
        if self.features == "fourier":
            bands = (self.filter_emb_dim // self.rank - 1) // 2
            frequency = torch.linspace(1e-4, max(bands - 1, 1e-4), bands).to(axes[0])
            # Once round over the kernel, which is as long as the image if causal and twice as long if centred.
            angles = [(2 if self.causal else 1) * math.pi * axis[:, None] * frequency for axis in axes]
            return [
                torch.cat([axis[:, None], angle.cos(), -angle.sin()], 1)
                for axis, angle in zip(axes, angles, strict=True)
            ]
        per_axis = self.filter_emb_dim // self.rank
        exponent = torch.arange(0, per_axis, 2).to(axes[0]) / per_axis
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
        extents = [len(axis) for axis in axes]
        return torch.cat(self._in_order([grid.expand(*extents, -1) for grid in grids]), -1)

    def _first_layer(self, size: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """First layer before its sine (P, width), displacements (rank, P), kernel extents."""
        covered, dtype = self._covered(size), self._dtype
        coordinates, extents = self._coordinates(covered, size), self._extents(covered)
        weight, bias = self.hidden[0].weight.to(dtype), self.hidden[0].bias.to(dtype)
        if self.z is not None:
            return F.linear(self._table_features(size, coordinates), weight, bias), coordinates, extents
        # Features belong to one axis each, so the layer is a sum over axes
        weights = self._in_order(weight.chunk(self.rank, dim=1))
        grid = bias
        for axis, (features, part) in enumerate(zip(self._axis_features(self._axes(size, size)), weights, strict=True)):
            grid = grid + _along(F.linear(features, part), axis, self.rank)
        return grid.flatten(0, -2), coordinates, extents

    def _table_features(self, size: tuple[int, ...], coordinates: Tensor) -> Tensor:
        """Learnt features (P, filter_emb_dim) of a kernel's taps."""
        table = self.z.to(self._dtype)
        if self.rank == 1 and self.coords == "relative" and size != self.base_size:
            return self._sample_table(table, coordinates[0]).T
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

    def _hidden(self, first: Tensor, cond: Tensor | None = None, in_place: bool = False) -> Tensor:
        """Last hidden layer (P, width) or (B, P, width) from the first before its sine; in place without gradients."""
        dtype = self._dtype
        modulation = None
        if cond is not None:
            film = F.linear(cond.to(dtype), self.film.weight.to(dtype), self.film.bias.to(dtype))
            modulation = film.unflatten(-1, (len(self.hidden), 2, 1, -1))
        hidden = first
        for index, linear in enumerate(self.hidden):
            if index > 0:
                hidden = F.linear(hidden, linear.weight.to(dtype), linear.bias.to(dtype))
            omega = self.omega[index].to(dtype)
            hidden = hidden.mul_(omega).sin_() if in_place else torch.sin(omega * hidden)
            if modulation is not None:
                hidden = (1 + modulation[:, index, 0]) * hidden + modulation[:, index, 1]
        return hidden

    def _values(
        self, hidden: Tensor, distances: Tensor, size: tuple[int, ...], rows: slice, in_place: bool = False
    ) -> Tensor:
        """Kernels of some of the num_filters * C channels, (rows, P) or (B, rows, P); in place without gradients."""
        weight = self.out.weight[rows].to(self._dtype)
        if self.coords == "relative":
            weight = weight * math.prod([base / n for base, n in zip(self.base_size, size, strict=True)])
        kernel = weight @ hidden.transpose(-1, -2)
        if self.window == "none":
            return kernel
        window = self._window(distances, rows, in_place)
        return kernel.mul_(window) if in_place else kernel * window

    def _distances(self, coordinates: Tensor) -> Tensor:
        """What the window falls off with, (1, P), or (rank, P) for "gaussian"."""
        if self.window == "exponential":
            return coordinates.abs().sum(0, keepdim=True)
        squares = coordinates.square()
        return squares.sum(0, keepdim=True).sqrt() if self.window == "radial" else squares

    def _window(self, distances: Tensor, rows: slice = slice(None), in_place: bool = False) -> Tensor:
        """Window plus shift of some channels, (rows, P)."""
        dtype = self._dtype
        if self.window == "none":
            return torch.ones(self.num_filters * self.dim, 1, device=distances.device, dtype=dtype)[rows]
        if self.window == "gaussian":
            precision = torch.exp(-2 * self.log_sigma[:, rows].to(dtype))
            return torch.exp(-0.5 * precision.T @ distances)
        exponent = -self.decay[rows].to(dtype).abs()[:, None] * distances
        shift = self.window_shift if self.shift is None else self.shift[rows].to(dtype)[:, None]
        return exponent.exp_().add_(shift) if in_place else torch.exp(exponent) + shift


def _along(of_axis: Tensor, axis: int, rank: int) -> Tensor:
    """(n, width) as (1, ..., n, ..., 1, width), with n on one of the axes."""
    return of_axis.view(*[-1 if other == axis else 1 for other in range(rank)], of_axis.shape[-1])


class ImplicitFilter1d(ImplicitFilter):
    """Implicit filter of a sequence; by default Hyena's: 33 Fourier features, two inner layers, fixed exponential.

    Args:
        dim: Channels of the signal.
        **kwargs: As for `ImplicitFilter`.

    Source:
        Hyena (arXiv:2302.10866), section 3.3 and appendix D.3; two inner layers are its authors' correction to the
        released ImageNet recipe.
    """

    def __init__(self, dim: int, **kwargs) -> None:
        super().__init__(1, dim, **kwargs)


class ImplicitFilter2d(ImplicitFilter):
    """Implicit filter of an image; by default a learnt radial window (HyenaPixel) on Fourier features of each axis.

    Args:
        dim: Channels of the signal.
        window: As for `ImplicitFilter`.
        slow_decay: As for `ImplicitFilter`; the default is HyenaPixel's, which counts in kernel extents.
        fast_decay: As `slow_decay`.
        **kwargs: As for `ImplicitFilter`.

    Source:
        HyenaPixel (arXiv:2402.19305), section 3.2.
    """

    def __init__(
        self, dim: int, *, window: str = "radial", slow_decay: float = 3.0, fast_decay: float = 0.6, **kwargs
    ) -> None:
        super().__init__(2, dim, window=window, slow_decay=slow_decay, fast_decay=fast_decay, **kwargs)
