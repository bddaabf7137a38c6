"""A speaker encoder as one ONNX file: the graph, its check against torch, 8 bits."""
