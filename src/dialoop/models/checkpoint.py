"""What a checkpoint folder holds, read without torch: config, weights, damage, fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
_BLOCK = 64 * 1024
_NUM_BLOCKS = 32
_AGAIN = "copy or pull the checkpoint again"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a weight file."""

    name: str
    shape: tuple[int, ...]
    num_bytes: int
    dtype: str = ""
    """As safetensors names it: `BF16`, `I32`, ..."""

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and not a model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """An object from one of the checkpoint's JSON files.

    Raises:
        UserError: the file is missing or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"`{path.parent}` is no checkpoint: it has no `{path.name}`",
            hint="give the folder that holds config.json, or adapter_config.json",
        ) from error
    except ValueError as error:
        raise UserError(
            f"damaged checkpoint: `{path}` is not JSON ({error})", hint=_AGAIN
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"damaged checkpoint: `{path}` is no JSON object", hint=_AGAIN)
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, in the order of its index.

    Raises:
        UserError: there are none, or the index names one that is missing.
    """
    if (folder / INDEX).is_file():
        names = dict.fromkeys(read_json(folder / INDEX).get("weight_map", {}).values())
        files = [folder / name for name in names]
        for file in files:
            if not file.is_file():
                raise UserError(f"damaged checkpoint: `{file}` is missing", hint=_AGAIN)
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise UserError(
        f"`{folder}` holds no safetensors weights",
        hint="convert older `.bin` weights with transformers' `save_pretrained`",
    )


def entries(file: Path) -> list[Entry]:
    """The tensors that a safetensors file says it holds, checked against its length.

    Raises:
        UserError: the file is cut short or is no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(
                f"damaged checkpoint: `{file}` is cut short ({size} bytes)", hint=_AGAIN
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise UserError(
                f"damaged checkpoint: the header of `{file}` is not JSON", hint=_AGAIN
            ) from error
    header.pop("__metadata__", None)
    found = [
        Entry(
            name,
            tuple(item["shape"]),
            item["data_offsets"][1] - item["data_offsets"][0],
            item["dtype"],
        )
        for name, item in header.items()
    ]
    expected = 8 + length + sum(entry.num_bytes for entry in found)
    if size != expected:
        raise UserError(
            f"damaged checkpoint: `{file}` has {size} bytes and its header needs {expected}",
            hint=_AGAIN,
        )
    return found


def check(folder: Path) -> None:
    """Refuse a model whose files are missing or damaged, before anything is loaded.

    Raises:
        UserError: names the first file that is wrong.
    """
    read_json(folder / "config.json")
    for file in weight_files(folder):
        entries(file)


def fingerprint(folder: Path) -> str:
    """SHA-256 over each weight file's header, length and 32 blocks spread over it.

    It tells models apart in a fraction of a second where hashing 16 GB takes a minute; it is no
    proof against tampering.
    """
    digest = hashlib.sha256()
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            digest.update(stream.read(int.from_bytes(stream.read(8), "little")))
            start = stream.tell()
            for number in range(_NUM_BLOCKS):
                stream.seek(start + (size - start) * number // _NUM_BLOCKS)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()
