"""Load a checkpoint: full, adapter on its base, or 4-bit; and its facts without loading it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dialoop.core.errors import MachineError, UserError
from dialoop.models import checkpoint, heads, rope
from dialoop.models.families import register_all
from dialoop.models.lineage import base_fingerprint
from dialoop.models.sources import cached

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from dialoop.core.device import Device
    from dialoop.models.heads import Head
    from dialoop.models.spec import Dtype

Quantization = Literal["nf4"]
_MODELS = {"tokens": "a language model", "score": "a model that scores", "none": "an encoder"}
BITSANDBYTES = ("bitsandbytes", "accelerate")
"""What 4-bit weights of bitsandbytes need; the other formats are read by ourselves."""


def load_model(
    folder: Path,
    *,
    device: Device,
    dtype: Dtype = "auto",
    quantization: Quantization | None = None,
    attention: str | None = None,
    head: Head = "tokens",
    num_scores: int | None = None,
    weightless: bool = False,
) -> PreTrainedModel:
    """A model from a checkpoint folder, in evaluation mode; a causal language model by default.

    Args:
        folder: a model, or an adapter whose base model is on this machine.
        device: where the weights go.
        dtype: of the weights; `auto` is bf16 where the device is fast at it, else fp32.
        quantization: `nf4` keeps the linear layers in 4 bits and computes in `dtype`; a checkpoint
            that is quantized already stays as it is.
        attention: one of transformers' implementations; None lets transformers choose.
        head: what the model ends in: tokens, a score, or none, which gives hidden states.
        num_scores: how many scores a new head gives, where the checkpoint has none of that width;
            None takes only the checkpoint's own.
        weightless: make the weights on the meta device: their shapes and types, and no numbers.

    Raises:
        UserError: the checkpoint is damaged, of an unknown family, or ends in something else, or
            the adapter is for another base.
        MachineError: the weights do not fit, or a package is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"`{folder}` is no folder", hint="give a checkpoint folder; `dialoop models pull NAME`"
        )
    if head == "tokens" or (head == "score" and num_scores is None):
        heads.refuse_other(folder, head)
    if checkpoint.is_adapter(folder):
        heads.refuse_other(folder, head)
        model = load_model(
            base_of(folder),
            device=device,
            dtype=dtype,
            quantization=quantization,
            attention=attention,
            head=head,
            num_scores=heads.num_scores(folder) if head == "score" else None,
        )
        rope.load(model, folder)
        attach_adapter(model, folder)
        return model
    checkpoint.check(folder)
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    kind = torch_dtype(dtype, device)
    method = quantized_by(folder)
    if method is not None and method != "bitsandbytes":
        from dialoop.models.stored import stored_config  # noqa: PLC0415 - loads transformers

        options |= {"quantization_config": stored_config(folder, method)}
    elif method is not None or quantization == "nf4":
        _refuse_lacking_bitsandbytes()
    if quantization == "nf4" and method is None:
        options |= {"quantization_config": _nf4(kind, head)}
    by_bitsandbytes = method == "bitsandbytes" or (method is None and quantization is not None)
    if by_bitsandbytes:
        options |= {"device_map": {"": device.torch_name}}
    elif weightless:
        options |= {"device_map": "meta"}
    if num_scores is not None:
        options |= {"num_labels": num_scores}
    model = _from_pretrained(folder, kind, head, options)
    if not (by_bitsandbytes or weightless):
        model = _to_device(model, device)
    return model.eval()


def quantized_by(folder: Path) -> str | None:
    """The method by which a checkpoint's weights are quantized (`gptq`, `fp8`, ...), or None.

    Raises:
        UserError: the config is missing or damaged.
    """
    config = checkpoint.read_json(folder / "config.json").get("quantization_config")
    return None if config is None else str(config.get("quant_method", "unknown"))


def torch_dtype(dtype: Dtype, device: Device) -> torch.dtype:
    """The torch type that a job's `dtype` means on this device."""
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device.supports_bf16 else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]


def base_of(folder: Path) -> Path:
    """The base model's folder of a saved adapter.

    The recorded name is a path (absolute, or relative to the adapter) or a model's name.

    Raises:
        UserError: the base is named nowhere or is not where the adapter says.
    """
    name = checkpoint.read_json(folder / checkpoint.ADAPTER).get("base_model_name_or_path") or ""
    for path in (Path(name).expanduser(), folder / name):
        if name and path.is_dir():
            return path
    found = cached(name) if name else None
    if found is None:
        raise UserError(
            f"the base model `{name}` of the adapter `{folder}` is not on this machine",
            hint="pull it with `dialoop models pull`, or put its path into adapter_config.json",
        )
    return found


def text_folder(folder: Path) -> Path:
    """Where the tokenizer lies: the adapter's folder when it carries one, else its base's.

    Raises:
        UserError: the adapter's base is needed and is not on this machine.
    """
    if not checkpoint.is_adapter(folder) or (folder / "tokenizer_config.json").is_file():
        return folder
    return base_of(folder)


def attach_adapter(model: PreTrainedModel, folder: Path, *, base: Path | None = None) -> None:
    """Put a saved adapter on its base model, in place, once it is known to be the right one.

    Args:
        model: the base, loaded.
        folder: the adapter's.
        base: the checkpoint that the model was made from; where it was loaded from when None.

    Raises:
        UserError: the adapter was made for another base model, or is damaged.
    """
    from dialoop.models import lora  # noqa: PLC0415 - loads torch

    recorded = base_fingerprint(folder)
    base = base or Path(str(model.name_or_path))
    if recorded and recorded != checkpoint.fingerprint(base):
        raise UserError(
            f"adapter `{folder}` is for another base: the weights of `{base}` are not those that"
            " it was trained on",
            hint="give the base model that the adapter was trained on",
        )
    lora.load(model, folder)


def _from_pretrained(
    folder: Path, kind: torch.dtype, head: Head, options: dict[str, Any]
) -> PreTrainedModel:

    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )
    from transformers.utils import logging

    from dialoop.models.stored import StoredConfig  # noqa: PLC0415 - loads transformers

    classes: dict[Head, Any] = {
        "tokens": AutoModelForCausalLM,
        "score": AutoModelForSequenceClassification,
        "none": AutoModel,
    }
    is_new = "num_labels" in options
    sized = {"num_labels": options.pop("num_labels")} if is_new else {}

    logging.disable_progress_bar()  # progress is events; a second bar would tear the first
    register_all()
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is refused below, in words
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **sized)
        if isinstance(options.get("quantization_config"), StoredConfig):
            delattr(config, "quantization_config")  # ours reads the layers in its place
        loaded: Any = classes[head].from_pretrained(
            folder,
            config=config,
            dtype=kind,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (ValueError, KeyError) as error:
        family = checkpoint.read_json(folder / "config.json").get("model_type")
        raise UserError(
            f"`{folder}`: transformers cannot load a `{family}` as {_MODELS[head]}: {error}",
            hint="use a checkpoint of a family that the installed transformers knows",
        ) from error
    except MemoryError as error:
        raise _no_memory(folder) from error
    finally:
        logging.set_verbosity(told)
    model, report = loaded
    _refuse_gaps(folder, report, may_lack_head=is_new or head == "none")
    return model


def _refuse_gaps(folder: Path, report: dict[str, Any], *, may_lack_head: bool) -> None:
    """A model with weights drawn at random in place of missing ones must not be used."""
    if may_lack_head:
        report = {
            "mismatched_keys": [
                k for k in report["mismatched_keys"] if not heads.is_score_key(k[0])
            ],
            "missing_keys": [k for k in report["missing_keys"] if not heads.is_score_key(k)],
        }
    if wrong := sorted(report["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise UserError(
            f"damaged checkpoint: `{folder}`: `{name}` has shape {tuple(found)} and its config"
            f" says {tuple(expected)}",
            hint="copy or pull the checkpoint again",
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"damaged checkpoint: `{folder}` has no weights for `{missing[0]}`"
            f" ({len(missing)} missing)",
            hint="copy or pull the checkpoint again",
        )


def _to_device(model: PreTrainedModel, device: Device) -> PreTrainedModel:
    import torch

    try:
        return model.to(device.torch_name)  # pyright: ignore[reportArgumentType]
    except torch.OutOfMemoryError as error:
        raise _no_memory(Path(str(model.name_or_path))) from error


def _no_memory(folder: Path) -> MachineError:
    return MachineError(
        f"no memory left while loading `{folder}`",
        hint="use a smaller dtype or model, or 4-bit weights (`--train_type qlora`)",
    )


def _refuse_lacking_bitsandbytes() -> None:
    lacking = [package for package in BITSANDBYTES if find_spec(package) is None]
    if lacking:
        raise MachineError(
            f"4-bit weights need {' and '.join(lacking)}, which this machine lacks",
            hint="pip install 'dialoop[qlora]'",
        )


def _nf4(compute: torch.dtype, head: Head) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=["score", "classifier"] if head == "score" else None,
    )
