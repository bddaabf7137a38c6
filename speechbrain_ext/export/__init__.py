"""A trained model as others take it: shared folder, card, hub, ONNX, checkpoints."""
