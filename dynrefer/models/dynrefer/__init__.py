"""The DynRefer family."""

from .build import adapt, build
from .configuration import DynReferConfig
from .modeling import DynReferModel
from .processor import DynReferProcessor

__all__ = ["DynReferConfig", "DynReferModel", "DynReferProcessor", "adapt", "build"]
