"""The Omni-RGPT family."""

from .build import adapt, build
from .configuration import OmniRgptConfig
from .modeling import OmniRgptModel
from .processor import OmniRgptProcessor

__all__ = ["OmniRgptConfig", "OmniRgptModel", "OmniRgptProcessor", "adapt", "build"]
