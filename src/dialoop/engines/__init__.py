"""Engines: processes that serve a model, behind one protocol."""
