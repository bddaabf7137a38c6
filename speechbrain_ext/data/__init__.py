"""Manifests, audio, sampling, augmentation, shards and the preparation of corpora."""
