"""Serving: the embedded engine behind an OpenAI-compatible URL, batch inference, terminal chat."""
