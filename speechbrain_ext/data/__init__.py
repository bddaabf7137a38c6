"""Manifests, sampling, augmentation and the demonstration corpus."""
