"""Speaker verification and anti-spoofing for SpeechBrain: what the recipes share."""

__version__ = "0.1.0"
