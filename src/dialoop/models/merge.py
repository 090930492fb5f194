"""Merge an adapter into its base, and prove that the result says the same.

A base that is quantized is restored first: the merged checkpoint has whole weights, and can be
quantized again. The update is added in float32 and rounded to the checkpoint's dtype once. Base
plus adapter and the merged model are compared on prompts, in that dtype; what is read back from
disk must then give the merged model's logits to the last bit.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dialoop.chat.message import message
from dialoop.chat.template import Template
from dialoop.core.device import find
from dialoop.core.errors import DialoopError, UserError
from dialoop.core.events import Artifact, Progress, Stage
from dialoop.core.files import machine_errors, new_folder, refuse_file, sha256
from dialoop.models import checkpoint, embeddings, heads, lineage, sources
from dialoop.models.families import write_remote_code
from dialoop.models.load import attach_adapter, base_of, load_model, quantized_by
from dialoop.models.restore import restore
from dialoop.models.save import make_readable
from dialoop.models.spec import MergeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import torch
    from transformers import PreTrainedModel

    from dialoop.core.device import Device
    from dialoop.core.events import Event
    from dialoop.models.heads import Head
    from dialoop.models.spec import Dtype, MergeJob

COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What a checkpoint needs beside its weights, taken from the base unless the adapter has it."""
PROMPTS = (
    "Where is my order?",
    "Please summarise your return policy in one sentence.",
    "\u8bf7\u4ecb\u7ecd\u4e00\u4e0b\u4f60\u4eec\u7684\u670d\u52a1\u3002",
    "1 + 1 =",
)
TOLERANCE = {"fp32": 1e-3, "bf16": 0.4, "fp16": 0.1}
"""Largest difference of a logit that rounding explains: absolute for fp32; for 16 bits in standard
deviations of the logits (a 135M model in bfloat16 shows 0.15 to 0.22, whatever the adapter)."""
MIN_AGREEMENT = {"fp32": 0.99, "bf16": 0.9, "fp16": 0.95}
"""Share of positions with the same likeliest token; the same model showed 0.975 in bfloat16."""
NEAR_TIE_NATS = 0.15


def run(job: MergeJob, emit: Callable[[Event], None]) -> MergeResult:
    """Write base plus adapter as one self-contained checkpoint, or nothing.

    Raises:
        UserError: not an adapter, an adapter for another base, or an output that is in use.
        DialoopError: merged and unmerged logits differ by more than rounding.
    """
    adapter = sources.resolve(job.model, emit)
    if not checkpoint.is_adapter(adapter):
        raise UserError(
            f"`{adapter}` holds no adapter, so there is nothing to merge",
            hint="give the folder that holds adapter_config.json",
        )
    refuse_file(job.output)
    if job.output.exists() and any(job.output.iterdir()):
        raise UserError(f"`{job.output}` exists already", hint="give another folder with -o")
    base = sources.resolve(job.base, emit) if job.base else base_of(adapter)
    dtype = checkpoint_dtype(base)
    device = find(job.device)
    emit(Stage("load the base model and its adapter"))
    head = heads.head_of(adapter)
    with _whole_base(base, device, dtype, head, job.output) as whole:
        return _merge(job, base, whole, adapter, dtype, device, head, emit)


def _merge(
    job: MergeJob,
    base: Path,
    whole: Path,
    adapter: Path,
    dtype: Dtype,
    device: Device,
    head: Head,
    emit: Callable[[Event], None],
) -> MergeResult:
    """Merge into `whole`, which is the base or what its rounded weights say."""
    num_scores = heads.num_scores(adapter) if head == "score" else None
    model = load_model(whole, device=device, dtype=dtype, head=head, num_scores=num_scores)
    attach_adapter(model, adapter, base=base)
    rows = _rows(base)
    before = [_logits(model, row) for row in rows]
    emit(Stage("merge"))
    count = merge_layers(model, emit)
    after = [_logits(model, row) for row in rows]
    result = _compare(before, after, dtype, job.output, count)
    with new_folder(job.output) as folder:
        model.save_pretrained(folder, max_shard_size=job.max_shard_bytes)
        make_readable(folder)
        complete(folder, base=base, adapter=adapter)
        del model
        emit(Stage("check what was written"))
        written = load_model(folder, device=device, dtype=dtype, head=head)
        _check_written(after, [_logits(written, row) for row in rows])
    emit(Artifact("model", str(job.output)))
    return result


@contextmanager
def _whole_base(
    base: Path, device: Device, dtype: Dtype, head: Head, output: Path
) -> Generator[Path]:
    """The base; where it is quantized, a copy in full for as long as it is needed."""
    if quantized_by(base) is None:
        yield base
        return
    with machine_errors(output, "writing"):
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            dir=output.absolute().parent, prefix=f".tmp-{output.name}-"
        ) as name:
            restore(base, Path(name), device=device, dtype=dtype, head=head)
            yield Path(name)


def merge_layers(model: PreTrainedModel, emit: Callable[[Event], None]) -> int:
    """Replace every adapted module by its base with what was learned in it, in place.

    Returns:
        how many layers were merged.
    """
    from dialoop.models import lora  # noqa: PLC0415 - loads torch

    found = lora.adapted(model)
    for number, (name, layer) in enumerate(found.items(), 1):
        model.set_submodule(name, layer.merged())
        emit(Progress("merge", number, len(found), "layers"))
    return len(found)


def complete(folder: Path, *, base: Path, adapter: Path) -> None:
    """Put beside merged weights what else a checkpoint needs."""
    for file in (name for name in embeddings.FILES if (adapter / name).is_file()):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(adapter / file, folder / file)
    copy_companions(folder, base, adapter)
    write_remote_code(folder, checkpoint.read_json(folder / "config.json")["model_type"])
    facts = {"path": str(adapter), "sha256": sha256(adapter / "adapter_model.safetensors")}
    lineage.record(folder, base=base, made_by="merge", adapter=facts)


def copy_companions(folder: Path, *sources: Path) -> None:
    """Copy tokenizer, template, generation config and licence; a later source wins."""
    for source in sources:
        for pattern in COMPANIONS:
            for file in source.glob(pattern):
                shutil.copyfile(file, folder / file.name)


def checkpoint_dtype(folder: Path) -> Dtype:
    """The dtype that a checkpoint's config names; fp32 where it names none."""
    config = checkpoint.read_json(folder / "config.json")
    names: dict[str, Dtype] = {"bfloat16": "bf16", "float16": "fp16"}
    return names.get(config.get("dtype") or config.get("torch_dtype") or "", "fp32")


def _rows(base: Path) -> list[list[int]]:
    template = Template.from_folder(base)
    return [template.prompt_ids([message("user", text)]) for text in PROMPTS]


def _logits(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    """(T, V) float32 on the CPU; (1, labels) of a model that scores, (T, D) of one without head."""
    import torch

    with torch.no_grad():
        out = model(torch.tensor([row], device=model.device), return_dict=True)[0][0]
    return out.float().cpu().reshape(-1, out.shape[-1])


def _check_written(expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    import torch

    if not all(torch.equal(one, two) for one, two in zip(expected, found, strict=True)):
        raise DialoopError(
            "the merged checkpoint reads back with other logits than it was written with;"
            " nothing was kept",
            hint="check the disk, and report this",
        )


def _compare(
    before: list[torch.Tensor], after: list[torch.Tensor], dtype: Dtype, path: Path, count: int
) -> MergeResult:
    import torch

    one, two = torch.cat(before), torch.cat(after)  # (T, V)
    difference = (one - two).abs().max().item()
    chosen = one.gather(1, two.argmax(-1, keepdim=True))[:, 0]  # (T,)
    agreement = (one.amax(-1) - chosen <= NEAR_TIE_NATS).float().mean().item()
    scale = 1.0 if dtype == "fp32" else one.std().item()
    tolerance = TOLERANCE[dtype] * max(scale, 1.0)
    if not (difference <= tolerance and agreement >= MIN_AGREEMENT[dtype]):
        raise DialoopError(
            f"merged and unmerged logits differ by {difference:.3g} (allowed {tolerance:.3g}) and"
            f" agree on {agreement:.1%} of tokens; nothing was written",
            hint="merge into a base of a wider dtype, and report this",
        )
    return MergeResult(
        path=path,
        num_layers=count,
        max_difference=difference,
        tolerance=tolerance,
        greedy_agreement=agreement,
    )
