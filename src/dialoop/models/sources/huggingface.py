"""Hugging Face: a snapshot of a model repository, resumed where an earlier try stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dialoop.core.errors import MachineError, UpstreamError, UserError
from dialoop.core.events import Progress, Stage
from dialoop.core.files import machine_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dialoop.core.events import Event

FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py", "LICENSE*", "*.md")
"""What a checkpoint needs: no weights in other formats."""
_REACH = "check the network, or set HF_ENDPOINT to a mirror, or use ms://org/name"


def fetch(
    address: str, folder: Path, emit: Callable[[Event], None], *, endpoint: str | None = None
) -> None:
    """Download `org/name[@revision]` into `folder`; partial files there are resumed.

    Raises:
        UserError: there is no such model or revision, or its licence must be accepted first.
        MachineError: the hub cannot be reached, or huggingface_hub is not installed.
        UpstreamError: the hub failed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from tqdm.auto import tqdm  # noqa: PLC0415 - comes with huggingface_hub
    except ImportError as error:
        raise MachineError(
            "Hugging Face models need the package `huggingface_hub`, which is not installed",
            hint="pip install 'dialoop[hub]'",
        ) from error
    name, _, revision = address.partition("@")
    emit(Stage(f"download {name} from Hugging Face"))
    try:
        with machine_errors(folder, "downloading to"):
            snapshot_download(
                name,
                revision=revision or None,
                local_dir=folder,
                allow_patterns=list(FILES),
                tqdm_class=_reporting(tqdm, emit),
                endpoint=endpoint,
            )
    except GatedRepoError as error:
        raise UserError(
            f"`{name}` asks for its licence to be accepted on Hugging Face",
            hint=f"accept it at https://huggingface.co/{name}, then `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"Hugging Face has no model `{address}`, or it is private",
            hint="check the spelling; for a private model, `hf auth login`",
        ) from error
    except HfHubHTTPError as error:
        raise UpstreamError(
            f"Hugging Face failed while giving `{name}`: {error}",
            hint="run the command again; it resumes",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, OSError) as error:
        raise MachineError(f"Hugging Face cannot be reached for `{name}`", hint=_REACH) from error


def _reporting(tqdm: Any, emit: Callable[[Event], None]) -> Any:
    """A progress bar class that draws nothing and emits events in its place."""

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **(options | {"disable": True}))
            self.seen = 0.0
            self.expected = options.get("total")
            self.counted = "bytes" if options.get("unit") == "B" else "files"

        def update(self, n: float | None = 1) -> None:
            self.seen += n or 0
            if self.counted == "bytes":
                emit(Progress("download", self.seen, self.total or self.expected, "bytes"))

    return Reporting
