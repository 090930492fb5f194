"""Files: a checkpoint written layer by layer, each file whole or absent, so that a run can go on.

While it is made it lies in a folder of its own beside the output, with the states that the next
layer reads; the last step renames it.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from dialoop.core.errors import MachineError, UserError
from dialoop.core.files import machine_errors, write_text
from dialoop.models import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from dialoop.quantize.source import Part, Source

EXPORT = "export"
_STATES = "states-{:05d}.safetensors"
_LAYER = "model-layer-{:05d}.safetensors"
_REST = "model-rest.safetensors"
SPARE = 1.05
"""Room on the disk that is asked for, as a share of what will be written."""


class Workshop:
    """The folder in which a checkpoint is made.

    Args:
        output: where it will lie.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.absolute().with_name(f".{output.name}.partial")
        self.export = self.folder / EXPORT

    @property
    def has_begun(self) -> bool:
        """Whether an earlier run finished a layer here."""
        return (self.export / _LAYER.format(0)).is_file()

    def begin(self, job: str, *, resume: bool) -> None:
        """Make the folder, or find what an earlier run of the same job left in it.

        Args:
            job: the job's text, without what may change between a run and its resumption.
            resume: whether to go on.

        Raises:
            UserError: there is an earlier run and it is not to be resumed, or it was another job.
        """
        told = self.folder / "job.yaml"
        if self.has_begun:
            if not resume:
                raise UserError(
                    f"`{self.folder}` holds a run for `{self.output}` that was stopped",
                    hint="go on with it by --resume, or remove that folder",
                )
            if told.read_text(encoding="utf-8") != job:
                raise UserError(
                    f"the run that was stopped in `{self.folder}` was another job",
                    hint=f"give the settings of `{told}`, or remove that folder",
                )
            return
        write_text(told, job)
        self.export.mkdir(exist_ok=True)

    def abandon(self) -> None:
        """Leave nothing behind of a run that finished no layer."""
        if not self.has_begun:
            shutil.rmtree(self.folder)

    def num_done(self) -> int:
        """Layers that need not be made again."""
        count = 0
        while (self.export / _LAYER.format(count)).is_file():
            count += 1
        states = [int(path.stem.rpartition("-")[2]) for path in self.folder.glob("states-*")]
        return min(count, max(states, default=0)) if states else 0

    def write_layer(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a finished layer."""
        self._write(self.export / _LAYER.format(number), tensors)

    def write_rest(self, tensors: Mapping[str, Tensor]) -> None:
        """Write what belongs to no layer."""
        self._write(self.export / _REST, tensors)

    def write_states(self, number: int, kinds: Mapping[str, list[Part]]) -> None:
        """Keep the states before layer `number`, and drop those of earlier layers."""
        tensors = {
            f"{kind}.{place}": part.states
            for kind, parts in kinds.items()
            for place, part in enumerate(parts)
        }
        self._write(self.folder / _STATES.format(number), tensors)
        for path in self.folder.glob("states-*.safetensors"):
            if path.name != _STATES.format(number):
                path.unlink()

    def read_states(self, number: int, kinds: Mapping[str, list[Part]]) -> None:
        """Give parts the states that were kept before layer `number`."""
        found = load_file(self.folder / _STATES.format(number))
        for kind, parts in kinds.items():
            for place, part in enumerate(parts):
                part.states = found[f"{kind}.{place}"].to(part.states.device)

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        with machine_errors(path, "writing"):
            temporary = self.folder / ".tmp-being-written"
            ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(ready, temporary, {"format": "pt"})
            temporary.chmod(0o644)
            temporary.replace(path)

    def finish(self, source: Path, config: Mapping[str, Any]) -> None:
        """Write the index and the config."""
        files = sorted(self.export.glob("*.safetensors"))
        entries = {file.name: checkpoint.entries(file) for file in files}
        index = {
            "metadata": {"total_size": sum(e.num_bytes for each in entries.values() for e in each)},
            "weight_map": {e.name: name for name, each in entries.items() for e in each},
        }
        write_text(self.export / checkpoint.INDEX, json.dumps(index, indent=2) + "\n")
        whole = checkpoint.read_json(source / "config.json") | {"quantization_config": config}
        write_text(self.export / "config.json", json.dumps(whole, indent=2) + "\n")

    def deliver(self) -> None:
        """Rename the finished checkpoint to the output, and clear up."""
        with machine_errors(self.output, "writing"):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.export.replace(self.output)
            shutil.rmtree(self.folder)


def num_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for path in checkpoint.weight_files(folder))


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Raise where there is no room for what will be written.

    Args:
        folder: exists.
        needed: bytes.

    Raises:
        MachineError: says how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if needed * SPARE > free:
        raise MachineError(
            f"the quantized model needs about {needed / 2**30:.2f} GiB in `{folder}`, where"
            f" {free / 2**30:.2f} GiB are free",
            hint="free some space or choose another output",
        )


def estimated_bytes(source: Source, bits: Mapping[str, float]) -> int:
    """About how much will be written.

    Args:
        source: the model.
        bits: storage of a weight of each rounded layer, by path.
    """
    total = 0.0
    for name, size in source.sizes().items():
        share = bits.get(name.removesuffix(".weight"))
        total += size.num_bytes if share is None else size.num_elements * share / 8
    return int(total)
