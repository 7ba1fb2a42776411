"""NVIDIA GPUs: is there one, what a pipeline asks of it, and the kernels that do it."""
