"""An encoder and its head as one ONNX file: graph, export, check, 8 bits."""
