"""The figures of docs/performance.md, each measured against a reference in the same run."""
