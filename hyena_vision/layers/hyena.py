r"""Hyena mixers: gates and long convolutions in place of attention, on an image of tokens.

The operator of order N projects tokens to N + 1 signals $x_0, ..., x_{N-1}, v$, passes each through a short depthwise
convolution, and then alternates gates with long convolutions whose kernels are implicit filters:

$$v \leftarrow h_i * (v \odot \sigma(x_i)) + d_i\,(v \odot \sigma(x_i)), \quad i = N-1, ..., 1; \qquad
y = W_o\,(v \odot \sigma_o(x_0))$$

This is the recurrence of the released code: order 2 has two gates and one long convolution. Products of gates can grow
without end in training, so by default what $W_o$ projects is bounded (`Softcap`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import get_act_layer, get_norm_layer, to_2tuple, trunc_normal_
from timm.models import register_notrace_module
from torch import Tensor, nn

from hyena_vision.layers.implicit_filter import FILTER_TYPES, ImplicitFilter, ImplicitFilter1d, ImplicitFilter2d
from hyena_vision.layers.kept_kernels import KeptKernels, key_of
from hyena_vision.layers.softcap import Softcap
from hyena_vision.layers.untouched import fast_weights, saves_plainly, untouched_weights
from hyena_vision.ops import (
    PreparedKernel,
    gated_short_filter,
    hyena_operator,
    long_conv1d,
    long_conv2d,
    prepare_kernel1d,
    prepare_kernel2d,
)
from hyena_vision.ops.backends import select
from hyena_vision.ops.hyena import first_signal, table_use
from hyena_vision.ops.short_filter import MAX_TAPS
from hyena_vision.ops.short_filter_torch import filter_sequence
from hyena_vision.ops.table import can_have_table
from hyena_vision.ops.watchers import is_compiling

# Of kernels and their spectra that are made, used and dropped together
_GROUP_BYTES = 2**25


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


def refuse_jit_tracing() -> None:
    """Raise RuntimeError where torch.jit.trace runs."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace, and torch.onnx.export with dynamo=False, would bind the filters to the size of this "
            "image without a word: use torch.export.export, or torch.onnx.export with dynamo=True"
        )


class _Hyena(nn.Module):
    """What the 1D and the 2D mixer share: projections, short filter, recurrence."""

    rank: int  # number of axes that the long convolutions run over
    filter: ImplicitFilter

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        padding: str = "linear",
        order: int = 2,
        short_kernel_size: int = 3,
        short_dilation: int | tuple[int, int] = 1,
        qkv_bias: bool = True,
        short_bias: bool = True,
        proj_bias: bool = True,
        gate_act: str | type[nn.Module] | None = None,
        out_gate_act: str | type[nn.Module] | None = None,
        value_norm: bool = False,
        gate_norm: bool = False,
        out_norm: bool = False,
        norm_layer: str | Callable[..., nn.Module] = "rmsnorm",
        softcap: float = 10.0,
        proj_drop: float = 0.0,
        film: bool = False,
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
        base_grid: int | tuple[int, int] = 14,
        backend: str | None = None,
        cache_limit: int = 2**25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make a mixer.

        Args:
            dim: Channels, C.
            causal: For `Hyena1d`: whether a token sees only those before it, as in the paper; by default it sees all.
            padding: For `Hyena2d`: "linear" (zeros outside the image) or "circular", for the long convolutions.
            order: Number of gates N >= 2; there are N - 1 long convolutions.
            short_kernel_size: Taps of the short filter >= 1, odd unless causal.
            short_dilation: For `Hyena2d`: distance between its taps in tokens, or two for rows and columns. On a grid k
                times larger than that of training, k keeps them where they were in the image. It is not in the state
                dict.
            qkv_bias: Whether the input projection has a bias.
            short_bias: Whether the short filter has a bias.
            proj_bias: Whether the output projection has a bias.
            gate_act: Activation of the gates before the convolutions, a timm name such as "silu" or a class; None for
                none.
            out_gate_act: Activation of the last gate.
            value_norm: Whether v is normalised over channels before the first gate.
            gate_norm: Whether the input of each long convolution is normalised over channels.
            out_norm: Whether the input of the output projection is normalised over channels.
            norm_layer: Those norms, a timm name or a class.
            softcap: Bound on the root mean square over channels of what enters the output projection, see `Softcap`; 0
                for none. It keeps training in float16 finite. With `out_norm` it has no effect.
            proj_drop: Dropout rate after the output projection.
            film: Whether the mean token scales and shifts the filter's hidden layers, so that each sample has a filter.
            filter_dim: Width of the filter's network; this and what follows is as for `ImplicitFilter`.
            filter_emb_dim: Number of position features.
            num_inner_layers: Hidden layers of the network after the first one.
            omega_0: Initial frequency of the first layer's sine.
            features: "fourier", "sinusoid" or "coords".
            learn_features: Whether the features are a learnt table.
            table_size: Tokens per axis that the table covers; of a sequence, all its tokens.
            window: "exponential", "radial", "gaussian" or "none"; None is "exponential" in 1D and "radial" in 2D.
            learn_window: Whether the window is learnt.
            window_shift: Initial shift of the window.
            slow_decay: Distance at which the window of the first channel reaches 0.01.
            fast_decay: The same for the last channel.
            coords: "relative" to the image, or "absolute" in tokens.
            base_grid: Tokens (H, W), or one number for both, of the grid on which the filter's relative and absolute
                coordinates agree and its kernels begin with unit energy; usually that of the training images. It is not
                in the state dict: load weights with the base grid that they were trained with.
            backend: Backend of the long convolutions, see `hyena_vision.ops`; None picks.
            cache_limit: Bytes of prepared kernels that the mixer keeps between calls in eval mode on the CPU. Where
                they would need more, or it is 0, they are made anew in each call, a few channels at a time.
            device: Device of the parameters.
            dtype: Dtype of the parameters.

        Raises:
            ValueError: An argument is out of its range.
            TypeError: `causal` for an image, or `padding` or `short_dilation` for a sequence.
        """
        super().__init__()
        if causal and self.rank == 2:
            raise TypeError("causal is for Hyena1d: an image has no order, got causal=True")
        if padding not in ("linear", "circular"):
            raise ValueError(f"padding must be 'linear' or 'circular', got {padding!r}")
        if padding != "linear" and self.rank == 1:
            raise TypeError(f"padding is for Hyena2d, got padding={padding!r}")
        dilation = to_2tuple(short_dilation)
        if dilation != (1, 1) and self.rank == 1:
            raise TypeError(f"short_dilation is for Hyena2d, got short_dilation={short_dilation!r}")
        if len(dilation) != 2 or not all(isinstance(n, int) and n >= 1 for n in dilation):
            raise ValueError(f"short_dilation must be one or two integers of at least 1, got {short_dilation!r}")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if order < 2:
            raise ValueError(f"order must be at least 2, got {order}")
        if short_kernel_size < 1 or (short_kernel_size % 2 == 0 and not causal):
            expected = "at least 1" if causal else "odd and at least 1"
            raise ValueError(f"short_kernel_size must be {expected}, got {short_kernel_size}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        make_norm = partial(named_layer(get_norm_layer, "norm_layer", norm_layer), dim, **dd)
        self.dim = dim
        self.order = order
        self.padding = padding
        self.backend = backend
        width = (order + 1) * dim
        self.qkv = nn.Linear(dim, width, bias=qkv_bias, **dd)
        reach = short_kernel_size - 1 if causal else short_kernel_size // 2
        self.short_filter = (nn.Conv1d if self.rank == 1 else nn.Conv2d)(
            width,
            width,
            short_kernel_size,
            padding=tuple(n * reach for n in dilation[: self.rank]),
            dilation=dilation[: self.rank],
            groups=width,
            bias=short_bias,
            **dd,
        )
        self.value_norm = make_norm() if value_norm else nn.Identity()
        self.gate_norms = nn.ModuleList([make_norm() if gate_norm else nn.Identity() for _ in range(order - 1)])
        self.gate_act = nn.Identity() if gate_act is None else named_layer(get_act_layer, "gate_act", gate_act)()
        self.out_gate_act = (
            nn.Identity() if out_gate_act is None else named_layer(get_act_layer, "out_gate_act", out_gate_act)()
        )
        height, width = to_2tuple(base_grid)
        self.filter = (ImplicitFilter1d if self.rank == 1 else ImplicitFilter2d)(
            dim,
            num_filters=order - 1,
            causal=causal,
            filter_dim=filter_dim,
            filter_emb_dim=filter_emb_dim,
            num_inner_layers=num_inner_layers,
            omega_0=omega_0,
            features=features,
            learn_features=learn_features,
            table_size=table_size,
            window=window,
            learn_window=learn_window,
            window_shift=window_shift,
            slow_decay=slow_decay,
            fast_decay=fast_decay,
            coords=coords,
            base_size=height * width if self.rank == 1 else (height, width),
            cond_dim=dim if film else 0,
            **dd,
        )
        self.cache_limit = cache_limit
        self.reparameterized = False
        self.kept = KeptKernels()
        self.skip = nn.Parameter(torch.empty(order - 1, dim, **dd))
        self.out_norm = make_norm() if out_norm else nn.Identity() if softcap == 0 else Softcap(softcap)
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

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it; the filter's setting."""
        return self.filter.causal

    @property
    def kernel_settings(self) -> tuple:
        """All that prepared kernels depend on besides weights and size."""
        return self.filter.settings, tuple(self._op_settings().values())

    def reparameterize(self) -> None:
        """Keep kernels between calls on any device and however large they are, for inference with fixed weights.

        `timm.utils.reparameterize_model` calls this for all mixers of a model. The first call at a size without
        gradients makes them, for C (order - 1) spectra of the padded grid; those of every size that comes are kept.
        Weights are no longer compared by value. Changes in place that torch counts, other tensors and loading are seen;
        changes through `.data`, by fused optimizers in eval mode and of weights made in inference mode are not: call
        this again after one. `train()` undoes it.

        Compiled models read the kernels as tensors of the mixer, made when the graph is. They see other settings, other
        tensors, `to()`, loading of the mixer or the model and another call of this, but no change in place; each size
        has its own graph. A CUDA graph needs a call at its size before it is captured, and holds the kernels of that
        time.
        """
        self.reparameterized = True
        self.kept.clear()

    def train(self, mode: bool = True) -> "_Hyena":
        """As torch's; drops kept kernels, and in training mode goes back to comparing weights."""
        if mode:
            self.reparameterized = False
        self.kept.clear()
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> "_Hyena":
        self.kept.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.kept.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Settings that the sub-modules do not show."""
        return f"dim={self.dim}, order={self.order}, causal={self.causal}, backend={self.backend!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, H, W, C)."""
        refuse_jit_tracing()
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (B, H, W, {self.dim}), got {tuple(x.shape)}")
        # FiLM: the mean token conditions the kernels
        cond = x.flatten(1, 2).mean(1) if self.filter.cond_dim else None
        return self.proj_drop(self.proj(self.out_norm(self.mix(self.qkv(x), cond))))

    def mix(self, signals: Tensor, cond: Tensor | None = None) -> Tensor:
        """Short filter, gates and long convolutions: all that is between the two projections.

        Args:
            signals: (B, H, W, (order + 1) C), the projected tokens.
            cond: (B, C), for the kernels of each sample, if and only if the mixer was made with `film`.

        Returns:
            (B, H, W, C), dtype of the signals.
        """
        grid, settings = signals.shape[1:3], self._op_settings()
        if torch.is_grad_enabled() and not is_compiling():
            if not self.reparameterized:
                self.kept.clear()
            if self._is_one_operator(signals):
                kernels = self.filter((grid[0] * grid[1],) if self.rank == 1 else grid, cond, signals.device)
                short = self.short_filter
                value = hyena_operator(
                    signals, short.weight, short.bias, kernels.squeeze(0), self.skip.squeeze(0), **settings
                )
                return value.view(*value.shape[:2], *grid).permute(0, 2, 3, 1)
        if self._fuses_first_gate(signals, cond):
            *unfused, value = self._gated_short(signals).unbind(1)
            gates: list[Tensor | None] = [*unfused, None]  # torch 2.11 compiles no append to what was unpacked
        else:
            *unfused, value = self._short(signals).chunk(self.order + 1, dim=1)
            gates = [*unfused]
        del signals  # as large as what the short filter gave; without gradients its memory can be used again
        if not _is_identity(self.value_norm):
            value = self.value_norm(value.movedim(1, -1)).movedim(-1, 1)
        last = self.out_gate_act(unfused[0])
        long_conv = long_conv1d if self.rank == 1 else long_conv2d
        kernels, skips = self._kernels_for(value, cond)
        for step, norm in enumerate(self.gate_norms):
            gate = gates[self.order - 1 - step]
            gate = None if gate is None else self.gate_act(gate)
            if not _is_identity(norm):
                value, gate = norm((value if gate is None else value * gate).movedim(1, -1)).movedim(-1, 1), None
            out_gate = last if step == self.order - 2 else None
            if kernels is None:
                value = self._convolve_in_groups(step, value, gate, out_gate)
            else:
                value = long_conv(value, kernels[step], skips[step], gate=gate, out_gate=out_gate, **settings)
        value = value if self.rank == 2 else value.unflatten(2, grid)
        return value.permute(0, 2, 3, 1)

    def _op_settings(self) -> dict[str, Any]:
        """Settings of the long convolutions by name."""
        own: dict[str, Any] = {"causal": self.causal} if self.rank == 1 else {"padding": self.padding}
        return {**own, "backend": self.backend}

    def _is_one_operator(self, signals: Tensor) -> bool:
        """Whether all of `mix` is `hyena_operator`, which computes again in its backward pass: a fast path."""
        between = (self.value_norm, self.gate_act, self.out_gate_act, *self.gate_norms)
        if self.order > 2 or not signals.numel() or not saves_plainly() or not all(map(_is_identity, between)):
            return False
        return self._knows_short_filter(signals, self.skip)

    def _knows_short_filter(self, *signals: Tensor | None) -> bool:
        """Whether an operator may take the weights of the short filter: it is as it was made, and untouched."""
        layer = self.short_filter
        if type(layer) not in _SHORT_TYPES:
            return False
        taps = layer.kernel_size[0]
        as_made = (
            layer.groups == layer.in_channels == layer.out_channels == (self.order + 1) * self.dim
            and layer.padding_mode == "zeros"
            and all(n == taps for n in layer.kernel_size)
            and all(n == (taps - 1 if self.causal else taps // 2) for n in layer.padding)
            and all(n == 1 for n in (*layer.stride, *layer.dilation))
        )
        if is_compiling():
            return as_made and untouched_weights(layer, _SHORT_TYPES) is not None
        return as_made and fast_weights(layer, _SHORT_TYPES, *signals) is not None

    def _fuses_first_gate(self, signals: Tensor, cond: Tensor | None) -> bool:
        """Whether short filter and first gate are one kernel: with the fused backend, few taps, nothing between."""
        if self.backend != "triton" and (self.backend is not None or not can_have_table(signals.device)):
            return False
        between = all(map(_is_identity, (self.value_norm, self.gate_act, self.gate_norms[0])))
        if not between or math.prod(self.short_filter.kernel_size) > MAX_TAPS or not self._knows_short_filter():
            return False
        if self.backend == "triton":
            return True
        value = first_signal(signals, self.rank, self.order + 1)
        use = table_use(signals, prepared=self.reparameterized) if cond is None else None
        return select(None, value, self.skip, use=use, circular=self.padding == "circular").name == "triton"

    def _gated_short(self, x: Tensor) -> Tensor:
        """Gates but the first, and the value under it, (B, order, C, H, W), of (B, H, W, (order + 1) C)."""
        weight, bias = self.short_filter.weight, self.short_filter.bias
        x = x.flatten(1, 2) if weight.ndim == 3 else x
        return gated_short_filter(x, weight, bias, signals=self.order + 1, causal=self.causal, backend="triton")

    def _short(self, signals: Tensor) -> Tensor:
        """Short filter of (B, H, W, (order + 1) C), channels first, with the axes of the long convolutions."""
        x, layer = signals.permute(0, 3, 1, 2), self.short_filter
        if self.rank == 2:
            return layer(x)
        if torch.compiler.is_exporting() or not self._knows_short_filter(signals):
            return layer(x.flatten(2))[..., : x.shape[-2] * x.shape[-1]]
        return filter_sequence(x, layer.weight, layer.bias, self.causal)

    def _kernels_for(
        self, value: Tensor, cond: Tensor | None
    ) -> tuple[Tensor | list[Tensor] | list[PreparedKernel] | None, Tensor | list[None]]:
        """Kernels and skips of all steps; None for kernels that are made in groups of channels."""
        if not self.training and not torch.is_grad_enabled():
            prepared = self._kept_kernels_in_graph(value) if is_compiling() else self._kept_kernels(value)
            if prepared is not None:
                return prepared, [None] * len(prepared)
            if value.device.type == "cpu" and self._is_large(value) and self.filter.fast_weights(value, self.skip):
                return None, self.skip
        kernels = self.filter(value.shape[2:], cond, value.device)
        # A view whose gradient needs no copy, where there is one
        return kernels if self.order > 2 else [kernels.squeeze(0)], self.skip

    def prepare_kernels(self, value: Tensor) -> list[PreparedKernel]:
        """Kernels of all steps for signals like `value`, (B, C, L) or (B, C, H, W), as the backend wants them."""
        prepare = prepare_kernel1d if self.rank == 1 else prepare_kernel2d
        kernels, settings = self.filter(value.shape[2:], device=value.device), self._op_settings()
        return [prepare(value, kernel, skip, **settings) for kernel, skip in zip(kernels, self.skip, strict=True)]

    def _is_large(self, value: Tensor) -> bool:
        """Whether spectra would take more than `cache_limit`: twice as many numbers per axis as tokens."""
        numbers = value.shape[1:].numel() * 2**self.rank * self.skip.shape[0]
        return numbers * (8 if value.dtype == torch.float64 else 4) > self.cache_limit

    def _kept_kernels(self, value: Tensor) -> list[PreparedKernel] | None:
        """The kernels, kept from an earlier call or from now on; None where they cannot be."""
        by_value = not self.reparameterized
        if by_value and value.device.type != "cpu":
            return None
        weights = self.filter.fast_weights(value, self.skip)
        if weights is None:
            return None
        if by_value and self._is_large(value):
            self.kept.clear()
            return None
        weights = [self.skip, *weights]
        return self.kept.of(value, self.kernel_settings, weights, by_value, partial(self.prepare_kernels, value))

    def _kept_kernels_in_graph(self, value: Tensor) -> list[PreparedKernel] | None:
        if not self.reparameterized or torch.compiler.is_exporting():
            return None
        key, weights = key_of(value), untouched_weights(self.filter, FILTER_TYPES)
        if weights is None or not self._keep_for_graph(key):
            return None
        entry = self.kept.entries[key]
        # Read here, so that the graph is made again if they are others
        same = entry.settings == self.kernel_settings
        same = same and all([a is b for a, b in zip(entry.originals, [self.skip, *weights], strict=True)])
        return entry.kernels if same else None

    @torch.compiler.assume_constant_result
    def _keep_for_graph(self, key: str) -> bool:
        """Make the kernels that a graph reads while it is compiled, and whether there are any."""
        extents, dtype, device = key.split(" ")
        size = tuple(int(n) for n in extents.split("x"))
        value = torch.empty(1, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
        with torch.no_grad():
            return self._kept_kernels(value.expand(1, self.dim, *size)) is not None

    def _convolve_in_groups(self, step: int, value: Tensor, gate: Tensor | None, out_gate: Tensor | None) -> Tensor:
        """A long convolution whose kernels, too large to keep, are made a few channels at a time: a fast path."""
        long_conv, size = long_conv1d if self.rank == 1 else long_conv2d, value.shape[2:]
        numbers = math.prod(self.filter.extents(size)) + math.prod(2 * n for n in size)
        count = max(16, _GROUP_BYTES // (4 * numbers) // 16 * 16)
        groups = [slice(start, min(start + count, self.dim)) for start in range(0, self.dim, count)]
        y, settings = None, self._op_settings()
        for group, kernel in self.filter.channels_in_turn(size, groups, step):
            part = long_conv(
                value[:, group],
                kernel,
                self.skip[step, group],
                gate=None if gate is None else gate[:, group],
                out_gate=None if out_gate is None else out_gate[:, group],
                **settings,
            )
            if y is None:
                y = torch.empty((value.shape[0], *size, self.dim), dtype=part.dtype, device=part.device).movedim(-1, 1)
            y[:, group] = part
        assert y is not None
        return y


# Modules whose arithmetic the operators of the short filter know
_SHORT_TYPES = (nn.Conv1d, nn.Conv2d)


def _is_identity(module: nn.Module) -> bool:
    """Whether nobody would miss a call of a layer that does nothing."""
    return type(module) is nn.Identity and untouched_weights(module, (nn.Identity,)) is not None


class Hyena1d(_Hyena):
    """Hyena over the tokens of an image in raster order.

    Its arguments are listed under `__init__`; all but `padding` and `short_dilation` are for it.

    Shape:
        (B, H, W, C) -> (B, H, W, C), any H and W.

    Cost:
        O(B C H W (C + log(H W))) time.

    Source:
        Hyena (arXiv:2302.10866), definition 3.1; the bidirectional form is HyenaPixel's (arXiv:2402.19305).

    Example:
        >>> Hyena1d(16)(torch.ones(1, 4, 6, 16)).shape
        torch.Size([1, 4, 6, 16])
    """

    rank = 1


class Hyena2d(_Hyena):
    """Hyena over the two axes of an image of tokens.

    Its arguments are listed under `__init__`; all but `causal` are for it.

    Shape:
        (B, H, W, C) -> (B, H, W, C), any H and W.

    Cost:
        O(B C H W (C + log(H W))) time.

    Source:
        HyenaPixel (arXiv:2402.19305), section 3.

    Example:
        >>> Hyena2d(16)(torch.ones(1, 4, 6, 16)).shape
        torch.Size([1, 4, 6, 16])
    """

    rank = 2


# What models take by name. Filters and operators read shapes as numbers; fx takes each mixer as one node.
MIXERS: dict[str, type[nn.Module]] = {
    "hyena1d": register_notrace_module(Hyena1d),
    "hyena2d": register_notrace_module(Hyena2d),
}
