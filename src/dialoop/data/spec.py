"""What can be asked of data: which sets, how to read, clean, mix and split them; the data jobs."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  pydantic reads the annotation at run time
from pathlib import Path  # noqa: TC003
from typing import ClassVar, Literal

from pydantic import Field

from dialoop.core.schema import Spec


class Cleaning(Spec, frozen=True):
    """What is taken out or changed; everything is off unless asked for."""

    dedupe: Literal["off", "exact", "near"] = "off"
    """Drop records that repeat an earlier one: the same, or nearly the same (MinHash)."""
    near_similarity: float = Field(default=0.85, ge=0.5, le=1.0)
    """Share of five-character pieces two records have in common to count as near duplicates."""
    min_chars: int | None = Field(default=None, ge=0)
    """Drop records shorter than this many characters, all turns together."""
    max_chars: int | None = Field(default=None, ge=1)
    """Drop records longer than this many characters."""
    min_tokens: int | None = Field(default=None, ge=0)
    """Drop records shorter than this many tokens; needs a model's tokenizer."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Drop records longer than this many tokens; needs a model's tokenizer."""
    drop_looping: bool = False
    """Drop records with an answer that repeats itself (one piece makes up most of its end)."""
    languages: list[Literal["zh", "en"]] = Field(default=[])
    """Keep only records in these languages; empty keeps all."""
    min_language_share: float = Field(default=0.5, ge=0, le=1)
    """Least share of letters in one of `languages`."""
    strip_controls: bool = False
    """Remove control and zero-width characters, and the mark that some files begin with."""
    pii: Literal["off", "report", "mask"] = "off"
    """Personal data (phone and identity numbers, addresses of e-mail, bank cards): count it, or
    replace it with `[PHONE]` and the like."""


class Reading(Spec, frozen=True):
    """How files are read."""

    columns: dict[str, str] = Field(default={})
    """Unusual column names and what they mean: `{"utterance": "query", "reply": "response"}`."""
    encoding: str | None = None
    """Encoding of text files, such as `gbk`; found out for each file when left out."""
    plugin: Path | None = None
    """Python file with a layout of your own (a subclass of `dialoop.data.formats.Format`)."""
    text_unit: Literal["auto", "line", "document"] = "auto"
    """What a record of a plain text file is; `auto` takes Markdown whole, other text by lines."""


class DataSpec(Reading, frozen=True):
    """Data to train on or evaluate with."""

    dataset: list[str] = Field(min_length=1)
    """Paths, catalog names, `hf::id` or `ms::id`. `#500` behind one takes 500 of its rows at
    random; more than it has repeats it."""
    weights: list[float] = Field(default=[])
    """Share of each data set in the mix, in their order; empty takes all rows of each."""
    validation: float | list[str] = 0.0
    """Share of the dialogues to hold out (0 to 0.5), or data sets of their own."""
    seed: int = 42
    """Seed of sampling and splitting."""
    cleaning: Cleaning = Cleaning()
    """What is taken out or changed on the way."""


class ConvertJob(Reading, frozen=True):
    """Write any data as canonical JSON Lines, with rejected rows beside it."""

    paths: list[str] = Field(min_length=1)
    """Files, folders, archives, catalog names."""
    output: Path
    """The JSON Lines file to write; rejected rows go to `NAME.rejected.jsonl` beside it."""
    model: str | None = None
    """A checkpoint or adapter folder, or a model name; its tokenizer measures
    `cleaning.min_tokens` and `max_tokens`."""
    seed: int = 42
    """Seed of sampling, where a path ends in `#N`."""
    cleaning: Cleaning = Cleaning()
    """What is taken out or changed on the way."""

    aliases: ClassVar[Mapping[str, str]] = {"o": "output", "dataset": "paths"}


class InspectJob(Reading, frozen=True):
    """Show what data holds: layouts, problems, lengths, and what would be learned from it."""

    paths: list[str] = Field(min_length=1)
    """Files, folders, archives, catalog names."""
    model: str | None = None
    """A checkpoint or adapter folder, or a model name; its tokenizer and template give token
    counts and the mask preview."""
    samples: int = Field(default=2, ge=0, le=20)
    """How many rows to show with their loss mask."""
    seed: int = 42
    """Seed of sampling, where a path ends in `#N`."""
    cleaning: Cleaning = Cleaning()
    """What would be taken out or changed."""

    aliases: ClassVar[Mapping[str, str]] = {"dataset": "paths"}


class ListJob(Spec, frozen=True):
    """List the catalog of known data sets."""

    language: Literal["zh", "en"] | None = None
    """Only sets in this language."""
    task: str | None = None
    """Only sets for this task: `sft`, `preference`, `tools`, `pretrain`, `retrieval`."""
