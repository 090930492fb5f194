"""Saved weights are for everyone who may read the folder."""

from pathlib import Path

from dialoop.core.device import find
from dialoop.models import lora
from dialoop.models.load import load_model
from dialoop.models.save import save_weights


def test_weights_are_readable_by_others(llama: Path, tmp_path: Path) -> None:
    model = load_model(llama, device=find("cpu"), dtype="fp32")
    save_weights(model, tmp_path, "bf16")
    config = lora.LoraConfig(rank=2, alpha=4.0)
    lora.attach(model, config, seed=0)
    lora.save(model, config, tmp_path, base=str(llama))
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("*.safetensors")}
    assert modes == {"model.safetensors": 0o644, lora.WEIGHTS_FILE: 0o644}
