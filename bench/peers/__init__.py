"""Other ways to run the same checkpoint on a CPU, measured beside an ONNX artifact."""
