"""The report page: one HTML file that needs nothing else, made from tables, figures and the claims ledger."""

from propulsion.harness.page.document import render

__all__ = ["render"]
