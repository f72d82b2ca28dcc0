"""Measurements: each runs its contenders interleaved in one process and prints medians, spread and the machine."""
