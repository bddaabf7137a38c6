"""Trials, metrics and pictures. Nothing here imports training code."""
