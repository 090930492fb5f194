"""Every kind of adapter learns, is read by PEFT with the same logits, merges, and resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import make_tiny_checkpoint
from tests.train.small import (
    assert_it_learns,
    assert_it_resumes_bit_for_bit,
    job,
    logits,
    losses,
    ours,
)

from dialoop.core import events
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.models import lora
from dialoop.models.adapted import PissaLinear
from dialoop.models.load import load_model
from dialoop.models.merge import run as merge
from dialoop.models.spec import MergeJob
from dialoop.train.plan import plan
from dialoop.train.run import run

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4, "dropout": 0.1},
    "patterns": {
        "kind": "lora", "rank": 4, "rank_pattern": {"q_proj": 2, "layers.0.mlp.up_proj": 6},
        "alpha_pattern": {"v_proj": 3.0},
    },
    "dora": {"kind": "dora", "rank": 4, "dropout": 0.1},
    "rslora": {"kind": "rslora", "rank": 4},
    "lora_plus": {"kind": "lora_plus", "rank": 4, "lr_ratio": 4.0},
    "pissa": {"kind": "pissa", "rank": 4},
    "pissa fast": {"kind": "pissa", "rank": 4, "svd_iterations": 4, "rank_pattern": {"q_proj": 2}},
    "new tokens": {"kind": "lora", "rank": 4, "new_tokens": ["<|price|>", "<|lamp|>"]},
    "copies": {"kind": "lora", "rank": 4, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "base", hidden=32, tied=request.param)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny", hidden=32)


def by_peft(folder: Path) -> torch.nn.Module:
    """As anyone loads it; the base is found by its name and grown to the tokenizer's size."""
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_and_peft_and_merge_agree_and_it_resumes(
    name: str, base: Path, dialogues: Path, tmp_path: Path
) -> None:
    wanted = job(base, dialogues, tmp_path / "out", tuner=KINDS[name])
    assert_it_learns(wanted)
    mine = logits(ours(wanted.output))
    assert (mine[..., :400] - logits(ours(base))).abs().max() > 0.1  # without new tokens
    torch.testing.assert_close(mine, logits(by_peft(wanted.output)), atol=1e-5, rtol=1e-5)
    merge(MergeJob(model=str(wanted.output), output=tmp_path / "merged"), events.ignore)
    torch.testing.assert_close(mine, logits(ours(tmp_path / "merged")), atol=1e-4, rtol=1e-4)
    assert_it_resumes_bit_for_bit(wanted, tmp_path / "twice")


def test_new_tokens_are_learned_saved_and_merged(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = [{"query": f"lamp {n}", "response": f"<|price|>{n}"} for n in range(12)]
    data = tmp_path / "priced.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    tuner = {"kind": "lora", "rank": 4, "new_tokens": ["<|price|>"]}
    wanted = job(base, data, tmp_path / "out", tuner=tuner)
    assert_it_learns(wanted, 0.7)
    tokenizer = AutoTokenizer.from_pretrained(wanted.output)
    assert tokenizer("<|price|>").input_ids[-1] == len(tokenizer) - 1 == 400
    saved = load_file(wanted.output / "adapter_model.safetensors")
    rows = [tensor for name, tensor in saved.items() if "trainable_tokens_delta" in name]
    is_tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    assert [len(one) for one in rows] == [1] * (1 if is_tied else 2)
    merge(MergeJob(model=str(wanted.output), output=tmp_path / "merged"), events.ignore)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = tokenizer("lamp 3 <|price|>9", return_tensors="pt").input_ids
    with torch.no_grad():
        mine = ours(wanted.output)(ids).logits
        assert mine.shape[-1] == 401
        torch.testing.assert_close(merged(ids).logits, mine, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(by_peft(wanted.output)(ids).logits, mine, atol=1e-5, rtol=1e-5)
    more = job(base, data, tmp_path / "more", tuner={"kind": "lora", "adapter": str(wanted.output)})
    run(more, events.ignore)
    assert losses(more.output)[0] < losses(wanted.output)[0]
    assert len(AutoTokenizer.from_pretrained(more.output)) == 401


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dora_steps_as_peft_does(dropout: float, tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    config = lora.LoraConfig(rank=4, alpha=8, dropout=dropout, use_dora=True, targets=("q_proj",))
    lora.attach(model, config)
    layer = next(iter(lora.layers(model).values()))
    theirs = get_peft_model(
        load_model(tiny, device=find("cpu"), dtype="fp32"),
        LoraConfig(
            r=4, lora_alpha=8, lora_dropout=dropout, use_dora=True, target_modules=["q_proj"]
        ),
    )
    other: Any = theirs.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
    magnitude = other.lora_magnitude_vector["default"].weight
    x = torch.randn(7, 32)
    with torch.no_grad():
        b.normal_()
        magnitude.mul_(1.3)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        layer.get_parameter("lora_magnitude_vector").copy_(magnitude)
    for module in (layer, other):
        module.train()
        torch.manual_seed(3)
        module(x).square().sum().backward()
    torch.testing.assert_close(layer.lora_A.grad, a.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.lora_B.grad, b.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        layer.get_parameter("lora_magnitude_vector").grad, magnitude.grad, rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(layer.eval()(x), other.eval()(x), rtol=1e-5, atol=1e-5)


def test_pissa_begins_as_peft_does_and_leaves_the_model_as_it_was(tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    before = logits(model)
    lora.attach(model, lora.LoraConfig(rank=4, alpha=6, targets=("q_proj",)), kind=PissaLinear)
    layer = next(iter(lora.layers(model).values()))
    assert isinstance(layer, PissaLinear)
    for one in lora.layers(model).values():
        assert isinstance(one, PissaLinear)
        one.decompose(0)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    theirs = get_peft_model(
        load_model(tiny, device=find("cpu"), dtype="fp32"),
        LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", target_modules=["q_proj"]),
    )
    other: Any = theirs.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
    sign = (layer.lora_A * a).sum(1).sign()
    torch.testing.assert_close(layer.lora_A, a * sign[:, None], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.lora_B, b * sign, rtol=1e-4, atol=1e-5)
    residual = layer.weight - layer.scale * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(residual, other.base_layer.weight, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        layer.lora_B.mul_(2)
        b.mul_(2)
    x = torch.randn(5, 32)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-4, atol=1e-5)


def test_lora_plus_moves_b_faster(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    def first_step(kind: str, **fields: float) -> dict[str, torch.Tensor]:
        tuner = {"kind": kind, "rank": 4, "target_modules": ["q_proj"]} | fields
        optim = {"lr": 1e-3, "schedule": "constant", "warmup": 0}
        wanted = job(tiny, dialogues, tmp_path / kind, tuner=tuner, optim=optim, max_steps=1)
        run(wanted, events.ignore)
        return load_file(tmp_path / kind / "adapter_model.safetensors")

    plain, plus = first_step("lora"), first_step("lora_plus", lr_ratio=8.0)
    for name in plain:
        factor = 8 if "lora_B" in name else 1
        torch.testing.assert_close(plus[name], plain[name] * factor, rtol=1e-5, atol=1e-9)


def test_training_goes_on_from_an_adapter(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    begun = job(tiny, dialogues, tmp_path / "begun", tuner=KINDS["dora"] | {"rank": 3})
    run(begun, events.ignore)
    tuner = {"kind": "dora", "adapter": str(begun.output)}
    more = job(tiny, dialogues, tmp_path / "more", tuner=tuner)
    run(more, events.ignore)
    assert losses(more.output)[0] < 0.8 * losses(begun.output)[0]
    config, _ = lora.read_config(more.output)
    assert (config.rank, config.use_dora) == (3, True)
    torch.testing.assert_close(
        logits(ours(more.output)), logits(by_peft(more.output)), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(UserError, match="is a DoRA adapter, and the tuner is lora"):
        run(job(tiny, dialogues, tmp_path / "x", tuner=tuner | {"kind": "lora"}), events.ignore)


@pytest.mark.parametrize(
    ("tuner", "complaint"),
    [
        ({"kind": "lora", "adapter": "a", "rank": 8}, "rank: `a` has settled this"),
        (
            {"kind": "lora", "new_tokens": ["<a>"], "modules_to_save": ["lm_head"]},
            "lm_head is trained whole by modules_to_save",
        ),
        ({"kind": "pissa", "adapter": "a"}, "pissa is a way to begin"),
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_read(
    tuner: dict[str, Any], complaint: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        job(tiny, dialogues, tmp_path / "out", tuner=tuner)


def test_an_adapter_whose_rank_was_edited_is_refused(
    tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    run(job(tiny, dialogues, tmp_path / "out", max_steps=1, tuner=KINDS["lora"]), events.ignore)
    path = tmp_path / "out" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 8}))
    with pytest.raises(UserError, match="has rank 4 in its weights and 8 in its adapter_config"):
        ours(tmp_path / "out")


def test_an_unknown_copy_is_named(tiny: Path, dialogues: Path, tmp_path: Path) -> None:
    tuner = {"kind": "lora", "modules_to_save": ["nothing"]}
    with pytest.raises(UserError, match="no module matches `nothing` of modules_to_save"):
        run(job(tiny, dialogues, tmp_path / "out", tuner=tuner), events.ignore)


def test_tables_trained_apart_do_not_fit_a_tied_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_tiny_checkpoint(tmp_path / "tied", hidden=32, tied=True)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    with pytest.warns(UserWarning, match="tied"):
        theirs = get_peft_model(ours(base), config)
    theirs.save_pretrained(str(tmp_path / "a"))
    with pytest.raises(UserError, match="an embedding and a head of their own"):
        ours(tmp_path / "a")


def test_switched_off_every_adapter_is_its_base(tiny: Path) -> None:
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    before = logits(model)
    lora.attach(model, lora.LoraConfig(rank=4, copies=("lm_head", "embed_tokens")))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    assert (logits(model) - before).abs().max() > 0.1
    with lora.disabled(model):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", KINDS)
def test_the_plan_counts_what_is_trained(
    name: str, tiny: Path, dialogues: Path, tmp_path: Path
) -> None:
    wanted = job(tiny, dialogues, tmp_path / "out", tuner=KINDS[name])
    model = load_model(tiny, device=find("cpu"), dtype="fp32")
    wanted.tuner.prepare(model, 0)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    norms = sum(p.numel() for n, p in model.named_parameters() if "norm.trained" in n)
    assert plan(wanted).trained_parameters == counted - norms
