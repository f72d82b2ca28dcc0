"""Fused kernels in Triton for GPUs; imported by the first call that asks for them."""
