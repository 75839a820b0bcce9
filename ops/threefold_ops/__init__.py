"""The operator's room: powers and dependencies that Lambda must not have."""
