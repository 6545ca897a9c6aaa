"""Select: which units go, for a ratio or a target."""

from .choose import Options, choose

__all__ = ["Options", "choose"]
