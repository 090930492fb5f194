"""The context managers of a configuration's models: exact where a tokenizer is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.chat.template import Template
from dialoop.gateway.context.manage import ContextManager, counter_for
from dialoop.gateway.context.policy import ContextPolicy, Strategy

if TYPE_CHECKING:
    from dialoop.gateway.pool import Model
    from dialoop.gateway.spec import GatewayJob, ModelEntry

_PLAIN = ContextPolicy()
"""For models of which the configuration says nothing."""


class Contexts:
    """A manager a model, made when it is first wanted.

    Args:
        job: the configuration.
        old: of an earlier one; managers of entries that have not changed are kept.

    Raises:
        UserError: a tokenizer cannot be read.
    """

    def __init__(self, job: GatewayJob, old: Contexts | None = None) -> None:
        self._entries = dict(job.models)
        self._made: dict[tuple[str, int | None, Strategy], ContextManager] = {}
        self._templates: dict[str, Template] = {}
        for name, entry in self._entries.items():
            if entry.tokenizer is None:
                continue
            known = old.template(name) if old and old.entry(name) == entry else None
            self._templates[name] = known or Template.from_folder(Path(entry.tokenizer))
        if old:
            kept = {name for name, entry in self._entries.items() if old.entry(name) == entry}
            self._made = {key: one for key, one in old.made.items() if key[0] in kept}

    @property
    def made(self) -> dict[tuple[str, int | None, Strategy], ContextManager]:
        """Managers by model, window and strategy."""
        return self._made

    def entry(self, name: str) -> ModelEntry | None:
        """What the configuration says of a model."""
        return self._entries.get(name)

    def template(self, name: str) -> Template | None:
        """A model's tokenizer and chat template, where they are at hand."""
        return self._templates.get(name)

    def find(self, model: Model, strategy: Strategy | None = None) -> ContextManager | None:
        """The manager of a model; None where neither its tokenizer nor its window is known.

        Args:
            model: what will answer.
            strategy: in place of the model's own, where the request asks for another.
        """
        entry = self._entries.get(model.name)
        policy = entry.context if entry else _PLAIN
        template = self._templates.get(model.name)
        window = policy.window_tokens or _window(model)
        if template is None and window is None:
            return None
        key = (model.name, window, strategy or policy.strategy)
        if key not in self._made:
            policy = policy.model_copy(update={"strategy": key[2]})
            self._made[key] = ContextManager(policy, counter_for(policy, template, window))
        return self._made[key]

    def window(self, model: Model) -> int | None:
        """Tokens that a model has for prompt and answer, as far as that is known."""
        entry, template = self._entries.get(model.name), self._templates.get(model.name)
        own = template.tokenizer.max_length if template else None
        return (entry.context.window_tokens if entry else None) or _window(model) or own

    def strategy(self, model: Model) -> Strategy:
        """What a model's policy does with a dialogue that is too long."""
        entry = self._entries.get(model.name)
        return (entry.context if entry else _PLAIN).strategy


def _window(model: Model) -> int | None:
    """The smallest window that an engine of the model tells."""
    told = [
        engine.windows[group.model]
        for group in model.groups
        for engine in group.engines
        if group.model in engine.windows
    ]
    return min(told, default=None)
