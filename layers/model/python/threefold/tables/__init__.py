"""CSV in and out: planning chunks, reading rows, writing joined results."""
