"""Triton kernels of long convolutions by products with real matrices; `half_frequency` has the formulas.

A tile is lines x rows numbers of one channel of one sample, (a, b). Products have float16 operands, scaled so that the
largest number of a tile is 1 to 2, and float32 sums. If `EXACT`, an operand is a float16 number and the float16 rest
that it leaves, 22 bits together, and a product is three.

Arguments that come as tuples:
    A signal: its pointer, and its strides of sample, channel, line and row; or None.
    tables: pointers to waves (2, 2, ., .) of rows and of lines: numbers and rests, cosines and sines; and to the
        twiddle factors (2, lines, row_frequencies), float32, or None.
    TILE: lines, rows, line_frequencies, row_frequencies.
"""

import triton
import triton.language as tl

# What the rests of float16 operands are multiplied with, to be in its range.
REST = tl.constexpr(2048.0)


@triton.jit
def _split(tile, EXACT: tl.constexpr):
    """Operand and rest."""
    operand = tile.to(tl.float16)
    rest = operand
    if EXACT:
        rest = ((tile - operand.to(tl.float32)) * REST).to(tl.float16)
    return operand, rest


@triton.jit
def _dot(a, b, EXACT: tl.constexpr):
    """Product of two operands with their rests."""
    product = tl.dot(a[0], b[0])
    if EXACT:
        product += tl.dot(a[1], b[0], tl.dot(a[0], b[1])) * (1.0 / REST)
    return product


@triton.jit
def _largest(tile):
    """What a tile is divided by: the power of two below its largest number, so that bfloat16 stays exact."""
    largest = tl.max(tl.abs(tile))
    power = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(largest > 1e-30, power, 1.0)


@triton.jit
def _matrix(pointer, rows, columns, WIDTH: tl.constexpr):
    return tl.load(pointer + rows[:, None] * WIDTH + columns[None, :])


@triton.jit
def _waves(pointer, rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr):
    """Part of a table as operands: cosines, sines."""
    SIZE: tl.constexpr = HEIGHT * WIDTH
    cosine = _matrix(pointer, rows, columns, WIDTH)
    sine = _matrix(pointer + SIZE, rows, columns, WIDTH)
    cosine_rest, sine_rest = cosine, sine
    if EXACT:
        cosine_rest = _matrix(pointer + 2 * SIZE, rows, columns, WIDTH)
        sine_rest = _matrix(pointer + 3 * SIZE, rows, columns, WIDTH)
    return (cosine, cosine_rest), (sine, sine_rest)


@triton.jit
def _transposed(operand):
    return tl.trans(operand[0]), tl.trans(operand[1])


@triton.jit
def _inside(lines, rows, size, TILE: tl.constexpr, RANK: tl.constexpr):
    """Which places of a tile are tokens."""
    if RANK == 1:
        mask = lines[:, None] + TILE[0] * rows[None, :] < size[0]
    else:
        mask = (lines[:, None] < size[0]) & (rows[None, :] < size[1])
    return mask


@triton.jit
def _at(signal, sample, channel, lines, rows):
    """Addresses of a tile."""
    pointer, strides = signal
    image = sample.to(tl.int64) * strides[0] + channel.to(tl.int64) * strides[1]
    return pointer + image + (lines.to(tl.int64)[:, None] * strides[2] + rows.to(tl.int64)[None, :] * strides[3])


@triton.jit
def _load(signal, factor, sample, channel, lines, rows, mask):
    """A tile of a signal, times that of another unless it is None, float32."""
    tile = tl.load(_at(signal, sample, channel, lines, rows), mask=mask, other=0.0).to(tl.float32)
    if factor is not None:
        tile *= tl.load(_at(factor, sample, channel, lines, rows), mask=mask, other=0.0).to(tl.float32)
    return tile


@triton.jit
def _store(tile, factor, signal, sample, channel, lines, rows, mask):
    """A tile, times that of a signal unless it is None, into a signal."""
    if factor is not None:
        tile *= tl.load(_at(factor, sample, channel, lines, rows), mask=mask, other=0.0).to(tl.float32)
    tl.store(_at(signal, sample, channel, lines, rows), tile.to(signal[0].dtype.element_ty), mask=mask)


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
def _filtered(p, q, spectrum, PART: tl.constexpr, CONJUGATE: tl.constexpr):
    """Real and imaginary part of (p - iq) times a spectrum, or its conjugate."""
    real, imag = tl.load(spectrum).to(tl.float32), tl.load(spectrum + PART).to(tl.float32)
    if CONJUGATE:
        imag = -imag
    return p * real + q * imag, p * imag - q * real


@triton.jit
def _product(cc, cs, sc, ss, spectrum, PART: tl.constexpr, RANK: tl.constexpr, CONJUGATE: tl.constexpr):
    """The four products of `_spectrum`, of the result."""
    real, imag = _filtered(cc - ss, sc + cs, spectrum, PART, CONJUGATE)
    if RANK == 1:
        product = real, -imag, -imag, -real
    else:
        other_real, other_imag = _filtered(cc + ss, sc - cs, spectrum + 2 * PART, PART, CONJUGATE)
        product = real + other_real, other_imag - imag, -(imag + other_imag), other_real - real
    return product


@triton.jit
def _back_along_lines(c, s, cc, cs, sc, ss, EXACT: tl.constexpr):
    """Rows' transforms of the result, from some line frequencies."""
    c, s = _transposed(c), _transposed(s)
    cosine = _dot(c, _split(cc, EXACT), EXACT) + _dot(s, _split(sc, EXACT), EXACT)
    sine = _dot(c, _split(cs, EXACT), EXACT) + _dot(s, _split(ss, EXACT), EXACT)
    return cosine, sine


@triton.jit
def _convolve_lines(
    cosine,
    sine,
    columns,
    tables,
    spectrum,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    CONJUGATE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Rows' transforms (lines, BLOCK) at the row frequencies `columns` to those of the result.

    Line frequencies come in chunks, so that the four products are never all there.
    """
    LINES: tl.constexpr = TILE[0]
    lines = tl.arange(0, LINES)
    if RANK == 1:
        cosine, sine = _twiddled(cosine, sine, tables[2], lines, columns, TILE, False)
    cosine, sine = _split(cosine, EXACT), _split(sine, EXACT)
    back_cosine = tl.zeros((LINES, BLOCK), tl.float32)
    back_sine = tl.zeros((LINES, BLOCK), tl.float32)
    for start in range(0, TILE[2], CHUNK):
        frequencies = start + tl.arange(0, CHUNK)
        c, s = _waves(tables[1], frequencies, lines, TILE[2], TILE[0], EXACT)
        cc, cs, sc, ss = _spectrum(c, s, cosine, sine, EXACT)
        part = spectrum + frequencies[:, None] * TILE[3] + columns[None, :]
        cc, cs, sc, ss = _product(cc, cs, sc, ss, part, TILE[2] * TILE[3], RANK, CONJUGATE)
        more_cosine, more_sine = _back_along_lines(c, s, cc, cs, sc, ss, EXACT)
        back_cosine += more_cosine
        back_sine += more_sine
    if RANK == 1:
        back_cosine, back_sine = _twiddled(back_cosine, back_sine, tables[2], lines, columns, TILE, True)
    return back_cosine, back_sine


@triton.jit
def _convolve(
    tile,
    tables,
    spectrum,
    scale,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    CONJUGATE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A whole tile convolved with a kernel whose spectrum was divided by `scale`, BLOCK row frequencies at a time."""
    LINES: tl.constexpr = TILE[0]
    ROWS: tl.constexpr = TILE[1]
    rows = tl.arange(0, ROWS)
    largest = _largest(tile)
    tile = _split(tile / largest, EXACT)
    result = tl.zeros((LINES, ROWS), tl.float32)
    for start in range(0, TILE[3], BLOCK):
        columns = start + tl.arange(0, BLOCK)
        c, s = _waves(tables[0], rows, columns, TILE[1], TILE[3], EXACT)
        cosine, sine = _convolve_lines(
            _dot(tile, c, EXACT),
            _dot(tile, s, EXACT),
            columns,
            tables,
            spectrum,
            TILE,
            BLOCK,
            CHUNK,
            RANK,
            CONJUGATE,
            EXACT,
        )
        result += _dot(_split(cosine, EXACT), _transposed(c), EXACT)
        result += _dot(_split(sine, EXACT), _transposed(s), EXACT)
    return result * (largest * scale)


@triton.jit
def _long_conv_fwd_kernel(
    x,
    gate,
    out_gate,
    y,
    tables,
    spectrum,
    scales,
    size,
    batch,
    channels,
    PER_SAMPLE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One channel of one sample, whole; programs that share a kernel are neighbours."""
    sample, channel = tl.program_id(0) % batch, tl.program_id(0) // batch
    kernel = channel + sample * channels * PER_SAMPLE
    spectrum += kernel.to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    lines, rows = tl.arange(0, TILE[0]), tl.arange(0, TILE[1])
    mask = _inside(lines, rows, size, TILE, RANK)
    tile = _load(x, gate, sample, channel, lines, rows, mask)
    tile = _convolve(tile, tables, spectrum, tl.load(scales + kernel), TILE, BLOCK, CHUNK, RANK, False, EXACT)
    _store(tile, out_gate, y, sample, channel, lines, rows, mask)


@triton.jit
def _long_conv_bwd_kernel(
    dy,
    x,
    gate,
    out_gate,
    dx,
    dgate,
    dout_gate,
    tables,
    spectrum,
    scales,
    size,
    batch,
    channels,
    PER_SAMPLE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Gradients of x and of the gates, for whose second one the convolution is computed again."""
    sample, channel = tl.program_id(0) % batch, tl.program_id(0) // batch
    kernel = channel + sample * channels * PER_SAMPLE
    spectrum += kernel.to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    scale = tl.load(scales + kernel)
    lines, rows = tl.arange(0, TILE[0]), tl.arange(0, TILE[1])
    mask = _inside(lines, rows, size, TILE, RANK)
    if out_gate is not None:
        tile = _load(x, gate, sample, channel, lines, rows, mask)
        tile = _convolve(tile, tables, spectrum, scale, TILE, BLOCK, CHUNK, RANK, False, EXACT)
        _store(tile, dy, dout_gate, sample, channel, lines, rows, mask)
    tile = _load(dy, out_gate, sample, channel, lines, rows, mask)
    tile = _convolve(tile, tables, spectrum, scale, TILE, BLOCK, CHUNK, RANK, True, EXACT)
    if gate is not None:
        _store(tile, x, dgate, sample, channel, lines, rows, mask)
    _store(tile, gate, dx, sample, channel, lines, rows, mask)


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
        mask = _inside(lines, rows, size, TILE, RANK)
        tile = _load(signal, factor, sample, channel, lines, rows, mask)
        largest = _largest(tile)
        tile = _split(tile / largest, EXACT)
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
        largest = _largest(tl.maximum(tl.abs(cosine), tl.abs(sine)))
        cosine, sine = _split(cosine / largest, EXACT), _split(sine / largest, EXACT)
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
        part = spectrum + frequencies[:, None] * TILE[3] + columns[None, :]
        cc, cs, sc, ss = _product(cc, cs, sc, ss, part, TILE[2] * TILE[3], RANK, CONJUGATE)
        largest = _largest(tl.maximum(tl.maximum(tl.abs(cc), tl.abs(cs)), tl.maximum(tl.abs(sc), tl.abs(ss))))
        c, s = _waves(tables[1], frequencies, lines, TILE[2], TILE[0], EXACT)
        more_cosine, more_sine = _back_along_lines(c, s, cc / largest, cs / largest, sc / largest, ss / largest, EXACT)
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
        largest = _largest(tl.maximum(tl.abs(cosine), tl.abs(sine)))
        c, s = _waves(tables[0], rows, columns, TILE[1], TILE[3], EXACT)
        part = _dot(_split(cosine / largest, EXACT), _transposed(c), EXACT)
        part += _dot(_split(sine / largest, EXACT), _transposed(s), EXACT)
        tile += part * largest
    mask = _inside(lines, rows, size, TILE, RANK)
    if other_y is not None:
        _store(tile, other_factor, other_y, sample, channel, lines, rows, mask)
    _store(tile, factor, y, sample, channel, lines, rows, mask)


@triton.jit
def _spectrum_of(
    signal,
    factor,
    sample,
    channel,
    frequencies,
    columns,
    tables,
    size,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """As `_spectrum`, from a signal times a factor."""
    lines = tl.arange(0, TILE[0])
    cosine, sine = _rows_fwd(
        signal, factor, sample, channel, lines, columns, tables, size, TILE, TILE[0], BLOCK, TILE[1], RANK, EXACT
    )
    if RANK == 1:
        cosine, sine = _twiddled(cosine, sine, tables[2], lines, columns, TILE, False)
    largest = _largest(tl.maximum(tl.abs(cosine), tl.abs(sine)))
    c, s = _waves(tables[1], frequencies, lines, TILE[2], TILE[0], EXACT)
    cc, cs, sc, ss = _spectrum(c, s, _split(cosine / largest, EXACT), _split(sine / largest, EXACT), EXACT)
    return cc * largest, cs * largest, sc * largest, ss * largest


@triton.jit
def _spectrum_bwd_kernel(
    dy,
    x,
    gate,
    out_gate,
    workspaces,
    dspectrum,
    tables,
    size,
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
    """Gradient of a channel's spectrum at CHUNK x BLOCK frequencies, summed over `samples` samples.

    Rows' transforms of gate * x and out_gate * dy are in two workspaces, or computed here where those are None.
    Programs that read the same signals are neighbours.
    """
    PART: tl.constexpr = TILE[2] * TILE[3]
    BLOCKS: tl.constexpr = TILE[3] // BLOCK
    COUNT: tl.constexpr = TILE[2] // CHUNK * BLOCKS
    block, image = tl.program_id(0) % COUNT, tl.program_id(0) // COUNT
    channel, group = image % channels, image // channels
    frequencies = block // BLOCKS * CHUNK + tl.arange(0, CHUNK)
    columns = block % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    real = tl.zeros((CHUNK, BLOCK), tl.float32)
    imag = tl.zeros((CHUNK, BLOCK), tl.float32)
    other_real = tl.zeros((CHUNK, BLOCK), tl.float32)
    other_imag = tl.zeros((CHUNK, BLOCK), tl.float32)
    for index in range(0, tl.minimum(samples, batch - group * samples)):
        sample = group * samples + index
        if workspaces is None:
            cc, cs, sc, ss = _spectrum_of(
                x, gate, sample, channel, frequencies, columns, tables, size, TILE, BLOCK, RANK, EXACT
            )
            dcc, dcs, dsc, dss = _spectrum_of(
                dy, out_gate, sample, channel, frequencies, columns, tables, size, TILE, BLOCK, RANK, EXACT
            )
        else:
            place, images = sample * channels + channel, batch * channels
            cc, cs, sc, ss = _spectrum_from(
                workspaces[0], place, images, frequencies, columns, tables, TILE, LINE_BLOCK, BLOCK, CHUNK, RANK, EXACT
            )
            dcc, dcs, dsc, dss = _spectrum_from(
                workspaces[1], place, images, frequencies, columns, tables, TILE, LINE_BLOCK, BLOCK, CHUNK, RANK, EXACT
            )
        real += (cc - ss) * (dcc - dss) + (sc + cs) * (dsc + dcs)
        imag += (sc + cs) * (dcc - dss) - (cc - ss) * (dsc + dcs)
        if RANK == 2:
            other_real += (cc + ss) * (dcc + dss) + (sc - cs) * (dsc - dcs)
            other_imag += (sc - cs) * (dcc + dss) - (cc + ss) * (dsc - dcs)
    dspectrum += (group * channels + channel).to(tl.int64) * (2 * RANK * PART)
    dspectrum += frequencies[:, None] * TILE[3] + columns[None, :]
    tl.store(dspectrum, real)
    tl.store(dspectrum + PART, imag)
    if RANK == 2:
        tl.store(dspectrum + 2 * PART, other_real)
        tl.store(dspectrum + 3 * PART, other_imag)
