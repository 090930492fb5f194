"""Evaluation: loss, questions, choices, instructions, tool calls, memory, retrieval, judges, speed; reports."""
