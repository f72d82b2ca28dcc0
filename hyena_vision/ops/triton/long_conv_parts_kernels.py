"""Triton kernels for tiles too large for one program; `long_conv_kernels` has what both share, and the notation.

Tiles are (lines, rows). Rows' transforms lie in a workspace (2, images, lines, row_frequencies), float32, between three
kernels: rows, lines in place, rows back.
"""

import triton
import triton.language as tl

from hyena_vision.ops.triton.long_conv_kernels import (
    _dot,
    _inside,
    _largest,
    _load,
    _matrix,
    _more,
    _no_spectrum,
    _parts_at,
    _product,
    _split,
    _store,
    _store_spectrum,
    _transposed,
    _waves,
)


@triton.jit
def _twiddled(cosine, sine, twiddle, lines, columns, TILE: tl.constexpr, BACK: tl.constexpr):
    """(cosine - i sine) times the twiddle factors, or their conjugates."""
    c = _matrix(twiddle, lines, columns, TILE[3])
    s = _matrix(twiddle + TILE[0] * TILE[3], lines, columns, TILE[3])
    if BACK:
        s = -s
    return cosine * c - sine * s, cosine * s + sine * c


@triton.jit
def _spectrum(c, s, cosine, sine, EXACT: tl.constexpr):
    """The four products of lines' waves with rows' transforms, for some line frequencies."""
    return _dot(c, cosine, EXACT), _dot(c, sine, EXACT), _dot(s, cosine, EXACT), _dot(s, sine, EXACT)


@triton.jit
def _back_along_lines(c, s, cc, cs, sc, ss, EXACT: tl.constexpr):
    """Rows' transforms of the result, from some line frequencies."""
    c, s = _transposed(c), _transposed(s)
    cosine = _dot(c, _split(cc, EXACT), EXACT) + _dot(s, _split(sc, EXACT), EXACT)
    sine = _dot(c, _split(cs, EXACT), EXACT) + _dot(s, _split(ss, EXACT), EXACT)
    return cosine, sine


@triton.jit
def _rows_fwd(
    signal,
    factor,
    sample,
    channel,
    lines,
    columns,
    tables,
    size,
    TILE: tl.constexpr,
    LINE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Rows' transforms (LINE_BLOCK, BLOCK) of a signal times a factor, some rows at a time."""
    cosine = tl.zeros((LINE_BLOCK, BLOCK), tl.float32)
    sine = tl.zeros((LINE_BLOCK, BLOCK), tl.float32)
    for start in range(0, TILE[1], ROW_BLOCK):
        rows = start + tl.arange(0, ROW_BLOCK)
        mask = _inside(lines[:, None], rows[None, :], size, TILE, RANK)
        tile = _load(signal, factor, sample, channel, lines[:, None], rows[None, :], mask)
        largest, inverse = _largest(tile)
        tile = _split(tile * inverse, EXACT)
        c, s = _waves(tables[0], rows, columns, TILE[1], TILE[3], EXACT)
        cosine += _dot(tile, c, EXACT) * largest
        sine += _dot(tile, s, EXACT) * largest
    return cosine, sine


@triton.jit
def _rows_at(workspace, image, images, lines, columns, TILE: tl.constexpr):
    """Addresses in a workspace (2, images, lines, row_frequencies) of rows' transforms, float32."""
    place = workspace + lines[:, None] * TILE[3] + columns[None, :]
    return (
        place + image.to(tl.int64) * (TILE[0] * TILE[3]),
        place + (image.to(tl.int64) + images) * (TILE[0] * TILE[3]),
    )


@triton.jit
def _rows_fwd_kernel(
    x,
    gate,
    workspace,
    tables,
    size,
    batch,
    channels,
    TILE: tl.constexpr,
    LINE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Rows' transforms of gate * x into a workspace, for tiles too large for one program."""
    sample, channel = tl.program_id(0) // channels, tl.program_id(0) % channels
    lines = tl.program_id(1) * LINE_BLOCK + tl.arange(0, LINE_BLOCK)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    cosine, sine = _rows_fwd(
        x, gate, sample, channel, lines, columns, tables, size, TILE, LINE_BLOCK, BLOCK, ROW_BLOCK, RANK, EXACT
    )
    to_cosine, to_sine = _rows_at(workspace, tl.program_id(0), batch * channels, lines, columns, TILE)
    tl.store(to_cosine, cosine)
    tl.store(to_sine, sine)


@triton.jit
def _spectrum_from(
    workspace,
    image,
    images,
    frequencies,
    columns,
    tables,
    TILE: tl.constexpr,
    LINE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """As `_spectrum`, from rows' transforms in a workspace, some lines at a time."""
    cc = tl.zeros((CHUNK, BLOCK), tl.float32)
    cs = tl.zeros((CHUNK, BLOCK), tl.float32)
    sc = tl.zeros((CHUNK, BLOCK), tl.float32)
    ss = tl.zeros((CHUNK, BLOCK), tl.float32)
    for start in range(0, TILE[0], LINE_BLOCK):
        lines = start + tl.arange(0, LINE_BLOCK)
        at_cosine, at_sine = _rows_at(workspace, image, images, lines, columns, TILE)
        cosine, sine = tl.load(at_cosine), tl.load(at_sine)
        if RANK == 1:
            cosine, sine = _twiddled(cosine, sine, tables[2], lines, columns, TILE, False)
        largest, inverse = _largest(tl.maximum(tl.abs(cosine), tl.abs(sine)))
        cosine, sine = _split(cosine * inverse, EXACT), _split(sine * inverse, EXACT)
        c, s = _waves(tables[1], frequencies, lines, TILE[2], TILE[0], EXACT)
        more_cc, more_cs, more_sc, more_ss = _spectrum(c, s, cosine, sine, EXACT)
        cc += more_cc * largest
        cs += more_cs * largest
        sc += more_sc * largest
        ss += more_ss * largest
    return cc, cs, sc, ss


@triton.jit
def _lines_kernel(
    workspace,
    tables,
    spectrum,
    scales,
    batch,
    channels,
    PER_SAMPLE: tl.constexpr,
    TILE: tl.constexpr,
    LINE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    CONJUGATE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Convolve along the lines of a workspace, in place."""
    sample, channel = tl.program_id(0) % batch, tl.program_id(0) // batch
    image, images = sample * channels + channel, batch * channels
    kernel = channel + sample * channels * PER_SAMPLE
    spectrum += kernel.to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    LINES: tl.constexpr = TILE[0]
    lines = tl.arange(0, LINES)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cosine = tl.zeros((LINES, BLOCK), tl.float32)
    sine = tl.zeros((LINES, BLOCK), tl.float32)
    for start in range(0, TILE[2], CHUNK):
        frequencies = start + tl.arange(0, CHUNK)
        cc, cs, sc, ss = _spectrum_from(
            workspace, image, images, frequencies, columns, tables, TILE, LINE_BLOCK, BLOCK, CHUNK, RANK, EXACT
        )
        place = spectrum + frequencies[:, None] * TILE[3] + columns[None, :]
        cc, cs, sc, ss = _product(cc, cs, sc, ss, _parts_at(place, TILE[2] * TILE[3], RANK), RANK, CONJUGATE)
        largest, inverse = _largest(tl.maximum(tl.maximum(tl.abs(cc), tl.abs(cs)), tl.maximum(tl.abs(sc), tl.abs(ss))))
        c, s = _waves(tables[1], frequencies, lines, TILE[2], TILE[0], EXACT)
        more_cosine, more_sine = _back_along_lines(c, s, cc * inverse, cs * inverse, sc * inverse, ss * inverse, EXACT)
        cosine += more_cosine * largest
        sine += more_sine * largest
    if RANK == 1:
        cosine, sine = _twiddled(cosine, sine, tables[2], lines, columns, TILE, True)
    scale = tl.load(scales + kernel)
    at_cosine, at_sine = _rows_at(workspace, image, images, lines, columns, TILE)
    # Every thread has read before one writes
    tl.debug_barrier()
    tl.store(at_cosine, cosine * scale)
    tl.store(at_sine, sine * scale)


@triton.jit
def _rows_back_kernel(
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
    LINE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Rows of a workspace transformed back: times `factor` into y, and times `other_factor` into `other_y` if given."""
    sample, channel = tl.program_id(0) // channels, tl.program_id(0) % channels
    lines = tl.program_id(1) * LINE_BLOCK + tl.arange(0, LINE_BLOCK)
    rows = tl.program_id(2) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    tile = tl.zeros((LINE_BLOCK, ROW_BLOCK), tl.float32)
    for start in range(0, TILE[3], BLOCK):
        columns = start + tl.arange(0, BLOCK)
        at_cosine, at_sine = _rows_at(workspace, tl.program_id(0), batch * channels, lines, columns, TILE)
        cosine, sine = tl.load(at_cosine), tl.load(at_sine)
        largest, inverse = _largest(tl.maximum(tl.abs(cosine), tl.abs(sine)))
        c, s = _waves(tables[0], rows, columns, TILE[1], TILE[3], EXACT)
        part = _dot(_split(cosine * inverse, EXACT), _transposed(c), EXACT)
        part += _dot(_split(sine * inverse, EXACT), _transposed(s), EXACT)
        tile += part * largest
    lines, rows = lines[:, None], rows[None, :]
    mask = _inside(lines, rows, size, TILE, RANK)
    if other_y is not None:
        _store(tile, other_factor, other_y, sample, channel, lines, rows, mask)
    _store(tile, factor, y, sample, channel, lines, rows, mask)


@triton.jit
def _spectrum_rows_bwd_kernel(
    rows,
    dy_rows,
    dspectrum,
    tables,
    batch,
    channels,
    samples,
    TILE: tl.constexpr,
    LINE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """As `_spectrum_bwd_kernel`, at CHUNK x BLOCK frequencies, from rows' transforms in two workspaces."""
    BLOCKS: tl.constexpr = TILE[3] // BLOCK
    COUNT: tl.constexpr = TILE[2] // CHUNK * BLOCKS
    block, image = tl.program_id(0) % COUNT, tl.program_id(0) // COUNT
    channel, group = image % channels, image // channels
    frequencies = block // BLOCKS * CHUNK + tl.arange(0, CHUNK)
    columns = block % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    sums = _no_spectrum(CHUNK, BLOCK, RANK)
    for index in range(0, tl.minimum(samples, batch - group * samples)):
        sample = group * samples + index
        place, images = sample * channels + channel, batch * channels
        values = _spectrum_from(
            rows, place, images, frequencies, columns, tables, TILE, LINE_BLOCK, BLOCK, CHUNK, RANK, EXACT
        )
        dvalues = _spectrum_from(
            dy_rows, place, images, frequencies, columns, tables, TILE, LINE_BLOCK, BLOCK, CHUNK, RANK, EXACT
        )
        sums = _more(sums, values, dvalues, 1.0, RANK)
    place = dspectrum + (group * channels + channel).to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    _store_spectrum(place + frequencies[:, None] * TILE[3] + columns[None, :], sums, TILE[2] * TILE[3], RANK)
