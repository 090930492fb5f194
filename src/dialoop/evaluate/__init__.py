"""Evaluation: tasks for a model or an endpoint, statistics of their scores, and the reports."""
