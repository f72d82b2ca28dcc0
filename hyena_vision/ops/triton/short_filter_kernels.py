"""Triton kernels of `gated_short_filter`; `short_filter` has what they do."""

import triton
import triton.language as tl


@triton.jit
def _filtered(
    x_ptr,
    weight_ptr,
    bias_ptr,
    token,
    channel,
    first,
    height,
    width,
    channels,
    stride_h,
    stride_w,
    stride_c,
    SIGNALS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
):
    """Tile [tokens, channels] of a filtered signal in float32; x_ptr is at its image, `first` the signal's channel."""
    row = token // width
    column = token % width
    live = channel < channels
    source = (first + channel).to(tl.int64) * stride_c
    total = tl.zeros([token.shape[0], channel.shape[0]], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + first + channel, mask=live, other=0.0)[None, :]
    # Unrolled over rows as well, all loads would be issued first and fill the registers
    for i in range(TH):
        for j in tl.static_range(TW):
            y = row + (i - TOP)
            z = column + (j - LEFT)
            inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
            offset = y.to(tl.int64) * stride_h + z.to(tl.int64) * stride_w
            mask = inside[:, None] & live[None, :]
            tile = tl.load(x_ptr + (offset[:, None] + source[None, :]), mask=mask, other=0.0).to(tl.float32)
            tap = tl.load(weight_ptr + ((i * TW + j) * SIGNALS * channels + first + channel), mask=live, other=0.0)
            total += tile * tap[None, :]
    return total


@triton.jit
def _short_filter_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    height,
    width,
    channels,
    stride_b,
    stride_h,
    stride_w,
    stride_c,
    SIGNALS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tokens = height * width
    blocks = tl.cdiv(tokens, TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    signal = tl.program_id(2)
    x_ptr += image * stride_b
    result = _filtered(
        x_ptr, weight_ptr, bias_ptr, token, channel, signal * channels, height, width, channels,
        stride_h, stride_w, stride_c, SIGNALS, HAS_BIAS, TH, TW, TOP, LEFT,
    )  # fmt: skip
    if signal == SIGNALS - 2:
        result *= _filtered(
            x_ptr, weight_ptr, bias_ptr, token, channel, (SIGNALS - 1) * channels, height, width, channels,
            stride_h, stride_w, stride_c, SIGNALS, HAS_BIAS, TH, TW, TOP, LEFT,
        )  # fmt: skip
    line = (image * (SIGNALS - 1) + signal) * channels + channel
    target = out_ptr + (line[None, :] * tokens + token[:, None])
    mask = (token < tokens)[:, None] & (channel < channels)[None, :]
    tl.store(target, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _short_filter_bwd_signals_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    dsignal_ptr,
    height,
    width,
    channels,
    grad_stride_b,
    grad_stride_s,
    grad_stride_c,
    grad_stride_t,
    stride_b,
    stride_h,
    stride_w,
    stride_c,
    SIGNALS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of the filtered signals, (B, H, W, S * C) contiguous."""
    tokens = height * width
    blocks = tl.cdiv(tokens, TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    signal = tl.program_id(2)
    mask = (token < tokens)[:, None] & (channel < channels)[None, :]
    line = image * grad_stride_b + signal.to(tl.int64) * grad_stride_s + channel.to(tl.int64) * grad_stride_c
    place = token.to(tl.int64) * grad_stride_t
    grad = tl.load(grad_ptr + (line[None, :] + place[:, None]), mask=mask, other=0.0).to(tl.float32)
    target = (image * tokens + token)[:, None] * (SIGNALS * channels) + (signal * channels + channel)[None, :]
    dtype = dsignal_ptr.dtype.element_ty
    if signal < SIGNALS - 2:
        tl.store(dsignal_ptr + target, grad.to(dtype), mask=mask)
    else:
        x_ptr += image * stride_b
        value = _filtered(
            x_ptr, weight_ptr, bias_ptr, token, channel, (SIGNALS - 1) * channels, height, width, channels,
            stride_h, stride_w, stride_c, SIGNALS, HAS_BIAS, TH, TW, TOP, LEFT,
        )  # fmt: skip
        tl.store(dsignal_ptr + target, (grad * value).to(dtype), mask=mask)
        gate = _filtered(
            x_ptr, weight_ptr, bias_ptr, token, channel, (SIGNALS - 2) * channels, height, width, channels,
            stride_h, stride_w, stride_c, SIGNALS, HAS_BIAS, TH, TW, TOP, LEFT,
        )  # fmt: skip
        tl.store(dsignal_ptr + (target + channels), (grad * gate).to(dtype), mask=mask)


@triton.jit
def _short_filter_bwd_inputs_kernel(
    dsignal_ptr,
    x_ptr,
    weight_ptr,
    dx_ptr,
    partial_ptr,
    tokens,
    height,
    width,
    channels,
    stride_b,
    stride_h,
    stride_w,
    stride_c,
    TH: tl.constexpr,
    TW: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    STEPS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of x, and partial sums (chunks, TH * TW + 1, channels) of those of the taps and, last, of the bias.

    Here the tokens are those of all images, and the channels those of all signals.
    """
    chunk = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    live = channel < channels
    source = channel.to(tl.int64) * stride_c
    sums = ()
    for _ in tl.static_range(TH * TW + 1):
        sums = sums + (tl.zeros([TOKENS, CHANNELS], tl.float32),)  # noqa: RUF005  Triton has no unpacking
    for step in range(tl.minimum(STEPS, tl.cdiv(tokens - chunk * STEPS * TOKENS, TOKENS))):
        token = (chunk * STEPS + step) * TOKENS + tl.arange(0, TOKENS)
        image = token // (height * width)
        row = token // width % height
        column = token % width
        mask = (token < tokens)[:, None] & live[None, :]
        offset = image.to(tl.int64) * stride_b + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
        x = tl.load(x_ptr + (offset[:, None] + source[None, :]), mask=mask, other=0.0).to(tl.float32)
        dx = tl.zeros([TOKENS, CHANNELS], tl.float32)
        dbias = sums[TH * TW]
        updated = ()
        for i in tl.static_range(TH):
            for j in tl.static_range(TW):
                # The filtered token that saw this one through tap (i, j)
                y = row - (i - TOP)
                z = column - (j - LEFT)
                inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
                seen_by = (token - (i - TOP) * width - (j - LEFT)).to(tl.int64) * channels
                dsignal = tl.load(
                    dsignal_ptr + (seen_by[:, None] + channel[None, :]), mask=mask & inside[:, None], other=0.0
                ).to(tl.float32)
                tap = tl.load(weight_ptr + ((i * TW + j) * channels + channel), mask=live, other=0.0)
                dx += dsignal * tap[None, :]
                updated = updated + (sums[i * TW + j] + dsignal * x,)  # noqa: RUF005  as above
                if i == TOP and j == LEFT:
                    dbias += dsignal
        sums = updated + (dbias,)  # noqa: RUF005  as above
        target = token.to(tl.int64)[:, None] * channels + channel[None, :]
        tl.store(dx_ptr + target, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    for t in tl.static_range(TH * TW + 1):
        line = (chunk.to(tl.int64) * (TH * TW + 1) + t) * channels
        tl.store(partial_ptr + line + channel, tl.sum(sums[t], axis=0), mask=live)
