"""medhaul: haul public medical image collections onto a cluster."""

__version__ = "0.1.0"
