"""The catalog of known data sets, and where a name leads: a path, a catalog entry, a hub."""

# ruff: noqa: E501  one data set a line
from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dialoop.core import env
from dialoop.core.errors import MachineError, UpstreamError, UserError
from dialoop.core.events import Note

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event

Task = Literal["sft", "preference", "tools", "pretrain", "retrieval"]
PATTERNS = ["*.json", "*.jsonl", "*.jsonl.gz", "*.json.gz", "*.csv", "*.parquet", "*.txt"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set that can be named."""

    name: str
    hf: str
    """Id on Hugging Face; empty where it is not there."""
    ms: str
    """Id on ModelScope; empty where it is not there."""
    layout: str
    licence: str
    """As the publisher states it; check it before use."""
    language: str
    task: Task
    aliases: tuple[str, ...] = ()


def _rows() -> tuple[Entry, ...]:
    e = Entry
    return (
        e("alpaca-en", "vicgalle/alpaca-gpt4", "AI-ModelScope/alpaca-gpt4-data-en", "alpaca", "cc-by-nc-4.0", "en", "sft", ("alpaca-gpt4-en",)),
        e("alpaca-zh", "llm-wizard/alpaca-gpt4-data-zh", "AI-ModelScope/alpaca-gpt4-data-zh", "alpaca", "cc-by-4.0", "zh", "sft", ("alpaca-gpt4-zh",)),
        e("alpaca-stanford", "tatsu-lab/alpaca", "", "alpaca", "cc-by-nc-4.0", "en", "sft", ("alpaca",)),
        e("alpaca-cleaned", "yahma/alpaca-cleaned", "AI-ModelScope/alpaca-cleaned", "alpaca", "cc-by-4.0", "en", "sft"),
        e("belle", "BelleGroup/train_0.5M_CN", "AI-ModelScope/train_0.5M_CN", "alpaca", "gpl-3.0", "zh", "sft", ("belle-0.5m",)),
        e("belle-1m", "BelleGroup/train_1M_CN", "AI-ModelScope/train_1M_CN", "alpaca", "gpl-3.0", "zh", "sft"),
        e("belle-2m", "BelleGroup/train_2M_CN", "AI-ModelScope/train_2M_CN", "alpaca", "gpl-3.0", "zh", "sft"),
        e("belle-multiturn", "BelleGroup/multiturn_chat_0.8M", "AI-ModelScope/multiturn_chat_0.8M", "alpaca", "gpl-3.0", "zh", "sft"),
        e("firefly", "YeungNLP/firefly-train-1.1M", "AI-ModelScope/firefly-train-1.1M", "query", "unstated", "zh", "sft"),
        e("coig-cqia", "m-a-p/COIG-CQIA", "AI-ModelScope/COIG-CQIA", "alpaca", "unstated", "zh", "sft", ("cqia",)),
        e("sharegpt-zh", "shibing624/sharegpt_gpt4", "AI-ModelScope/sharegpt_gpt4", "sharegpt", "cc-by-4.0", "zh", "sft", ("sharegpt-gpt4",)),
        e("sharegpt-en", "anon8231489123/ShareGPT_Vicuna_unfiltered", "", "sharegpt", "apache-2.0", "en", "sft", ("sharegpt-vicuna",)),
        e("medical-zh", "shibing624/medical", "", "alpaca", "apache-2.0", "zh", "sft"),
        e("dolly", "databricks/databricks-dolly-15k", "AI-ModelScope/databricks-dolly-15k", "alpaca", "cc-by-sa-3.0", "en", "sft"),
        e("open-orca", "Open-Orca/OpenOrca", "AI-ModelScope/OpenOrca", "query", "mit", "en", "sft"),
        e("slim-orca", "Open-Orca/SlimOrca", "", "sharegpt", "mit", "en", "sft"),
        e("ultrachat", "HuggingFaceH4/ultrachat_200k", "", "messages", "mit", "en", "sft", ("ultrachat-200k",)),
        e("openhermes", "teknium/OpenHermes-2.5", "", "sharegpt", "unstated", "en", "sft"),
        e("smoltalk", "HuggingFaceTB/smoltalk", "", "messages", "apache-2.0", "en", "sft"),
        e("lima", "GAIR/lima", "", "rounds of text", "other", "en", "sft"),
        e("gsm8k", "openai/gsm8k", "modelscope/gsm8k", "query", "mit", "en", "sft"),
        e("ruozhiba", "", "AI-ModelScope/ruozhiba", "query", "apache-2.0", "zh", "sft"),
        e("ultrafeedback", "HuggingFaceH4/ultrafeedback_binarized", "", "preference", "mit", "en", "preference", ("ultrafeedback-binarized",)),
        e("hh-rlhf", "Anthropic/hh-rlhf", "AI-ModelScope/hh-rlhf", "preference", "mit", "en", "preference"),
        e("dpo-zh-en", "llamafactory/DPO-En-Zh-20k", "", "sharegpt", "apache-2.0", "zh, en", "preference", ("dpo-en-zh-20k",)),
        e("orca-dpo", "Intel/orca_dpo_pairs", "AI-ModelScope/orca_dpo_pairs", "preference", "apache-2.0", "en", "preference"),
        e("kto-mix", "trl-lib/kto-mix-14k", "", "query", "mit", "en", "preference"),
        e("glaive-tools", "llamafactory/glaive_toolcall_en", "", "sharegpt", "apache-2.0", "en", "tools", ("glaive-toolcall-en",)),
        e("glaive-tools-zh", "llamafactory/glaive_toolcall_zh", "", "sharegpt", "apache-2.0", "zh", "tools", ("glaive-toolcall-zh",)),
        e("wikitext", "Salesforce/wikitext", "modelscope/wikitext", "text", "cc-by-sa-3.0", "en", "pretrain"),
        e("wikipedia-zh", "pleisto/wikipedia-cn-20230720-filtered", "AI-ModelScope/wikipedia-cn-20230720-filtered", "text", "cc-by-sa-3.0", "zh", "pretrain"),
        e("tinystories", "roneneldan/TinyStories", "AI-ModelScope/TinyStories", "text", "cdla-sharing-1.0", "en", "pretrain"),
        e("t2ranking-style-sts", "sentence-transformers/stsb", "", "retrieval", "unstated", "en", "retrieval", ("stsb",)),
    )  # fmt: skip


ENTRIES = _rows()


def find(name: str) -> Entry | None:
    """The entry of a name or alias; case, underscores and hyphens do not matter."""
    wanted = name.lower().replace("_", "-")
    for entry in ENTRIES:
        if wanted in (entry.name, *entry.aliases):
            return entry
    return None


def resolve(name: str, emit: Callable[[Event], None]) -> Path:
    """Where a data set lies on this machine, downloaded if it has to be.

    Args:
        name: path, catalog name, `hf::id` or `ms::id`.
        emit: receives what is being done.

    Raises:
        UserError: neither path nor known name.
        MachineError: the hub's package is missing, or this machine is offline.
        UpstreamError: the hub did not answer.
    """
    hub, mark, dataset = name.partition("::")
    if mark and hub in {"hf", "ms"}:
        return _from_hf(dataset, emit) if hub == "hf" else _from_ms(dataset, emit)
    path = Path(name).expanduser()
    if path.exists():
        return path
    entry = find(name)
    if entry is None:
        known = [n for e in ENTRIES for n in (e.name, *e.aliases)]
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "see `dialoop data list`, or give a path"
        raise UserError(f"no such file, folder or known data set: `{name}`", hint=hint)
    return _from_hf(entry.hf, emit) if entry.hf else _from_ms(entry.ms, emit)


def _from_hf(dataset: str, emit: Callable[[Event], None]) -> Path:
    _refuse_offline(dataset, "Hugging Face")
    try:
        import httpx  # noqa: PLC0415
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    except ImportError as error:
        raise _missing("huggingface_hub") from error
    emit(Note(f"downloading `{dataset}` from Hugging Face"))
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", allow_patterns=PATTERNS))
    except RepositoryNotFoundError as error:
        raise UserError(
            f"no data set `{dataset}` on Hugging Face", hint="check the id, or your access to it"
        ) from error
    except HfHubHTTPError as error:
        raise UpstreamError(f"Hugging Face refused `{dataset}`: {error}", hint="retry") from error
    except (OSError, httpx.HTTPError) as error:
        raise _unreachable(dataset, "Hugging Face") from error


def _from_ms(dataset: str, emit: Callable[[Event], None]) -> Path:
    _refuse_offline(dataset, "ModelScope")
    try:
        import requests  # noqa: PLC0415

        hub = importlib.import_module("modelscope")
    except ImportError as error:
        raise _missing("modelscope") from error
    emit(Note(f"downloading `{dataset}` from ModelScope"))
    try:
        return Path(hub.dataset_snapshot_download(dataset, allow_patterns=PATTERNS))
    except (OSError, requests.RequestException) as error:
        raise _unreachable(dataset, "ModelScope") from error


def _refuse_offline(dataset: str, hub: str) -> None:
    if env.is_offline():
        raise MachineError(
            f"`{dataset}` is on {hub}, and this machine is set to work offline",
            hint="unset HF_HUB_OFFLINE and DIALOOP_OFFLINE, or give a path to a copy",
        )


def _missing(package: str) -> MachineError:
    return MachineError(
        f"downloading data needs the package {package}", hint='run: pip install "dialoop[hub]"'
    )


def _unreachable(dataset: str, hub: str) -> MachineError:
    return MachineError(
        f"cannot reach {hub} for `{dataset}`",
        hint="connect this machine, or copy the data set here and give its path",
    )
