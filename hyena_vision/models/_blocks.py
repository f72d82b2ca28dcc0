"""Blocks of a model by a short text: "all", "every 2", "first 0.75", "last 0.25", or their indices."""

from collections.abc import Sequence


def chosen_blocks(blocks: str | int | Sequence[int], depth: int, argument: str = "blocks") -> list[int]:
    """Indices of the blocks that a choice names.

    Args:
        blocks: "all"; "every n", for the n-th, the 2n-th and so on; "first f" or "last f", for that share of the depth
            (0 < f <= 1, rounded to whole blocks); or indices, of which negative ones count from the end.
        depth: Number of blocks.
        argument: Name of the argument, for messages.

    Returns:
        Indices in rising order, at least one.

    Raises:
        ValueError: The choice is none of these, or names no block or one that is not there.
    """
    expected = f'{argument} must be "all", "every n", "first f", "last f" or indices'
    if isinstance(blocks, str):
        word, _, number = blocks.partition(" ")
        try:
            value = float(number) if number else 1.0
        except ValueError:
            value = 0.0
        if blocks == "all":
            chosen = list(range(depth))
        elif word == "every" and number.isdecimal() and value >= 1:
            chosen = list(range(int(number) - 1, depth, int(number)))
        elif word in ("first", "last") and number and 0 < value <= 1:
            count = round(value * depth)
            chosen = list(range(count) if word == "first" else range(depth - count, depth))
        else:
            raise ValueError(f"{expected}, got {blocks!r}")
    else:
        given = [blocks] if isinstance(blocks, int) else list(blocks)
        if not all(isinstance(index, int) and -depth <= index < depth for index in given):
            raise ValueError(f"{expected} of {depth} blocks, got {blocks!r}")
        chosen = sorted({index % depth for index in given})
    if not chosen:
        raise ValueError(f"{argument} must name at least one of {depth} blocks, got {blocks!r}")
    return chosen
