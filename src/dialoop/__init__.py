"""From chat records to a governed dialogue service on your own machines, and round again."""

__version__ = "0.1.0"
