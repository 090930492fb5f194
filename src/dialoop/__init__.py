"""From chat records to a governed dialogue service on your own machines, and round again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialoop.models.chat_model import ChatModel

__version__ = "0.1.0"
__all__ = ["ChatModel", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `ChatModel` when it is first asked for: `import dialoop` stays light."""
    if name == "ChatModel":
        from dialoop.models.chat_model import ChatModel  # noqa: PLC0415

        return ChatModel
    raise AttributeError(f"module `dialoop` has no attribute `{name}`")
