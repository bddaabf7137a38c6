"""What people do with a trained model: verify, embed, share.

Names are imported when they are first used, so that a program which needs one of them
does not wait for what the others import.
"""

import importlib

_MODULES = {
    "Comparison": "inference.verifier",
    "Detected": "inference.detector",
    "Identification": "inference.voices.identification",
    "OnnxSpeakerEncoder": "inference.onnx_runner",
    "OnnxSpoofingDetector": "inference.onnx_runner",
    "Segment": "inference.sources",
    "SpeakerVerifier": "inference.verifier",
    "SpoofingDetector": "inference.detector",
    "Thresholds": "inference.thresholds",
    "Voices": "inference.voices",
    "convert_released": "export.published.convert",
    "export_onnx": "export.onnx.export",
    "load_thresholds": "inference.thresholds",
    "save_thresholds": "inference.thresholds",
}

__all__ = sorted(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"speechbrain_ext.{_MODULES[name]}")
    return getattr(module, name)


def __dir__():
    return sorted({*globals(), *_MODULES})
