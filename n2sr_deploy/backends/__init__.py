"""What runs the network: one file for each library, behind one small protocol."""

from n2sr_deploy.backends.base import Backend
from n2sr_deploy.backends.choosing import BACKENDS, open_backend

__all__ = ["BACKENDS", "Backend", "open_backend"]
