"""Tiny checkpoints, made once, and adapters that PEFT wrote."""

from pathlib import Path

import pytest
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def internlm3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "internlm3", "internlm3")


@pytest.fixture(scope="session")
def adapter(internlm3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter with updates large enough to change answers."""
    return peft_adapter(internlm3, tmp_path_factory.mktemp("adapters") / "a")


def peft_adapter(base: Path, folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from dialoop.models.families import register_all

    register_all()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(str(folder))
    return folder
