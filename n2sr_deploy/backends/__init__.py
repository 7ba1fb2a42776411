"""What runs the network: one file for each library, behind one small protocol."""

from n2sr_deploy.backends.base import Backend, DeviceContext, DeviceNetwork
from n2sr_deploy.backends.choosing import BACKENDS, check_backend, open_backend, open_network

__all__ = [
    "BACKENDS",
    "Backend",
    "DeviceContext",
    "DeviceNetwork",
    "check_backend",
    "open_backend",
    "open_network",
]
