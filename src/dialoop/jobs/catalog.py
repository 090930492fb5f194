"""Every verb: its schema, where its `run` and `plan` live, and how help shows it.

Rows name modules as text, so that reading the table imports nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dialoop.core.schema import Result, Spec

Run = Callable[..., "Result"]
Group = Literal["Start here", "Data and models", "Train", "Use", "This machine"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class JobKind:
    """One verb of the system."""

    spec: str
    """`module:Class` of its schema."""
    run: str
    """`module:function`, called as `run(job, emit)`; `run(job, emit, read, write)` when
    interactive, where `read(prompt)` gives a line and `write(text)` shows text as it comes."""
    summary: str
    """One line for help."""
    group: Group
    plan: str | None = None
    """`module:function`: what a job would do, for `--dry-run`; called as `plan(job)`."""
    preset: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    """What the verb itself says of the job."""
    positional: str | None = None
    """The field that arguments without a flag go to."""
    also: tuple[str, ...] = ()
    """Other names of the verb."""
    interactive: bool = False

    def load_spec(self) -> type[Spec]:
        """Import the schema."""
        return _load(self.spec)

    def load_run(self) -> Run:
        """Import the implementation."""
        return _load(self.run)

    def load_plan(self) -> Callable[[Any], Result] | None:
        """Import the planner, where there is one."""
        return _load(self.plan) if self.plan else None


_OBJECTIVES = {
    "sft": "tune a model on dialogues",
    "pt": "go on pre-training a model on text",
    "dpo": "prefer chosen answers to rejected ones",
    "kto": "raise wanted answers and lower unwanted ones, judged one by one",
    "orpo": "imitate chosen answers and lower the odds of rejected ones",
    "simpo": "prefer chosen answers by a margin, without a reference model",
    "cpo": "prefer chosen answers while imitating them",
    "grpo": "let a model answer, reward its answers, and raise the better ones",
    "gkd": "imitate a teacher's token distributions, on data or on a model's own answers",
    "rm": "score answers: a reward model from preferences",
    "embed": "embed texts: near vectors for queries and their passages",
    "rerank": "score passages together with their query",
    "classify": "tell which label a text has",
}
"""What each training verb does; the verb is its objective's kind."""


def _train(kind: str, summary: str) -> JobKind:
    return JobKind(
        spec="dialoop.train.spec:TrainJob",
        run="dialoop.train.run:run",
        plan="dialoop.train.plan:plan",
        summary=summary,
        group="Train",
        preset={"objective": {"kind": kind}},
    )


CATALOG: dict[str, JobKind] = {
    "quickstart": JobKind(
        spec="dialoop.quickstart.spec:QuickstartJob",
        run="dialoop.quickstart.run:run",
        summary="the main job on this machine: tune a small real model, measure it, serve it",
        group="Start here",
    ),
    "data inspect": JobKind(
        spec="dialoop.data.spec:InspectJob",
        run="dialoop.jobs.data:inspect",
        summary="layouts, rows, problems by reason, lengths, a preview of the loss mask",
        group="Data and models",
        positional="paths",
    ),
    "data convert": JobKind(
        spec="dialoop.data.spec:ConvertJob",
        run="dialoop.jobs.data:convert",
        summary="canonical JSON Lines, with rejected rows and their reasons beside it",
        group="Data and models",
        positional="paths",
    ),
    "data list": JobKind(
        spec="dialoop.data.spec:ListJob",
        run="dialoop.data.run:list_datasets",
        summary="well-known data sets that have a short name",
        group="Data and models",
    ),
    "models pull": JobKind(
        spec="dialoop.models.spec:PullJob",
        run="dialoop.models.run:pull",
        summary="bring a model onto this machine, checked and cached",
        group="Data and models",
        positional="name",
    ),
    "models list": JobKind(
        spec="dialoop.models.spec:ListJob",
        run="dialoop.models.run:list_models",
        summary="models with a short name, and which of them are here",
        group="Data and models",
    ),
    "models show": JobKind(
        spec="dialoop.models.spec:ShowJob",
        run="dialoop.models.run:show",
        summary="what a model is: shape, size, licence, source",
        group="Data and models",
        positional="name",
    ),
    **{kind: _train(kind, summary) for kind, summary in _OBJECTIVES.items()},
    "merge": JobKind(
        spec="dialoop.models.spec:MergeJob",
        run="dialoop.models.merge:run",
        summary="merge an adapter into its base, and check that both agree",
        group="Use",
    ),
    "quantize": JobKind(
        spec="dialoop.quantize.spec:QuantizeJob",
        run="dialoop.quantize.run:run",
        summary="a model's weights in fewer bits, checked against the model",
        group="Use",
    ),
    "evaluate": JobKind(
        spec="dialoop.evaluate.spec:EvaluateJob",
        run="dialoop.evaluate.run:run",
        summary="measure a model or an endpoint, alone or beside another; a report with verdicts",
        group="Use",
    ),
    "verify": JobKind(
        spec="dialoop.verify.spec:VerifyJob",
        run="dialoop.verify.run:run",
        summary="prove that adapter, merged, quantized and served forms of a model agree",
        group="Use",
        positional="models",
    ),
    "chat": JobKind(
        spec="dialoop.serve.spec:ChatJob",
        run="dialoop.serve.terminal:run",
        summary="talk to a model in the terminal",
        group="Use",
        interactive=True,
    ),
    "infer": JobKind(
        spec="dialoop.serve.spec:InferJob",
        run="dialoop.serve.infer:run",
        summary="answer every row of a file; goes on where it was stopped",
        group="Use",
        positional="input",
    ),
    "serve": JobKind(
        spec="dialoop.serve.spec:ServeJob",
        run="dialoop.serve.run:run",
        summary="a model over an OpenAI-compatible URL",
        group="Use",
        also=("deploy",),
    ),
    "gateway": JobKind(
        spec="dialoop.gateway.spec:GatewayJob",
        run="dialoop.gateway.run:run",
        summary="engines behind one governed URL: keys, limits, routing, sessions",
        group="Use",
    ),
    "gateway reload": JobKind(
        spec="dialoop.gateway.spec:ReloadJob",
        run="dialoop.gateway.run:reload",
        summary="a new configuration for a running gateway, without a dropped stream",
        group="Use",
    ),
    "gateway status": JobKind(
        spec="dialoop.gateway.spec:StatusJob",
        run="dialoop.gateway.run:status",
        summary="how a running gateway is",
        group="Use",
    ),
    "keys create": JobKind(
        spec="dialoop.gateway.keys_spec:CreateKeyJob",
        run="dialoop.gateway.keys_run:create",
        summary="make a key for clients of the gateway; its secret is shown once",
        group="Use",
        positional="name",
    ),
    "keys list": JobKind(
        spec="dialoop.gateway.keys_spec:ListKeysJob",
        run="dialoop.gateway.keys_run:list_keys",
        summary="keys of all tenants or of one, and what they are for",
        group="Use",
    ),
    "keys show": JobKind(
        spec="dialoop.gateway.keys_spec:ShowKeyJob",
        run="dialoop.gateway.keys_run:show",
        summary="what a key may do, and until when",
        group="Use",
        positional="key",
    ),
    "keys revoke": JobKind(
        spec="dialoop.gateway.keys_spec:RevokeKeyJob",
        run="dialoop.gateway.keys_run:revoke",
        summary="end a key for good; running gateways follow within a second",
        group="Use",
        positional="key",
    ),
    "keys usage": JobKind(
        spec="dialoop.gateway.keys_spec:KeyUsageJob",
        run="dialoop.gateway.keys_run:usage",
        summary="requests and tokens of keys, by day",
        group="Use",
        positional="key",
    ),
    "engine install": JobKind(
        spec="dialoop.engines.spec:InstallJob",
        run="dialoop.engines.install:run",
        summary="vLLM, SGLang or LMDeploy in an environment of its own",
        group="This machine",
        positional="engine",
    ),
    "engine list": JobKind(
        spec="dialoop.engines.spec:EngineListJob",
        run="dialoop.engines.inspect:list_engines",
        summary="environments of engines, and engines that run",
        group="This machine",
    ),
    "engine doctor": JobKind(
        spec="dialoop.engines.spec:EngineDoctorJob",
        run="dialoop.engines.inspect:diagnose",
        summary="which engines run here, and why the others do not",
        group="This machine",
        positional="engine",
    ),
    "doctor": JobKind(
        spec="dialoop.jobs.doctor:DoctorJob",
        run="dialoop.jobs.doctor:run",
        summary="what works on this machine, what is missing, the command that brings it",
        group="This machine",
    ),
}


def find(words: list[str]) -> tuple[str, JobKind, list[str]] | None:
    """The verb at the head of a command, its row, and the words after it.

    Args:
        words: the command's words; a verb may be one or two of them.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        for verb, kind in CATALOG.items():
            if len(words) >= length and name in (verb, *kind.also):
                return verb, kind, words[length:]
    return None


def _load(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)
