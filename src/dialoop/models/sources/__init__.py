"""Where models come from: a folder, Hugging Face, ModelScope, the package registry; one a file.

A source file offers `fetch(address, folder, emit)`: fill `folder` with the whole checkpoint,
resuming what an earlier try left there, or raise. A fetched model lies under
`home()/models/SOURCE/NAME` and is complete when `COMPLETE` lies beside its files.
"""

from __future__ import annotations

import difflib
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dialoop.core import env
from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Artifact, Note, ignore
from dialoop.core.files import lock_folder, write_text
from dialoop.models import catalog

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.core.events import Event

COMPLETE = ".complete"
SCHEMES = {
    "hf": "huggingface",
    "huggingface": "huggingface",
    "ms": "modelscope",
    "modelscope": "modelscope",
    "registry": "registry",
}
_ADDRESS = re.compile(r"^(?P<scheme>[a-z0-9]+)(?:://|::)(?P<rest>.+)$")
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")


def resolve(reference: str, emit: Callable[[Event], None] = ignore) -> Path:
    """The folder of a model, fetched first where it is not on this machine.

    Args:
        reference: a folder; a short name (`dialoop models list`); `hf://org/name[@revision]`,
            `ms://org/name[@revision]`, `registry://starter`; `org/name` means Hugging Face.
        emit: receives the progress of the download.

    Raises:
        UserError: nothing is known under that name, or the hub has no such model.
        MachineError: the hub cannot be reached, or a package is missing.
        UpstreamError: the hub failed.
    """
    if (found := cached(reference)) is not None:
        return found
    source, address = parse(reference)
    if env.is_offline() and source != "registry":
        raise MachineError(
            f"model `{reference}` is not on this machine and hubs are switched off",
            hint="unset HF_HUB_OFFLINE and DIALOOP_OFFLINE, or give a folder that holds the model",
        )
    folder = _folder(source, address)
    with lock_folder(folder.with_name(f".lock-{folder.name}"), "download"):
        if not (folder / COMPLETE).is_file():
            import_module(f"dialoop.models.sources.{source}").fetch(address, folder, emit)
            write_text(folder / COMPLETE, f"{source}://{address}\n")
    emit(Note(f"model `{reference}` is in {folder}"))
    emit(Artifact("model", str(folder)))
    return folder


def cached(reference: str) -> Path | None:
    """The folder of a model that is on this machine already, else None.

    Raises:
        UserError: nothing is known under that name.
    """
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        return path
    source, address = parse(reference)
    folder = _folder(source, address)
    return folder if (folder / COMPLETE).is_file() else None


def parse(reference: str) -> tuple[str, str]:
    """Source and address of a reference that is no folder.

    Raises:
        UserError: nothing is known under that name.
    """
    if (known := catalog.find(reference)) is not None:
        if known.registry:
            return "registry", known.registry
        return "huggingface", known.huggingface
    if match := _ADDRESS.match(reference):
        if match["scheme"] not in SCHEMES:
            raise UserError(
                f"unknown model source `{match['scheme']}` in `{reference}`",
                hint="use hf://, ms:// or registry://",
            )
        return SCHEMES[match["scheme"]], match["rest"].strip("/")
    if _HUB_NAME.match(reference) and not reference.startswith((".", "/")):
        return "huggingface", reference
    near = difflib.get_close_matches(reference.lower(), catalog.names(), n=1)
    raise UserError(
        f"unknown model `{reference}`" + (f"; did you mean `{near[0]}`?" if near else ""),
        hint="give a folder, a name of `dialoop models list`, or hf://org/name",
    )


def _folder(source: str, address: str) -> Path:
    return env.home() / "models" / source / address.replace("/", "--")
