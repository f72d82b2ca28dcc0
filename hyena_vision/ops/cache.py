"""Where this package keeps what it makes on a user's machine: compiled libraries, tables of measured backends."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """`HYENA_VISION_CACHE`, else `hyena_vision` in `XDG_CACHE_HOME` or ~/.cache; None for a user without a home."""
    named = os.environ.get("HYENA_VISION_CACHE")
    base = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hyena_vision"))
    # A folder of its own, whoever else writes to the one around it; Windows has no numbers of users
    user = f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"
    return base / user if named or base.is_absolute() else None
