"""The registry from the operator's side: what is published, what serves, what can go."""
