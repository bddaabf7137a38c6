"""Spoofing detection: genuine speech or not, by one score of each recording."""
