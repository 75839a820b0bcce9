"""Threefold: one ONNX model, three doors on AWS Lambda."""
