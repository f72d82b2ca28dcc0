r"""Hyena mixers: gates and long convolutions in place of attention, on an image of tokens.

The operator of order N projects tokens to N + 1 signals $x_0, ..., x_{N-1}, v$, passes each through a short depthwise
convolution, and then alternates gates with long convolutions whose kernels are implicit filters:

$$v \leftarrow h_i * (v \odot \sigma(x_i)) + d_i\,(v \odot \sigma(x_i)), \quad i = N-1, ..., 1; \qquad
y = W_o\,(v \odot \sigma_o(x_0))$$

This is the recurrence of the released code: order 2 has two gates and one long convolution.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_act_layer, get_norm_layer, to_2tuple, trunc_normal_
from torch import Tensor, nn

from hyena_vision.layers import kernel_store
from hyena_vision.layers.implicit_filter import ImplicitFilter, ImplicitFilter1d, ImplicitFilter2d
from hyena_vision.ops import gated_short_filter, long_conv1d, long_conv2d
from hyena_vision.ops.short_filter import MAX_TAPS


def named_layer(getter: Callable, argument: str, value: Any) -> Any:
    """Look a layer up with timm's getter of activations or norms.

    Args:
        getter: `timm.layers.get_act_layer` or `get_norm_layer`.
        argument: Name of the argument that the value was given for.
        value: A name, a class, or None.

    Returns:
        The class, None for None.

    Raises:
        ValueError: timm knows no layer of that name.
    """
    try:
        return getter(value)
    except KeyError:
        raise ValueError(f"{argument} must be a class or the name of a layer of timm, got {value!r}") from None


class _Hyena(nn.Module):
    """What the 1D and the 2D mixer share: projections, short filter, recurrence."""

    filter: ImplicitFilter

    def __init__(
        self,
        dim: int,
        *,
        rank: int,
        op_settings: dict[str, Any],
        causal: bool = False,
        order: int = 2,
        short_kernel_size: int = 3,
        qkv_bias: bool = True,
        short_bias: bool = True,
        proj_bias: bool = True,
        gate_act: str | type[nn.Module] | None = None,
        out_gate_act: str | type[nn.Module] | None = None,
        value_norm: bool = False,
        gate_norm: bool = False,
        out_norm: bool = False,
        norm_layer: str | type[nn.Module] = "rmsnorm",
        proj_drop: float = 0.0,
        film: bool = False,
        base_grid: int | tuple[int, int] = 14,
        backend: str | None = None,
        cache_limit: int = 2**25,
        device=None,
        dtype=None,
        **filter_kwargs,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if order < 2:
            raise ValueError(f"order must be at least 2, got {order}")
        if short_kernel_size < 1 or (short_kernel_size % 2 == 0 and not causal):
            expected = "at least 1" if causal else "odd and at least 1"
            raise ValueError(f"short_kernel_size must be {expected}, got {short_kernel_size}")
        dd = {"device": device, "dtype": dtype}
        norm_layer = partial(named_layer(get_norm_layer, "norm_layer", norm_layer), dim, **dd)
        self.dim = dim
        self.order = order
        self.causal = causal
        self.op_settings = {**op_settings, "backend": backend}
        width = (order + 1) * dim
        self.qkv = nn.Linear(dim, width, bias=qkv_bias, **dd)
        self.short_filter = (nn.Conv1d if rank == 1 else nn.Conv2d)(
            width,
            width,
            short_kernel_size,
            padding=short_kernel_size - 1 if causal else short_kernel_size // 2,
            groups=width,
            bias=short_bias,
            **dd,
        )
        self.value_norm = norm_layer() if value_norm else nn.Identity()
        self.gate_norms = nn.ModuleList([norm_layer() if gate_norm else nn.Identity() for _ in range(order - 1)])
        self.gate_act = nn.Identity() if gate_act is None else named_layer(get_act_layer, "gate_act", gate_act)()
        self.out_gate_act = (
            nn.Identity() if out_gate_act is None else named_layer(get_act_layer, "out_gate_act", out_gate_act)()
        )
        filter_kwargs = dict(num_filters=order - 1, cond_dim=dim if film else 0, **filter_kwargs)
        base_grid = to_2tuple(base_grid)
        if rank == 1:
            self.filter = ImplicitFilter1d(dim, causal=causal, base_size=math.prod(base_grid), **filter_kwargs, **dd)
        else:
            self.filter = ImplicitFilter2d(dim, base_size=base_grid, **filter_kwargs, **dd)
        self.cache_limit = cache_limit
        self.reparameterized = False
        self._write_config()
        self.skip = nn.Parameter(torch.empty(order - 1, dim, **dd))
        self.out_norm = norm_layer() if out_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections and skips; the short filter keeps torch's default, the filter draws its own."""
        # The gates multiply order + 1 signals: with timm's std of 0.02 their product all but vanishes in small models.
        nn.init.normal_(self.qkv.weight, std=self.dim**-0.5)
        trunc_normal_(self.proj.weight, std=0.02)
        for linear in (self.qkv, self.proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.skip)

    def _write_config(self) -> None:
        """Settings as text, for torch.compile, which passes numbers and text to its operators."""
        limit = None if self.reparameterized else self.cache_limit
        self.config = json.dumps({"filter": self.filter.arguments, "op": self.op_settings, "limit": limit})

    def reparameterize(self) -> None:
        """Keep kernels between calls on any device and however large they are, for inference with fixed weights.

        `timm.utils.reparameterize_model` calls this for all mixers of a model. The first call at a size without
        gradients makes them, for C (order - 1) spectra of the padded grid; those of one size are kept. Weights are no
        longer compared by value. Loading and changes in place that torch counts are seen; those through `.data`, by
        fused optimizers in eval mode and of weights made in inference mode are not: call this again after one.
        `train()` undoes it. A CUDA graph needs a call at its size before it is captured, and holds the kernels of
        that time.
        """
        self.reparameterized = True
        self._write_config()
        kernel_store.forget(self)

    def train(self, mode: bool = True) -> "_Hyena":
        """As torch's, and back to comparing weights."""
        if mode and self.reparameterized:
            self.reparameterized = False
            self._write_config()
            kernel_store.forget(self)
        return super().train(mode)

    def set_table_size(self, table_size: int | tuple[int, ...]) -> None:
        """Make room for a filter's learnt table of another size, see `ImplicitFilter.set_table_size`."""
        self.filter.set_table_size(table_size)
        self._write_config()

    @property
    def backend(self) -> str | None:
        """Backend of the long convolutions, as it was given; read-only, like all that compiled graphs contain."""
        return self.op_settings["backend"]

    def extra_repr(self) -> str:
        """Settings that the sub-modules do not show."""
        return f"dim={self.dim}, order={self.order}, causal={self.causal}, backend={self.backend!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, H, W, C)."""
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (B, H, W, {self.dim}), got {tuple(x.shape)}")
        # FiLM: the mean token conditions the kernels
        cond = None if self.filter.film is None else x.flatten(1, 2).mean(1)
        return self.proj_drop(self.proj(self.out_norm(self.mix(self.qkv(x), cond))))

    def mix(self, signals: Tensor, cond: Tensor | None = None) -> Tensor:
        """Short filter, gates and long convolutions: all that is between the two projections.

        Args:
            signals: (B, H, W, (order + 1) C), the projected tokens.
            cond: (B, C), for the kernels of each sample, if and only if the mixer was made with `film`.

        Returns:
            (B, H, W, C), dtype of the signals.
        """
        grid = signals.shape[1:3]
        if self._fuses_first_gate():
            *gates, value = self._gated_short(signals).unbind(1)
            gates.append(None)
        else:
            *gates, value = self._short(signals.permute(0, 3, 1, 2)).chunk(self.order + 1, dim=1)
        del signals  # as large as what the short filter gave; without gradients its memory can be used again
        value = _channels_last(self.value_norm, value)
        last = self.out_gate_act(gates[0])
        convolve = self._convolution(value, cond)
        for step in range(self.order - 1):
            gate = gates[self.order - 1 - step]
            gate = None if gate is None else self.gate_act(gate)
            if not isinstance(self.gate_norms[step], nn.Identity):
                value, gate = _channels_last(self.gate_norms[step], value * gate), None
            value = convolve(step, value, gate, last if step == self.order - 2 else None)
        value = value if value.ndim == 4 else value.unflatten(2, grid)
        return value.permute(0, 2, 3, 1)

    def _fuses_first_gate(self) -> bool:
        """Whether short filter and first gate are one kernel: with the fused backend, few taps, nothing between."""
        between = (self.value_norm, self.gate_act, self.gate_norms[0])
        fits = self.backend == "triton" and self.short_filter.weight[0].numel() <= MAX_TAPS
        return fits and all(isinstance(module, nn.Identity) for module in between)

    def _gated_short(self, x: Tensor) -> Tensor:
        """Gates but the first, and the value under it, (B, order, C, H, W), of (B, H, W, (order + 1) C)."""
        weight, bias = self.short_filter.weight, self.short_filter.bias
        x = x.flatten(1, 2) if weight.ndim == 3 else x
        return gated_short_filter(x, weight, bias, signals=self.order + 1, causal=self.causal, backend=self.backend)

    def _short(self, x: Tensor) -> Tensor:
        """Short filter of (B, (order + 1) C, H, W), with the axes that the long convolutions run over."""
        return self.short_filter(x)

    def _convolution(self, value: Tensor, cond: Tensor | None) -> Callable[..., Tensor]:
        """`(step, value, gate, out_gate) -> value`: the long convolutions, with the kernels for this call."""
        if kernel_store.serves(self, value):
            return partial(kernel_store.convolve, self)
        kernels = self.filter(value.shape[2:], cond)
        long_conv = long_conv1d if value.ndim == 3 else long_conv2d
        return lambda step, v, gate, out_gate: long_conv(
            v, kernels[step], self.skip[step], gate=gate, out_gate=out_gate, **self.op_settings
        )


class Hyena1d(_Hyena):
    r"""Hyena over the tokens of an image in raster order.

    Args:
        dim: Channels, C.
        causal: Whether a token sees only those before it, as in the paper; by default it sees all.
        order: Number of gates N >= 2; there are N - 1 long convolutions.
        short_kernel_size: Taps of the short filter >= 1, odd unless causal.
        qkv_bias: Whether the input projection has a bias.
        short_bias: Whether the short filter has a bias.
        proj_bias: Whether the output projection has a bias.
        gate_act: Activation of the gates before the convolutions, a timm name such as "silu" or a class; None for none.
        out_gate_act: Activation of the last gate.
        value_norm: Whether v is normalised over channels before the first gate.
        gate_norm: Whether the input of each long convolution is normalised over channels.
        out_norm: Whether the input of the output projection is normalised over channels.
        norm_layer: Those norms, a timm name or a class.
        proj_drop: Dropout rate after the output projection.
        film: Whether the mean token scales and shifts the filter's hidden layers, so that each sample has a filter.
        base_grid: Tokens (H, W), or one number for both, of the grid on which the filter's relative and absolute
            coordinates agree and its kernels begin with unit energy; usually that of the training images. It is not in
            the state dict: load weights with the base grid that they were trained with.
        backend: Backend of the long convolutions, see `hyena_vision.ops`; None picks.
        cache_limit: Bytes of prepared kernels that the mixer keeps between calls in eval mode on the CPU. Where they
            would need more, or it is 0, they are made anew in each call, a few channels at a time.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **filter_kwargs: For `ImplicitFilter1d`.

    Raises:
        ValueError: An argument is out of its range.

    Shape:
        (B, H, W, C) -> (B, H, W, C), any H and W.

    Cost:
        O(B C H W (C + log(H W))) time.

    Source:
        Hyena (arXiv:2302.10866), definition 3.1; the bidirectional form is HyenaPixel's (arXiv:2402.19305).
    """

    def __init__(self, dim: int, *, causal: bool = False, **kwargs) -> None:
        super().__init__(dim, rank=1, op_settings={"causal": causal}, causal=causal, **kwargs)

    def _short(self, x: Tensor) -> Tensor:
        taps = self.short_filter.kernel_size[0]
        if x.device.type != "cpu" or torch.compiler.is_exporting() or x.shape[-1] < taps:
            return self.short_filter(x.flatten(2))[..., : x.shape[-2] * x.shape[-1]]
        # On the CPU a sequence is an image of one row, which no thread can share: filter the rows of the image.
        weight, before = self.short_filter.weight, self.short_filter.padding[0]
        filter_rows = partial(F.conv2d, weight=weight.unsqueeze(2), bias=self.short_filter.bias, groups=len(weight))
        if torch.is_grad_enabled():
            return filter_rows(_with_neighbours(x, before, taps - 1 - before)).flatten(2)
        # Without gradients, instead of the copy, add what crosses from one row to the next.
        y = filter_rows(x, padding=(0, before))[..., : x.shape[-1]]
        for tap in range(taps):
            shift = tap - before
            # As in _with_neighbours, no slice of H - 1 rows
            if shift < 0:
                y[..., :-shift] += weight[:, 0, tap, None, None] * F.pad(x[..., shift:], (0, 0, 1, 0))[:, :, :-1]
            elif shift > 0:
                y[..., -shift:] += weight[:, 0, tap, None, None] * F.pad(x[..., :shift], (0, 0, 0, 1))[:, :, 1:]
        return y.flatten(2)


class Hyena2d(_Hyena):
    r"""Hyena over the two axes of an image of tokens.

    Args:
        dim: Channels, C.
        padding: "linear" (zeros outside the image) or "circular", for the long convolutions.
        **kwargs: As for `Hyena1d`, less `causal`; what remains is for `ImplicitFilter2d`.

    Raises:
        ValueError: An argument is out of its range.

    Shape:
        (B, H, W, C) -> (B, H, W, C), any H and W.

    Cost:
        O(B C H W (C + log(H W))) time.

    Source:
        HyenaPixel (arXiv:2402.19305), section 3.
    """

    def __init__(self, dim: int, *, padding: str = "linear", **kwargs) -> None:
        if padding not in ("linear", "circular"):
            raise ValueError(f"padding must be 'linear' or 'circular', got {padding!r}")
        super().__init__(dim, rank=2, op_settings={"padding": padding}, **kwargs)

    @property
    def padding(self) -> str:
        """As it was given."""
        return self.op_settings["padding"]


def _with_neighbours(x: Tensor, before: int, after: int) -> Tensor:
    """Rows of an image (B, C, H, W), each between the ends of those before and after it in raster order.

    Its backward pass is one concatenation, too, where slices of x would each give a whole image of zeros.
    """
    rows = x.permute(0, 2, 3, 1)
    first, middle, last = rows.split([after, rows.shape[2] - before - after, before], dim=2)
    # A row of zeros goes in and one goes out: a slice of H - 1 rows would bind a compiled graph to H > 2
    above = torch.cat([torch.zeros_like(last[:, :1]), last], dim=1)[:, :-1]
    below = torch.cat([first, torch.zeros_like(first[:, :1])], dim=1)[:, 1:]
    return torch.cat([above, first, middle, last, below], dim=2).permute(0, 3, 1, 2)


def _channels_last(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm over the channels of (B, C, *)."""
    return x if isinstance(norm, nn.Identity) else norm(x.movedim(1, -1)).movedim(-1, 1)
