"""The commands `submit` and `overnight`. They speak HTTP with a rig; loading them loads no more than click."""

from api.cli.overnight import overnight
from api.cli.submit import submit

__all__ = ["overnight", "submit"]
