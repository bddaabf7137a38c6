"""Training: the Brain, the terms of its loss, validation, checkpoints."""
