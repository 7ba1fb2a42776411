"""What runs the network: one file for each library, behind one small protocol."""

from n2sr_deploy.backends.base import Backend
from n2sr_deploy.backends.choosing import BACKENDS, check_backend, open_backend

__all__ = ["BACKENDS", "Backend", "check_backend", "open_backend"]
