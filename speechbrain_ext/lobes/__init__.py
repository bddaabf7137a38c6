"""Encoders and heads, one file each."""
