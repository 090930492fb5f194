"""Dialogue: messages, and their rendering to text, token ids and a loss mask."""
