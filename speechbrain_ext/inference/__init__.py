"""What people do with a trained model: verify, embed, share.

Names are imported when they are first used, so that a program which needs one of them
does not wait for what the others import.
"""

import importlib

_MODULES = {
    "Comparison": "verifier",
    "OnnxSpeakerEncoder": "onnx_runner",
    "SpeakerVerifier": "verifier",
    "Thresholds": "thresholds",
    "convert_released": "convert",
    "export_onnx": "onnx_export",
    "load_thresholds": "thresholds",
    "save_thresholds": "thresholds",
}

__all__ = sorted(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    return getattr(module, name)


def __dir__():
    return sorted({*globals(), *_MODULES})
