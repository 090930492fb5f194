"""InternLM3: the Llama decoder under another config, native in transformers only from 5.23.

The two modules that older transformers need lie in `models/remote_code/`: what is registered here
is what is written beside checkpoints, so the two cannot differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.core.files import write_bytes, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MODEL_TYPE = "internlm3"
ARCHITECTURES = ("InternLM3ForCausalLM", "InternLM3ForSequenceClassification", "InternLM3Model")
"""The names under which vLLM, SGLang and LMDeploy look the family up."""
NATIVE_SINCE = (5, 23)
CODE = Path(__file__).parents[1] / "remote_code"
AUTO_MAP = {
    "AutoConfig": "configuration_internlm3.InternLM3Config",
    "AutoModel": "modeling_internlm3.InternLM3Model",
    "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
    "AutoModelForSequenceClassification": "modeling_internlm3.InternLM3ForSequenceClassification",
}


def is_native() -> bool:
    """Whether the installed transformers knows the family by itself."""
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return (int(major), int(minor)) >= NATIVE_SINCE


def config_class() -> type[PreTrainedConfig]:
    """The family's config class: transformers' own, or ours where it has none."""
    if is_native():
        from transformers import AutoConfig

        return type(AutoConfig.for_model(MODEL_TYPE))
    from dialoop.models.remote_code.configuration_internlm3 import (  # noqa: PLC0415 - loads transformers
        InternLM3Config,
    )

    return InternLM3Config


def register() -> None:
    """Make the auto classes of transformers before 5.23 know the family."""
    if is_native():
        return
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    from dialoop.models.remote_code.configuration_internlm3 import (  # noqa: PLC0415
        InternLM3Config,
    )
    from dialoop.models.remote_code.modeling_internlm3 import (  # noqa: PLC0415
        InternLM3ForCausalLM,
        InternLM3ForSequenceClassification,
        InternLM3Model,
    )

    scored = InternLM3ForSequenceClassification
    AutoConfig.register(MODEL_TYPE, InternLM3Config, exist_ok=True)
    AutoModel.register(InternLM3Config, InternLM3Model, exist_ok=True)
    AutoModelForCausalLM.register(InternLM3Config, InternLM3ForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(InternLM3Config, scored, exist_ok=True)


def write_remote_code(folder: Path) -> None:
    """Put the code files beside a checkpoint and name them in its `config.json`."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    named = config["architectures"][0]
    config["architectures"] = [
        next(name for name in ARCHITECTURES if named.endswith(name.removeprefix("InternLM3")))
    ]
    config["auto_map"] = AUTO_MAP
    config["bias"] = config.get("mlp_bias", False)
    config["qkv_bias"] = config.get("attention_bias", False)
    write_text(path, json.dumps(config, indent=2) + "\n")
    for name in ("configuration_internlm3.py", "modeling_internlm3.py"):
        write_bytes(folder / name, (CODE / name).read_bytes())
