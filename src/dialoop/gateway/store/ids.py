"""Names of new things: a prefix that says what it is, and 96 random bits."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """A name that nobody can guess and nothing else has."""
    return f"{prefix}_{secrets.token_hex(12)}"
