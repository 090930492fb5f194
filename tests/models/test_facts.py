"""Facts without weights equal what transformers builds."""

from pathlib import Path

import pytest
import torch

from dialoop.core.errors import UserError
from dialoop.models import catalog
from dialoop.models.facts import facts, facts_of

PUBLISHED = {
    "internlm3-8b": 8_804_241_408,
    "llama3.1-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-8b": 8_190_735_360,
    "mistral-7b": 7_248_023_552,
    "smollm2-1.7b": 1_711_376_384,
    "starter": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    known = catalog.find(name)
    assert known
    assert known.shape.num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen2.5-0.5b", "smollm2-360m", "internlm3-8b"])
def test_shapes_are_those_that_transformers_builds(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from dialoop.models.families import register_all

    register_all()
    known = catalog.find(name)
    assert known
    shape = known.shape
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied_embeddings,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == shape.num_parameters()


def test_facts_of_a_folder(internlm3: Path) -> None:
    found = facts(internlm3)
    assert (found.family, found.num_layers, found.num_kv_heads) == ("internlm3", 2, 2)
    assert (found.head_dim, found.vocab_size, found.max_positions) == (16, 400, 512)
    assert found.weight_bytes == 4 * found.num_parameters


def test_facts_of_an_adapter_are_those_of_its_base(internlm3: Path, adapter: Path) -> None:
    assert facts(adapter) == facts(internlm3)


def test_a_known_name_needs_no_weights() -> None:
    assert facts_of("internlm3-8b").weight_bytes == 2 * PUBLISHED["internlm3-8b"]
    assert facts_of("Qwen/Qwen3-8B") == facts_of("qwen3-8b")


def test_an_unknown_name_that_is_not_here() -> None:
    with pytest.raises(UserError, match=r"nothing is known of model `acme/mystery`"):
        facts_of("acme/mystery")


def test_a_config_that_is_no_decoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 8}')
    with pytest.raises(UserError, match="does not say 'num_attention_heads'"):
        facts(tmp_path)
