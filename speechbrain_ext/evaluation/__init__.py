"""Evaluation on trial lists: embeddings of both sides, back-end, scores, report."""
