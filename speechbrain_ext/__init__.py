"""Speaker verification with w2v-BERT 2.0 for SpeechBrain: what the recipes share."""

__version__ = "0.1.0"
