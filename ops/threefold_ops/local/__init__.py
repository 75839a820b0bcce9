"""The embedded AWS: the same stacks, on loopback, without an account."""
