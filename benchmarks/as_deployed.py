"""Imported before PyTorch: OpenMP's threads sleep, as in a process that only denoises.

A measurement that makes its own network has PyTorch in it, where these threads would spin.
"""

from n2sr_deploy import sampling

sampling.kernels()
