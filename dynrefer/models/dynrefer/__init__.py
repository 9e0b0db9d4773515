"""The DynRefer family."""

from .build import build
from .config import DynReferConfig
from .model import DynReferModel
from .processor import DynReferProcessor

__all__ = ["DynReferConfig", "DynReferModel", "DynReferProcessor", "build"]
