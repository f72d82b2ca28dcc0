"""Triton kernels for tiles too large for one program; `long_conv_kernels` has what both share, and the notation.

Tiles are (H, W). Transforms along W lie in a workspace (2, images, H, frequencies_w), float32, between three
kernels: along W, along H in place, back along W.
"""

import triton
import triton.language as tl

from hyena_vision.ops.triton.long_conv_kernels import (
    _add_sample,
    _dot,
    _inside,
    _largest,
    _load,
    _load_parts,
    _matrix,
    _no_spectrum,
    _product,
    _split,
    _store,
    _store_spectrum,
    _transposed,
    _waves,
)


@triton.jit
def _twiddled(cosine, sine, twiddle, h, frequency_w, TILE: tl.constexpr, BACK: tl.constexpr):
    """(cosine - i sine) times the twiddle factors, or their conjugates."""
    c = _matrix(twiddle, h, frequency_w, TILE[3])
    s = _matrix(twiddle + TILE[0] * TILE[3], h, frequency_w, TILE[3])
    if BACK:
        s = -s
    return cosine * c - sine * s, cosine * s + sine * c


@triton.jit
def _spectrum(c, s, cosine, sine, EXACT: tl.constexpr):
    """The four products of waves of H with transforms along W, for some frequency_h of H."""
    return _dot(c, cosine, EXACT), _dot(c, sine, EXACT), _dot(s, cosine, EXACT), _dot(s, sine, EXACT)


@triton.jit
def _back_along_h(c, s, cc, cs, sc, ss, EXACT: tl.constexpr):
    """Transforms along W of the result, from some frequency_h of H."""
    c, s = _transposed(c), _transposed(s)
    cosine = _dot(c, _split(cc, EXACT), EXACT) + _dot(s, _split(sc, EXACT), EXACT)
    sine = _dot(c, _split(cs, EXACT), EXACT) + _dot(s, _split(ss, EXACT), EXACT)
    return cosine, sine


@triton.jit
def _transform_w_in_blocks(
    signal,
    factor,
    sample,
    channel,
    h,
    frequency_w,
    tables,
    size,
    TILE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Transforms along W (BLOCK_H, BLOCK) of a signal times a factor, some of W at a time."""
    cosine = tl.zeros((BLOCK_H, BLOCK), tl.float32)
    sine = tl.zeros((BLOCK_H, BLOCK), tl.float32)
    for start in range(0, TILE[1], BLOCK_W):
        w = start + tl.arange(0, BLOCK_W)
        mask = _inside(h[:, None], w[None, :], size, TILE, RANK)
        tile = _load(signal, factor, sample, channel, h[:, None], w[None, :], mask)
        largest, inverse = _largest(tile)
        tile = _split(tile * inverse, EXACT)
        c, s = _waves(tables[0], w, frequency_w, TILE[1], TILE[3], EXACT)
        cosine += _dot(tile, c, EXACT) * largest
        sine += _dot(tile, s, EXACT) * largest
    return cosine, sine


@triton.jit
def _workspace_addresses(workspace, image, images, h, frequency_w, TILE: tl.constexpr):
    """Addresses in a workspace (2, images, H, frequencies_w) of transforms along W, float32."""
    place = workspace + h[:, None] * TILE[3] + frequency_w[None, :]
    return (
        place + image.to(tl.int64) * (TILE[0] * TILE[3]),
        place + (image.to(tl.int64) + images) * (TILE[0] * TILE[3]),
    )


@triton.jit
def _transform_w_kernel(
    x,
    gate,
    workspace,
    tables,
    size,
    batch,
    channels,
    TILE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Transforms along W of gate * x into a workspace, for tiles too large for one program."""
    sample, channel = tl.program_id(0) // channels, tl.program_id(0) % channels
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    frequency_w = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    cosine, sine = _transform_w_in_blocks(
        x, gate, sample, channel, h, frequency_w, tables, size, TILE, BLOCK_H, BLOCK, BLOCK_W, RANK, EXACT
    )
    to_cosine, to_sine = _workspace_addresses(workspace, tl.program_id(0), batch * channels, h, frequency_w, TILE)
    tl.store(to_cosine, cosine)
    tl.store(to_sine, sine)


@triton.jit
def _spectrum_from(
    workspace,
    image,
    images,
    frequency_h,
    frequency_w,
    tables,
    TILE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """As `_spectrum`, from transforms along W in a workspace, some of H at a time."""
    cc = tl.zeros((CHUNK, BLOCK), tl.float32)
    cs = tl.zeros((CHUNK, BLOCK), tl.float32)
    sc = tl.zeros((CHUNK, BLOCK), tl.float32)
    ss = tl.zeros((CHUNK, BLOCK), tl.float32)
    for start in range(0, TILE[0], BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        at_cosine, at_sine = _workspace_addresses(workspace, image, images, h, frequency_w, TILE)
        cosine, sine = tl.load(at_cosine), tl.load(at_sine)
        if RANK == 1:
            cosine, sine = _twiddled(cosine, sine, tables[2], h, frequency_w, TILE, False)
        largest, inverse = _largest(tl.maximum(tl.abs(cosine), tl.abs(sine)))
        cosine, sine = _split(cosine * inverse, EXACT), _split(sine * inverse, EXACT)
        c, s = _waves(tables[1], frequency_h, h, TILE[2], TILE[0], EXACT)
        more_cc, more_cs, more_sc, more_ss = _spectrum(c, s, cosine, sine, EXACT)
        cc += more_cc * largest
        cs += more_cs * largest
        sc += more_sc * largest
        ss += more_ss * largest
    return cc, cs, sc, ss


@triton.jit
def _convolve_h_kernel(
    workspace,
    tables,
    spectrum,
    scales,
    batch,
    channels,
    PER_SAMPLE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    CONJUGATE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Convolve along H in a workspace, in place."""
    sample, channel = tl.program_id(0) % batch, tl.program_id(0) // batch
    image, images = sample * channels + channel, batch * channels
    kernel = channel + sample * channels * PER_SAMPLE
    spectrum += kernel.to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    HEIGHT: tl.constexpr = TILE[0]
    h = tl.arange(0, HEIGHT)
    frequency_w = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cosine = tl.zeros((HEIGHT, BLOCK), tl.float32)
    sine = tl.zeros((HEIGHT, BLOCK), tl.float32)
    for start in range(0, TILE[2], CHUNK):
        frequency_h = start + tl.arange(0, CHUNK)
        cc, cs, sc, ss = _spectrum_from(
            workspace, image, images, frequency_h, frequency_w, tables, TILE, BLOCK_H, BLOCK, CHUNK, RANK, EXACT
        )
        place = spectrum + frequency_h[:, None] * TILE[3] + frequency_w[None, :]
        cc, cs, sc, ss = _product(cc, cs, sc, ss, _load_parts(place, TILE[2] * TILE[3], RANK), RANK, CONJUGATE)
        largest, inverse = _largest(tl.maximum(tl.maximum(tl.abs(cc), tl.abs(cs)), tl.maximum(tl.abs(sc), tl.abs(ss))))
        c, s = _waves(tables[1], frequency_h, h, TILE[2], TILE[0], EXACT)
        more_cosine, more_sine = _back_along_h(c, s, cc * inverse, cs * inverse, sc * inverse, ss * inverse, EXACT)
        cosine += more_cosine * largest
        sine += more_sine * largest
    if RANK == 1:
        cosine, sine = _twiddled(cosine, sine, tables[2], h, frequency_w, TILE, True)
    scale = tl.load(scales + kernel)
    at_cosine, at_sine = _workspace_addresses(workspace, image, images, h, frequency_w, TILE)
    # Every thread has read before one writes
    tl.debug_barrier()
    tl.store(at_cosine, cosine * scale)
    tl.store(at_sine, sine * scale)


@triton.jit
def _transform_w_back_kernel(
    workspace,
    factor,
    y,
    other_factor,
    other_y,
    tables,
    size,
    batch,
    channels,
    TILE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A workspace transformed back along W: times `factor` into y, and times `other_factor` into `other_y` if given."""
    sample, channel = tl.program_id(0) // channels, tl.program_id(0) % channels
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    w = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)
    tile = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    for start in range(0, TILE[3], BLOCK):
        frequency_w = start + tl.arange(0, BLOCK)
        at_cosine, at_sine = _workspace_addresses(workspace, tl.program_id(0), batch * channels, h, frequency_w, TILE)
        cosine, sine = tl.load(at_cosine), tl.load(at_sine)
        largest, inverse = _largest(tl.maximum(tl.abs(cosine), tl.abs(sine)))
        c, s = _waves(tables[0], w, frequency_w, TILE[1], TILE[3], EXACT)
        part = _dot(_split(cosine * inverse, EXACT), _transposed(c), EXACT)
        part += _dot(_split(sine * inverse, EXACT), _transposed(s), EXACT)
        tile += part * largest
    h, w = h[:, None], w[None, :]
    mask = _inside(h, w, size, TILE, RANK)
    if other_y is not None:
        _store(tile, other_factor, other_y, sample, channel, h, w, mask)
    _store(tile, factor, y, sample, channel, h, w, mask)


@triton.jit
def _spectrum_w_bwd_kernel(
    x_w,
    dy_w,
    dspectrum,
    tables,
    batch,
    channels,
    samples,
    TILE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """As `_spectrum_bwd_kernel`, at CHUNK x BLOCK frequency_h, from transforms along W in two workspaces."""
    BLOCKS: tl.constexpr = TILE[3] // BLOCK
    COUNT: tl.constexpr = TILE[2] // CHUNK * BLOCKS
    block, image = tl.program_id(0) % COUNT, tl.program_id(0) // COUNT
    channel, group = image % channels, image // channels
    frequency_h = block // BLOCKS * CHUNK + tl.arange(0, CHUNK)
    frequency_w = block % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    sums = _no_spectrum(CHUNK, BLOCK, RANK)
    for index in range(0, tl.minimum(samples, batch - group * samples)):
        sample = group * samples + index
        place, images = sample * channels + channel, batch * channels
        values = _spectrum_from(
            x_w, place, images, frequency_h, frequency_w, tables, TILE, BLOCK_H, BLOCK, CHUNK, RANK, EXACT
        )
        dvalues = _spectrum_from(
            dy_w, place, images, frequency_h, frequency_w, tables, TILE, BLOCK_H, BLOCK, CHUNK, RANK, EXACT
        )
        sums = _add_sample(sums, values, dvalues, 1.0, RANK)
    place = dspectrum + (group * channels + channel).to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    _store_spectrum(place + frequency_h[:, None] * TILE[3] + frequency_w[None, :], sums, TILE[2] * TILE[3], RANK)
