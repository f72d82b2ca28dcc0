"""Triton kernels of long convolutions by products with real matrices; `half_frequency` has the formulas.

A tile is H x W numbers of one channel of one sample, (a, b). Products have float16 operands, scaled so that the
largest number of a tile is 1 to 2, and float32 sums. If `EXACT`, an operand is a float16 number and the float16 rest
that it leaves, 22 bits together, and a product is three.

Arguments that come as tuples:
    A signal: its pointer, and its strides of sample, channel, H and W; or None.
    tables: pointers to waves (2, 2, ., .) of W and of H: numbers and rests, cosines and sines; and to the
        twiddle factors (2, H, frequencies_w) in float32 and in float16, or None.
    TILE: H, W, frequencies_h, frequencies_w.
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
    """The power of two below a tile's largest number, so that bfloat16 stays exact, and its inverse."""
    bits = tl.max(tl.abs(tile)).to(tl.int32, bitcast=True) & 0x7F800000
    # 1 instead of what is below 1e-30; and the inverse of 2^127 would be no normal number
    bits = tl.where(bits < 0x0D800000, 0x3F800000, tl.minimum(bits, 0x7E800000))
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


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
def _inside(h, w, size, TILE: tl.constexpr, RANK: tl.constexpr):
    """Which places of a tile are tokens."""
    if RANK == 1:
        mask = h + TILE[0] * w < size[0]
    else:
        mask = (h < size[0]) & (w < size[1])
    return mask


@triton.jit
def _addresses(signal, sample, channel, h, w):
    """Addresses of a tile; h and w are indices with an axis each."""
    pointer, strides = signal
    image = sample.to(tl.int64) * strides[0] + channel.to(tl.int64) * strides[1]
    return pointer + image + (h.to(tl.int64) * strides[2] + w.to(tl.int64) * strides[3])


@triton.jit
def _load(signal, factor, sample, channel, h, w, mask):
    """A tile of a signal, times that of another unless it is None, float32."""
    tile = tl.load(_addresses(signal, sample, channel, h, w), mask=mask, other=0.0).to(tl.float32)
    if factor is not None:
        tile *= tl.load(_addresses(factor, sample, channel, h, w), mask=mask, other=0.0).to(tl.float32)
    return tile


@triton.jit
def _store(tile, factor, signal, sample, channel, h, w, mask):
    """A tile, times that of a signal unless it is None, into a signal."""
    if factor is not None:
        tile *= tl.load(_addresses(factor, sample, channel, h, w), mask=mask, other=0.0).to(tl.float32)
    tl.store(_addresses(signal, sample, channel, h, w), tile.to(signal[0].dtype.element_ty), mask=mask)


@triton.jit
def _load_parts(place, PART: tl.constexpr, RANK: tl.constexpr):
    """Real and imaginary part of a kernel's spectrum, and of an image also at the other frequencies."""
    parts = tl.load(place), tl.load(place + PART)
    if RANK == 2:
        parts = parts[0], parts[1], tl.load(place + 2 * PART), tl.load(place + 3 * PART)
    return parts


@triton.jit
def _filtered(p, q, real, imag, CONJUGATE: tl.constexpr):
    """Real and imaginary part of (p - iq) times a spectrum, or its conjugate."""
    real, imag = real.to(tl.float32), imag.to(tl.float32)
    if CONJUGATE:
        imag = -imag
    return p * real + q * imag, p * imag - q * real


@triton.jit
def _product(cc, cs, sc, ss, parts, RANK: tl.constexpr, CONJUGATE: tl.constexpr):
    """The four products of waves with transforms along W, for the result, with the parts of a kernel's spectrum."""
    real, imag = _filtered(cc - ss, sc + cs, parts[0], parts[1], CONJUGATE)
    if RANK == 1:
        product = real, -imag, -imag, -real
    else:
        other_real, other_imag = _filtered(cc + ss, sc - cs, parts[2], parts[3], CONJUGATE)
        product = real + other_real, other_imag - imag, -(imag + other_imag), other_real - real
    return product


# ---- whole tiles: (W, H), so that every product but the last takes the one before as its left operand, from
# registers, and a table as its right one


@triton.jit
def _halves(tile, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Left and right half of a tile (HEIGHT, 2 WIDTH)."""
    return tl.split(tl.permute(tl.reshape(tile, (HEIGHT, 2, WIDTH)), (0, 2, 1)))


@triton.jit
def _beside(left, right, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Inverse of `_halves`."""
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (HEIGHT, 2 * WIDTH))


@triton.jit
def _waves_w(tables, TILE: tl.constexpr, EXACT: tl.constexpr):
    return _waves(tables[0], tl.arange(0, TILE[1]), tl.arange(0, TILE[3]), TILE[1], TILE[3], EXACT)


@triton.jit
def _waves_h(tables, start, TILE: tl.constexpr, CHUNK: tl.constexpr, STACKED: tl.constexpr, EXACT: tl.constexpr):
    """Cosines and sines (CHUNK, H) at the frequencies of H from `start` on, or both as one operand."""
    h = tl.arange(0, TILE[0])
    if STACKED:
        index = tl.arange(0, 2 * CHUNK)
        index = index // CHUNK * TILE[2] + start + index % CHUNK
        number = _matrix(tables[1], index, h, TILE[0])
        rest = number
        if EXACT:
            rest = _matrix(tables[1] + 2 * TILE[2] * TILE[0], index, h, TILE[0])
        waves = number, rest
    else:
        waves = _waves(tables[1], start + tl.arange(0, CHUNK), h, TILE[2], TILE[0], EXACT)
    return waves


@triton.jit
def _filter(spectrum, start, TILE: tl.constexpr, CHUNK: tl.constexpr, RANK: tl.constexpr):
    """The parts (frequencies_w, CHUNK) of a kernel's spectrum at the frequencies of H from `start` on."""
    place = spectrum + tl.arange(0, TILE[3])[:, None] + (start + tl.arange(0, CHUNK))[None, :] * TILE[3]
    return _load_parts(place, TILE[2] * TILE[3], RANK)


@triton.jit
def _transform_w(tile, waves, tables, TILE: tl.constexpr, RANK: tl.constexpr, EXACT: tl.constexpr):
    """Transforms along W (frequencies_w, H) of operands (W, H)."""
    c, s = waves
    cosine, sine = _dot(_transposed(c), tile, EXACT), _dot(_transposed(s), tile, EXACT)
    if RANK == 1:
        cosine, sine = _twiddled_w(cosine, sine, tables, TILE, False, EXACT)
    return cosine, sine


@triton.jit
def _twiddled_w(cosine, sine, tables, TILE: tl.constexpr, BACK: tl.constexpr, EXACT: tl.constexpr):
    """(cosine - i sine), (frequencies_w, H), times the twiddle factors, or their conjugates."""
    place = tl.arange(0, TILE[3])[:, None] + tl.arange(0, TILE[0])[None, :] * TILE[3]
    # Their float16 form takes half the registers, and is as good as the operands
    place += tables[2] if EXACT else tables[3]
    c, s = tl.load(place).to(tl.float32), tl.load(place + TILE[0] * TILE[3]).to(tl.float32)
    if BACK:
        s = -s
    return cosine * c - sine * s, cosine * s + sine * c


@triton.jit
def _spectrum_along_h(
    cosine, sine, waves, TILE: tl.constexpr, CHUNK: tl.constexpr, STACKED: tl.constexpr, EXACT: tl.constexpr
):
    """The four products of waves of H with transforms along W as operands: (frequencies_w, CHUNK)."""
    if STACKED:
        waves = _transposed(waves)
        cc, sc = _halves(_dot(cosine, waves, EXACT), TILE[3], CHUNK)
        cs, ss = _halves(_dot(sine, waves, EXACT), TILE[3], CHUNK)
    else:
        c, s = _transposed(waves[0]), _transposed(waves[1])
        cc, sc = _dot(cosine, c, EXACT), _dot(cosine, s, EXACT)
        cs, ss = _dot(sine, c, EXACT), _dot(sine, s, EXACT)
    return cc, cs, sc, ss


@triton.jit
def _convolve_along_h(
    cosine,
    sine,
    waves,
    parts,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    STACKED: tl.constexpr,
    CONJUGATE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Transforms along W of the result, of what has CHUNK frequencies of H."""
    cc, cs, sc, ss = _spectrum_along_h(cosine, sine, waves, TILE, CHUNK, STACKED, EXACT)
    cc, cs, sc, ss = _product(cc, cs, sc, ss, parts, RANK, CONJUGATE)
    if STACKED:
        cosine = _dot(_split(_beside(cc, sc, TILE[3], CHUNK), EXACT), waves, EXACT)
        sine = _dot(_split(_beside(cs, ss, TILE[3], CHUNK), EXACT), waves, EXACT)
    else:
        c, s = waves
        cosine = _dot(_split(cc, EXACT), c, EXACT) + _dot(_split(sc, EXACT), s, EXACT)
        sine = _dot(_split(cs, EXACT), c, EXACT) + _dot(_split(ss, EXACT), s, EXACT)
    return cosine, sine


@triton.jit
def _kept(tables, spectrum, TILE: tl.constexpr, RANK: tl.constexpr, STACKED: tl.constexpr, EXACT: tl.constexpr):
    """What the samples share, where the spectrum is one chunk: waves of W and H, and the spectrum."""
    waves = _waves_h(tables, 0, TILE, TILE[2], STACKED, EXACT)
    return _waves_w(tables, TILE, EXACT), waves, _filter(spectrum, 0, TILE, TILE[2], RANK)


@triton.jit
def _convolve(
    tile,
    kept,
    tables,
    spectrum,
    scale,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    STACKED: tl.constexpr,
    CONJUGATE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A whole tile convolved with a kernel whose spectrum was divided by `scale`, CHUNK frequencies of H at a time."""
    largest, inverse = _largest(tile)
    waves_w = _waves_w(tables, TILE, EXACT) if kept is None else kept[0]
    cosine, sine = _transform_w(_split(tile * inverse, EXACT), waves_w, tables, TILE, RANK, EXACT)
    cosine, sine = _split(cosine, EXACT), _split(sine, EXACT)
    if kept is None:
        HEIGHT: tl.constexpr = TILE[3]
        WIDTH: tl.constexpr = TILE[0]
        back_cosine = tl.zeros((HEIGHT, WIDTH), tl.float32)
        back_sine = tl.zeros((HEIGHT, WIDTH), tl.float32)
        for start in range(0, TILE[2], CHUNK):
            waves = _waves_h(tables, start, TILE, CHUNK, STACKED, EXACT)
            parts = _filter(spectrum, start, TILE, CHUNK, RANK)
            more_cosine, more_sine = _convolve_along_h(
                cosine, sine, waves, parts, TILE, CHUNK, RANK, STACKED, CONJUGATE, EXACT
            )
            back_cosine += more_cosine
            back_sine += more_sine
        waves_w = _waves_w(tables, TILE, EXACT)
    else:
        back_cosine, back_sine = _convolve_along_h(
            cosine, sine, kept[1], kept[2], TILE, CHUNK, RANK, STACKED, CONJUGATE, EXACT
        )
    if RANK == 1:
        back_cosine, back_sine = _twiddled_w(back_cosine, back_sine, tables, TILE, True, EXACT)
    c, s = waves_w
    result = _dot(c, _split(back_cosine, EXACT), EXACT) + _dot(s, _split(back_sine, EXACT), EXACT)
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
    samples,
    PER_SAMPLE: tl.constexpr,
    KEEP: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    STACKED: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One channel, whole, of `samples` samples if KEEP, which needs a spectrum of one chunk, else of one.

    Programs that share a kernel are neighbours.
    """
    first, count, channel, kernel = _samples_of(batch, channels, samples, PER_SAMPLE, KEEP)
    spectrum += kernel.to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    scale = tl.load(scales + kernel)
    kept = None
    if KEEP:
        kept = _kept(tables, spectrum, TILE, RANK, STACKED, EXACT)
    h, w = tl.arange(0, TILE[0])[None, :], tl.arange(0, TILE[1])[:, None]
    mask = _inside(h, w, size, TILE, RANK)
    for index in range(0, count):
        sample = first + index
        tile = _load(x, gate, sample, channel, h, w, mask)
        tile = _convolve(tile, kept, tables, spectrum, scale, TILE, CHUNK, RANK, STACKED, False, EXACT)
        _store(tile, out_gate, y, sample, channel, h, w, mask)


@triton.jit
def _samples_of(batch, channels, samples, PER_SAMPLE: tl.constexpr, KEEP: tl.constexpr):
    """A program's first sample and their number, its channel and its kernel."""
    if KEEP:
        groups = tl.cdiv(batch, samples)
        first, channel = tl.program_id(0) % groups * samples, tl.program_id(0) // groups
        count = tl.minimum(samples, batch - first)
    else:
        # No loop then, out of which a compiler would move what registers cannot hold
        first, channel, count = tl.program_id(0) % batch, tl.program_id(0) // batch, 1
    return first, count, channel, channel + first * channels * PER_SAMPLE


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
    samples,
    PER_SAMPLE: tl.constexpr,
    KEEP: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    STACKED: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Gradients of x and of the gates, for whose second one, if asked for, the convolution is computed again."""
    first, count, channel, kernel = _samples_of(batch, channels, samples, PER_SAMPLE, KEEP)
    spectrum += kernel.to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    scale = tl.load(scales + kernel)
    kept = None
    if KEEP:
        kept = _kept(tables, spectrum, TILE, RANK, STACKED, EXACT)
    h, w = tl.arange(0, TILE[0])[None, :], tl.arange(0, TILE[1])[:, None]
    mask = _inside(h, w, size, TILE, RANK)
    for index in range(0, count):
        sample = first + index
        if dout_gate is not None:
            tile = _load(x, gate, sample, channel, h, w, mask)
            tile = _convolve(tile, kept, tables, spectrum, scale, TILE, CHUNK, RANK, STACKED, False, EXACT)
            _store(tile, dy, dout_gate, sample, channel, h, w, mask)
        tile = _load(dy, out_gate, sample, channel, h, w, mask)
        tile = _convolve(tile, kept, tables, spectrum, scale, TILE, CHUNK, RANK, STACKED, True, EXACT)
        if gate is not None:
            _store(tile, x, dgate, sample, channel, h, w, mask)
        _store(tile, gate, dx, sample, channel, h, w, mask)


@triton.jit
def _spectrum_of(
    signal,
    factor,
    sample,
    channel,
    h,
    w,
    mask,
    waves_w,
    waves,
    tables,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    STACKED: tl.constexpr,
    EXACT: tl.constexpr,
):
    """As `_spectrum_along_h`, from a signal times a factor; and what it must be multiplied with."""
    tile = _load(signal, factor, sample, channel, h, w, mask)
    largest, inverse = _largest(tile)
    cosine, sine = _transform_w(_split(tile * inverse, EXACT), waves_w, tables, TILE, RANK, EXACT)
    spectrum = _spectrum_along_h(_split(cosine, EXACT), _split(sine, EXACT), waves, TILE, CHUNK, STACKED, EXACT)
    return spectrum, largest


@triton.jit
def _spectrum_bwd_kernel(
    dy,
    x,
    gate,
    out_gate,
    dspectrum,
    tables,
    size,
    batch,
    channels,
    samples,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    STACKED: tl.constexpr,
    RANK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Gradient of a channel's spectrum at CHUNK frequencies of H, summed over `samples` samples.

    Programs that read the same signals are neighbours.
    """
    COUNT: tl.constexpr = TILE[2] // CHUNK
    start, image = tl.program_id(0) % COUNT * CHUNK, tl.program_id(0) // COUNT
    channel, group = image % channels, image // channels
    waves_w = _waves_w(tables, TILE, EXACT)
    waves = _waves_h(tables, start, TILE, CHUNK, STACKED, EXACT)
    h, w = tl.arange(0, TILE[0])[None, :], tl.arange(0, TILE[1])[:, None]
    mask = _inside(h, w, size, TILE, RANK)
    sums = _no_spectrum(TILE[3], CHUNK, RANK)
    for index in range(0, tl.minimum(samples, batch - group * samples)):
        sample = group * samples + index
        values, largest = _spectrum_of(
            x, gate, sample, channel, h, w, mask, waves_w, waves, tables, TILE, CHUNK, RANK, STACKED, EXACT
        )
        dvalues, dlargest = _spectrum_of(
            dy,
            out_gate,
            sample,
            channel,
            h,
            w,
            mask,
            waves_w,
            waves,
            tables,
            TILE,
            CHUNK,
            RANK,
            STACKED,
            EXACT,
        )
        sums = _add_sample(sums, values, dvalues, largest * dlargest, RANK)
    place = dspectrum + (group * channels + channel).to(tl.int64) * (2 * RANK * TILE[2] * TILE[3])
    place += tl.arange(0, TILE[3])[:, None] + (start + tl.arange(0, CHUNK))[None, :] * TILE[3]
    _store_spectrum(place, sums, TILE[2] * TILE[3], RANK)


@triton.jit
def _no_spectrum(HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr):
    zeros = tl.zeros((HEIGHT, WIDTH), tl.float32)
    sums = zeros, zeros
    if RANK == 2:
        sums = zeros, zeros, zeros, zeros
    return sums


@triton.jit
def _add_sample(sums, values, dvalues, factor, RANK: tl.constexpr):
    """Sums of the gradient of a spectrum, and that of one more sample."""
    cc, cs, sc, ss = values
    dcc, dcs, dsc, dss = dvalues
    p, q, dp, dq = (cc - ss) * factor, (sc + cs) * factor, dcc - dss, dsc + dcs
    real, imag = sums[0] + (p * dp + q * dq), sums[1] + (q * dp - p * dq)
    sums_out = real, imag
    if RANK == 2:
        p, q, dp, dq = (cc + ss) * factor, (sc - cs) * factor, dcc + dss, dsc - dcs
        sums_out = real, imag, sums[2] + (p * dp + q * dq), sums[3] + (q * dp - p * dq)
    return sums_out


@triton.jit
def _store_spectrum(place, sums, PART: tl.constexpr, RANK: tl.constexpr):
    tl.store(place, sums[0])
    tl.store(place + PART, sums[1])
    if RANK == 2:
        tl.store(place + 2 * PART, sums[2])
        tl.store(place + 3 * PART, sums[3])
