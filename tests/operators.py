"""The long convolutions by name, for several test files."""

from hyena_vision.ops import long_conv1d, long_conv2d

OPERATORS = {
    "causal": (long_conv1d, dict(causal=True)),
    "centred": (long_conv1d, dict(causal=False)),
    "linear": (long_conv2d, dict(padding="linear")),
    "circular": (long_conv2d, dict(padding="circular")),
}
