"""The RegionSpot family."""

from .build import adapt, build
from .configuration import RegionSpotConfig
from .modeling import RegionSpotModel
from .processor import RegionSpotProcessor

__all__ = ["RegionSpotConfig", "RegionSpotModel", "RegionSpotProcessor", "adapt", "build"]
