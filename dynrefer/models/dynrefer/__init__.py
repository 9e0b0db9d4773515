"""The DynRefer family."""

from .build import adapt, build
from .config import DynReferConfig
from .model import DynReferModel
from .processor import DynReferProcessor

__all__ = ["DynReferConfig", "DynReferModel", "DynReferProcessor", "adapt", "build"]
