"""ModelScope: a snapshot of a model repository, resumed where an earlier try stopped."""

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


def fetch(address: str, folder: Path, emit: Callable[[Event], None]) -> None:
    """Download `org/name[@revision]` into `folder`; partial files there are resumed.

    Raises:
        UserError: there is no such model or revision, or it asks for a login.
        MachineError: the hub cannot be reached, or modelscope is not installed.
        UpstreamError: the hub failed.
    """
    try:
        from modelscope.hub.errors import (  # pyright: ignore[reportMissingImports]
            AuthenticationError,
            HubError,
            NetworkError,
            NotExistError,
            PermissionDeniedError,
        )
        from modelscope.hub.snapshot_download import (  # pyright: ignore[reportMissingImports]
            snapshot_download,
        )
    except ImportError as error:
        raise MachineError(
            "ModelScope models need the package `modelscope`, which is not installed",
            hint="pip install 'dialoop[hub]'",
        ) from error
    name, _, revision = address.partition("@")
    emit(Stage(f"download {name} from ModelScope"))
    try:
        with machine_errors(folder, "downloading to"):
            snapshot_download(
                name,
                revision=revision or None,
                local_dir=str(folder),
                allow_patterns=list(FILES),
                progress_callbacks=[_reporting(emit)],
            )
    except (AuthenticationError, PermissionDeniedError) as error:
        raise UserError(
            f"`{name}` on ModelScope asks for a login", hint="modelscope login"
        ) from error
    except NotExistError as error:
        raise UserError(
            f"ModelScope has no model `{address}`", hint="check the spelling on modelscope.cn"
        ) from error
    except (NetworkError, ConnectionError) as error:
        raise MachineError(
            f"ModelScope cannot be reached for `{name}`",
            hint="check the network, or use hf://org/name",
        ) from error
    except HubError as error:
        raise UpstreamError(
            f"ModelScope failed while giving `{name}`: {error}",
            hint="run the command again; it resumes",
        ) from error


def _reporting(emit: Callable[[Event], None]) -> Any:
    """A callback class, made anew by modelscope for each file, that emits events."""
    from modelscope.hub.callback import (  # pyright: ignore[reportMissingImports]
        ProgressCallback,
    )

    class Reporting(ProgressCallback):
        done = 0

        def update(self, size: int) -> None:
            self.done += size
            emit(Progress("download", self.done, self.file_size, "bytes", self.filename))

    return Reporting
