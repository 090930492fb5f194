"""Evaluation: held-out loss, answers side by side, keyword checks, and the reports."""
