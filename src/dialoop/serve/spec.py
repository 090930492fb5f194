"""What can be asked of a server, of batch inference and of the terminal chat."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dialoop.data.spec import Reading
from dialoop.engines.spec import EngineSettings


class ServeJob(EngineSettings, frozen=True):
    """Serve a model over an OpenAI-compatible URL."""

    aliases: ClassVar[Mapping[str, str]] = {"model_path": "model", "name": "served_model_name"}

    model: str
    """A checkpoint or adapter folder, or a model name (`dialoop models list`)."""
    host: str = "127.0.0.1"
    """Address to listen on. `0.0.0.0` opens the server to the network: set `api_key` then."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one, which is reported."""
    served_model_name: str | None = None
    """The name that clients ask for; the folder's or the model's own name unless given."""
    api_key: str | None = None
    """The bearer token that every request to `/v1` must carry; none unless given."""
    may_load_adapters: bool = False
    """Let clients load and unload adapters by `POST /v1/load_lora_adapter` (`lora_name`,
    `lora_path`) and `/v1/unload_lora_adapter`. They then name folders of this machine: set
    `api_key`, too."""
    max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait in line beyond `max_concurrent`; further ones get status 429."""


class SamplingSettings(EngineSettings, frozen=True):
    """How answers are written."""

    task: Literal["generate"] = "generate"
    """Answers are written; embedding and reranking are `dialoop serve`'s."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 takes the likeliest token, which repeats itself exactly; 0.7 is lively."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Choose among the likeliest tokens that together have this probability."""
    system: str | None = None
    """A system message to begin dialogues with that have none."""

    @model_validator(mode="after")
    def _refuse_adapters(self) -> Self:
        if self.adapters:
            raise ValueError("adapters: for `dialoop serve`; here, give the adapter as the model")
        return self


class InferJob(SamplingSettings, Reading, frozen=True):
    """Answer every row of a file."""

    aliases: ClassVar[Mapping[str, str]] = {
        "o": "output",
        "i": "input",
        "model_path": "model",
        "dataset": "input",
        "max_tokens": "max_new_tokens",
    }

    model: str
    """A checkpoint or adapter folder, or a model name."""
    input: str
    """A file of dialogues, in any layout that `dialoop data inspect` knows. An answer at the end of
    a dialogue is taken off and written anew."""
    output: str
    """A JSON Lines file. Rows that are in it already are kept and not asked again."""
    seed: int = Field(default=0, ge=0)
    """Seed of the chances that are taken above temperature 0; the same for every row."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer."""


class ChatJob(SamplingSettings, frozen=True):
    """Talk to a model in the terminal."""

    aliases: ClassVar[Mapping[str, str]] = {"model_path": "model", "max_tokens": "max_new_tokens"}

    model: str
    """A checkpoint or adapter folder, or a model name."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """0 takes the likeliest token; 0.7 is lively."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Choose among the likeliest tokens that together have this probability."""
