"""Recordings in tar files: written, indexed, and trained from in their order."""
