"""Ablations: records that differ from one base cell in one thing, as tables and figures, from the records alone."""
