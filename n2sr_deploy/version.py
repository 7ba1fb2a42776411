"""The version of n2sr that is installed."""

from importlib.metadata import version

VERSION = version("n2sr")
