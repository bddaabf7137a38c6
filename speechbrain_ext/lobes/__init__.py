"""Encoders (waveform → hidden states), one file each, and heads (→ embedding)."""
