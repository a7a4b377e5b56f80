"""Commands of the benchmark: `python -m scripts.<name>` from the root of the repository."""
