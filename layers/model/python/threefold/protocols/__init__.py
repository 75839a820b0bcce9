"""One module per wire format: bytes to a request, predictions to bytes."""
