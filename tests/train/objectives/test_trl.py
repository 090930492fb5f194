"""Losses and gradients equal TRL's trainers on the same batch and weights, in float32.

The rows are those of TRL's own batch, so that only the mathematics is compared.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core import device, events, jobfile
from dialoop.data.units import Row, Unit
from dialoop.models.load import load_model
from dialoop.train.loop import Loop
from dialoop.train.parallel.team import Team
from dialoop.train.reference import precompute
from dialoop.train.spec import TrainJob
from dialoop.train.view import View, use_packed_attention

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
"""Of losses, and of gradients as a share of the largest one of a parameter."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def load(tiny: Path, moved: float = 0.0) -> Any:
    """The tiny model; `moved` away from where it started."""
    model = load_model(tiny, device=device.find("cpu"), dtype="fp32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return model.train()


def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def conversations(n: int) -> list[dict[str, Any]]:
    user = [{"role": "user", "content": f"which lamp is number {n}"}]
    good = [{"role": "assistant", "content": "the red lamp" + " please" * n}]
    bad = [{"role": "assistant", "content": "go away" * (3 - n % 3)}]
    return [
        {"prompt": user, "chosen": good, "rejected": bad},
        {"prompt": user, "completion": good if n % 2 else bad, "label": bool(n % 2)},
    ]


PAIRS = [conversations(n)[0] for n in range(3)]
JUDGED = [conversations(n)[1] for n in range(4)]


def arguments(kind: Any, folder: Path, **settings: Any) -> Any:
    return kind(
        output_dir=str(folder), use_cpu=True, report_to="none", bf16=False,
        per_device_train_batch_size=8, gradient_checkpointing=False, disable_dropout=True,
        max_length=256, remove_unused_columns=False, **settings,
    )  # fmt: skip


def rows(ids: Any, learned: Any, present: Any) -> list[Row]:
    """Rows of a padded batch."""
    return [
        Row(i[p > 0].numpy().astype(np.int32), m[p > 0].numpy().astype(np.float32))
        for i, m, p in zip(ids, learned, present, strict=True)
    ]


def ours(
    tiny: Path,
    model: Any,
    objective: dict[str, Any],
    units: list[Unit],
    surveyed: Any = None,
    *,
    start_moved: float = 0.0,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step, its units dealt over two micro-batches."""
    job = jobfile.parse(TrainJob, {
        "model": str(tiny), "data": {"dataset": ["x"]}, "output": "unused", "max_length": 512,
        "tuner": {"kind": "full"}, "objective": objective, "device": "cpu", "dtype": "fp32",
    })  # fmt: skip
    start = load(tiny, start_moved)
    use_packed_attention(model)
    use_packed_attention(start)

    class Given(list[Unit]):
        """Units with their references."""

        lengths = np.asarray([len(unit) for unit in units])
        references: Any = None
        survey_references: Any = None

    given = Given(units)
    if job.objective.needs_reference:

        def measured(wanted: list[Unit], name: str) -> Any:
            return precompute(
                View(start), job.objective, wanted.__getitem__, len(wanted), team=Team(),
                capacity=512, autocast=None, emit=events.ignore, cache=tiny / "cache",
                key=json.dumps([name, objective, start_moved]) + str(len(wanted)),
            )  # fmt: skip

        given.references = measured(units, "units")
        if surveyed:
            given.survey_references = measured(surveyed, "survey")
    loop = Loop.__new__(Loop)
    loop.job, loop.objective, loop.model, loop.view = job, job.objective, model, View(model)
    loop.team, loop.rollout = Team(), None
    loop.device, loop.autocast = torch.device("cpu"), None
    half = len(units) // 2
    numbers = [list(range(half)), list(range(half, len(units)))]
    with pytest.MonkeyPatch.context() as patch:
        if surveyed:
            kind = type(job.objective)
            patch.setattr(kind, "survey_unit", lambda self, units, number: surveyed[number])
        totals = loop._run(given, numbers, train=True)  # pyright: ignore[reportArgumentType]
    return totals["loss"], {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_same(loss: float, gradients: dict[str, torch.Tensor], theirs: Any, model: Any) -> None:
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=TOLERANCE)
    for name, parameter in model.named_parameters():
        limit = TOLERANCE * parameter.grad.abs().max().item()
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=limit)


DPO = [
    ({}, {}),
    ({"loss_type": "ipo"}, {"loss_type": ["ipo"]}),
    ({"loss_type": "hinge"}, {"loss_type": ["hinge"]}),
    (
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    ({"loss_type": "apo_zero"}, {"loss_type": ["apo_zero"]}),
    ({"loss_type": "apo_down"}, {"loss_type": ["apo_down"]}),
    ({"ld_alpha": 0.5}, {"ld_alpha": 0.5}),
    ({"rpo_alpha": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
]  # fmt: skip


@pytest.mark.parametrize(("mine", "trl"), DPO, ids=lambda x: str(x))
def test_dpo(mine: dict[str, Any], trl: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    model = load(tiny, 0.05)
    policy = copy.deepcopy(model)
    trainer: Any = DPOTrainer(
        model, ref_model=load(tiny).eval(), args=arguments(DPOConfig, tmp_path, beta=0.3, **trl),
        train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer(tiny),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    both = rows(batch["input_ids"], batch["completion_mask"], batch["attention_mask"])
    units = [Unit(pair) for pair in zip(both[: len(PAIRS)], both[len(PAIRS) :], strict=True)]
    loss, gradients = ours(tiny, policy, {"kind": "dpo", "beta": 0.3, **mine}, units)
    assert_same(loss, gradients, trainer.compute_loss(trainer.model, batch), trainer.model)


@pytest.mark.parametrize(
    ("loss_type", "moved", "start_moved"),
    [("kto", 0.05, 0.0), ("kto", 0.0, 0.05), ("apo_zero_unpaired", 0.05, 0.0)],
    ids=["kto below its start", "kto above its start", "apo"],
)
def test_kto(loss_type: str, moved: float, start_moved: float, tiny: Path, tmp_path: Path) -> None:
    """Above its start the reference point is above zero; below, it is held at zero."""
    from datasets import Dataset
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    model = load(tiny, moved)
    policy = copy.deepcopy(model)
    settings = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    trainer: Any = KTOTrainer(
        model, ref_model=load(tiny, start_moved).eval(),
        args=arguments(KTOConfig, tmp_path, loss_type=loss_type, **settings),
        train_dataset=Dataset.from_list(JUDGED), processing_class=tokenizer(tiny),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    own = rows(batch["input_ids"], batch["completion_mask"], batch["attention_mask"])
    units = [Unit((row,), float(label)) for row, label in zip(own, batch["label"], strict=True)]
    surveyed = None
    if loss_type == "kto":
        names = ("KL_input_ids", "KL_completion_mask", "KL_attention_mask")
        surveyed = [Unit((row,)) for row in rows(*(batch[name] for name in names))]
    else:
        surveyed = units
    objective = {"kind": "kto", "loss_type": loss_type, **settings}
    loss, gradients = ours(tiny, policy, objective, units, surveyed, start_moved=start_moved)
    assert_same(loss, gradients, trainer.compute_loss(trainer.model, batch), trainer.model)
    assert (trainer._metrics["train"]["kl"][-1] > 0) == (start_moved > 0)


def padded_pairs() -> tuple[list[Unit], dict[str, torch.Tensor]]:
    """Random pairs, and the same as the padded batch of TRL's older trainers."""
    random = np.random.default_rng(0)
    units: list[Unit] = []
    for _ in range(3):
        prompt = random.integers(5, 60, 6)
        answers = [random.integers(5, 60, n) for n in random.integers(3, 9, 2)]
        units.append(Unit(tuple(
            Row(
                np.concatenate([prompt, answer]).astype(np.int32),
                np.concatenate([np.zeros(6), np.ones(len(answer))]).astype(np.float32),
            )
            for answer in answers
        )))  # fmt: skip
    batch: dict[str, torch.Tensor] = {}
    for side, name in enumerate(("chosen", "rejected")):
        chosen = [unit.rows[side] for unit in units]
        ids = [torch.tensor(row.ids).long() for row in chosen]
        labels = [
            torch.where(torch.tensor(r.weights) > 0, i, -100)
            for r, i in zip(chosen, ids, strict=True)
        ]
        mask = [torch.ones_like(i) for i in ids]
        pad = torch.nn.utils.rnn.pad_sequence
        batch[f"{name}_input_ids"] = pad(ids, batch_first=True)
        batch[f"{name}_labels"] = pad(labels, batch_first=True, padding_value=-100)
        batch[f"{name}_attention_mask"] = pad(mask, batch_first=True)
    return units, batch


CPO = [
    ({"kind": "cpo"}, {}),
    ({"kind": "cpo", "loss_type": "hinge"}, {"loss_type": "hinge"}),
    ({"kind": "cpo", "loss_type": "ipo", "alpha": 0.0}, {"loss_type": "ipo", "cpo_alpha": 0.0}),
    (
        {"kind": "simpo", "gamma": 0.4, "beta": 2.0},
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.4, "beta": 2.0},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("mine", "trl"), CPO, ids=lambda x: str(x))
def test_cpo_and_simpo(
    mine: dict[str, Any], trl: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl.experimental.cpo.cpo_config import CPOConfig
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    model = load(tiny, 0.05)
    policy = copy.deepcopy(model)
    trainer: Any = CPOTrainer(
        model, args=arguments(CPOConfig, tmp_path, **({"beta": 0.1} | trl)),
        train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer(tiny),
    )  # fmt: skip
    units, batch = padded_pairs()
    loss, gradients = ours(tiny, policy, mine, units)
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    assert_same(loss, gradients, theirs, trainer.model)


def test_orpo(tiny: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.experimental.orpo.orpo_config import ORPOConfig
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    model = load(tiny, 0.05)
    policy = copy.deepcopy(model)
    trainer: Any = ORPOTrainer(
        model, args=arguments(ORPOConfig, tmp_path, beta=0.3),
        train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer(tiny),
    )  # fmt: skip
    units, batch = padded_pairs()
    loss, gradients = ours(tiny, policy, {"kind": "orpo", "beta": 0.3}, units)
    chosen, rejected, logits, *_ = trainer.concatenated_forward(trainer.model, batch)
    labels = batch["chosen_labels"]
    logits = logits[:, : labels.shape[1] - 1]
    # TRL takes the likelihood of the prompt too; ours, as the paper has it, that of the answer.
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    theirs = nll - trainer.odds_ratio_loss(chosen, rejected)[0].mean()
    assert_same(loss, gradients, theirs, trainer.model)
