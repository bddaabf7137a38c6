"""Install speechbrain_ext; constraints.txt holds the tested versions."""

import re
from pathlib import Path

from setuptools import find_packages, setup

GRADIO = "gradio>=6,<7"  # the page to try a model
MEDIA = "av>=14"  # m4a, mp4, webm, …; ffmpeg on PATH does as well
WEBDATASET = "webdataset>=1.0,<2"
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5", "torch>=2.8"]
HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "speechbrain_ext/__init__.py").read_text()
)[1]

setup(
    name="speechbrain_ext",
    version=VERSION,
    description="Speaker verification and anti-spoofing for SpeechBrain: pretrained "
    "encoders and their peers, exact structured pruning, distilled students",
    long_description=(HERE / "README.md").read_text(encoding="utf-8")
    if (HERE / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # Where to get it, for cards and messages. No index holds the package, and a name
    # that is free there could become anybody's. A fork sets its own.
    url="https://repository.example/speechbrain_ext",
    packages=find_packages(include=["speechbrain_ext", "speechbrain_ext.*"]),
    package_data={"speechbrain_ext": ["**/*.json", "**/*.md"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchaudio>=2.4",
        "speechbrain>=1.1,<2",
        "transformers>=5.0,<6",
        "huggingface_hub",
        "filelock>=3.12",  # voices and shards have one writer at a time
        "Jinja2>=3",  # the model card's template
        "safetensors>=0.4",
        "peft>=0.18",
        "HyperPyYAML>=1.2.3",
        "numpy>=2.0",
        "pydantic>=2.7",
        "pyarrow>=17",
        "scipy>=1.12",
        "soundfile>=0.12",
        "silero-vad>=6.2.3,<7",  # its weights, which are inside
        "matplotlib>=3.7",
        "psutil",  # which processes torchrun started
        "tqdm",
    ],
    extras_require={
        # espeak-ng is GPL-3: only the demonstration corpus needs it
        "demo": ["espeakng-loader==0.2.4"],
        "app": [GRADIO],
        "media": [MEDIA],
        "shards": [WEBDATASET],  # to make tar shards; training from them needs none
        "onnx": ONNX,  # to export; to run a file, onnxruntime alone
        # selenium drives Debian's chromium, where there is one
        "dev": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            GRADIO,
            MEDIA,
            WEBDATASET,
            "selenium>=4.20",
            *ONNX,
        ],
    },
)
