"""Preparing a corpus: finding, choosing, checking and splitting its recordings."""
