"""The stacks: what AWS holds of Threefold, and who may do what."""
