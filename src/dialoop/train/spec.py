"""TrainJob: everything a training job can be asked for, and what it returns."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dialoop.core.schema import OneOf, Result, Spec
from dialoop.data.spec import DataSpec
from dialoop.train.adapter import Adapter
from dialoop.train.objectives import Objective
from dialoop.train.objectives.grpo import Grpo
from dialoop.train.objectives.sft import Sft
from dialoop.train.online import Online
from dialoop.train.optim import Optim
from dialoop.train.optimizers import Optimizer
from dialoop.train.optimizers.adamw import AdamW
from dialoop.train.tuners import Tuner
from dialoop.train.tuners.lora import Lora

if TYPE_CHECKING:
    from rich.console import RenderableType


class Saving(Spec, frozen=True):
    """When to measure, to save and to stop."""

    eval_on_start: bool = True
    """Measure the validation split before the first step too, so that the gain is known."""
    eval_steps: int = Field(default=0, ge=0)
    """Steps between measurements on the validation split; 0 measures once an epoch."""
    save_steps: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves once an epoch."""
    keep: PositiveInt = 2
    """Newest checkpoints kept; the best one stays besides."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many measurements without a better one; 0 never stops early."""
    log_steps: PositiveInt = 1
    """Steps between reports of the loss."""


class TrainJob(Spec, frozen=True):
    """Tune a model on dialogues or text."""

    aliases: ClassVar[Mapping[str, str]] = {
        "dataset": "data.dataset",
        "columns": "data.columns",
        "encoding": "data.encoding",
        "validation": "data.validation",
        "split_dataset_ratio": "data.validation",
        "model_type": "model",
        "train_type": "tuner",
        "tuner_type": "tuner",
        "lora_rank": "tuner.rank",
        "lora_alpha": "tuner.alpha",
        "lora_dropout": "tuner.dropout",
        "target_modules": "tuner.target_modules",
        "lr": "optim.lr",
        "learning_rate": "optim.lr",
        "weight_decay": "optim.weight_decay",
        "optim_type": "optimizer",
        "lr_scheduler_type": "optim.schedule",
        "warmup_ratio": "optim.warmup",
        "num_train_epochs": "epochs",
        "per_device_train_batch_size": "batch_size",
        "gradient_accumulation_steps": "accumulate",
        "eval_steps": "saving.eval_steps",
        "save_steps": "saving.save_steps",
        "output_dir": "output",
        "num_generations": "objective.num_answers",
        "max_completion_length": "objective.rollout.max_new_tokens",
        "o": "output",
        "gpu_ids": "device",
        "nproc_per_node": "gpus",
        "nnodes": "nodes",
        "sequence_parallel_size": "sequence_parallel",
        "torch_dtype": "dtype",
    }

    model: str
    """A short name, a folder, or an `hf://`, `ms://` address."""
    data: DataSpec
    """What to learn from (`--dataset`)."""
    output: Path
    """Folder for everything the job makes."""
    objective: Annotated[Objective, OneOf("dialoop.train.objectives")] = Sft()
    """What the loss rewards."""
    tuner: Annotated[Tuner, OneOf("dialoop.train.tuners")] = Lora()
    """Which parameters move."""
    optimizer: Annotated[Optimizer, OneOf("dialoop.train.optimizers")] = AdamW()
    """What moves them."""
    optim: Optim = Optim()
    """How fast they move."""
    saving: Saving = Saving()
    """When to measure, save and stop."""
    max_length: PositiveInt = 2048
    """Longest dialogue in tokens; longer ones are treated as `overlong` says."""
    overlong: Literal["drop", "truncate", "split", "error"] = "drop"
    """What becomes of a longer dialogue: dropped and counted, cut, split, or an error."""
    batch_size: PositiveInt = 1
    """Packed rows of `max_length` tokens computed at once."""
    accumulate: PositiveInt = 4
    """Such batches in one optimiser step; the loss is the mean over all their labelled tokens."""
    epochs: PositiveFloat = 3
    """Passes over the data; a part of one is allowed."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after this many optimiser steps; 0 goes by `epochs`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `npu`; a bare number is that accelerator."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the computation; `auto` is bf16 where the device is fast at it."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """Reference log-probabilities of dpo and kto: computed once before training and cached, or at
    each step from the model without its adapter."""
    gpus: PositiveInt = 1
    """Processes that train together on this machine, an accelerator each; on `cpu` as well."""
    nodes: PositiveInt = 1
    """Machines that train together; run the same command on each."""
    rendezvous: str = ""
    """Where the machines meet: `HOST:PORT` of one of them."""
    parallel: Literal["auto", "ddp", "fsdp", "zero2", "zero3"] = "auto"
    """What processes keep between steps: `ddp` all of the model, the others shards of it. `fsdp`,
    also called `zero3`, gathers a layer for each pass; `zero2` keeps it from the forward to the
    backward pass. `auto` is fsdp for full tuning and with `offload`."""
    offload: bool = False
    """Keep shards, gradients and optimiser states in the host's memory, where the optimiser runs,
    and gather a layer at a time on the accelerator; one process may do so too."""
    sequence_parallel: PositiveInt = 1
    """Processes that share each packed row, for rows too long for one."""
    sequence_method: Literal["auto", "gather_kv", "ulysses", "ring", "usp"] = "auto"
    """How they attend; `auto` goes by the model's heads and the row's length."""
    activation_checkpointing: Literal["auto", "none", "selective", "full", "offload"] = "auto"
    """Activations that are recomputed in the backward pass to save memory: `selective` keeps matrix
    products and attention, `full` only each layer's input, `offload` keeps that on the host; `auto`
    takes the fastest that is predicted to fit."""
    mlp_tile: int = Field(default=0, ge=0)
    """Tokens that go through an MLP at once, recomputed in the backward pass, so that the longest
    row is not bounded by the MLP's width; 0 takes all at once."""
    compile: bool = False
    """Compile each layer: minutes at the start, then fewer and larger kernels a step."""
    rope_scaling: Literal["none", "linear", "dynamic", "yarn", "llama3"] = "none"
    """Stretch the positions of a model for documents longer than it was trained for."""
    rope_factor: float | None = Field(default=None, gt=1)
    """How many times longer, with `rope_scaling`."""
    resume: bool = False
    """Go on from the newest checkpoint in `output`."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 lets torch choose."""
    workers: int = Field(default=0, ge=0)
    """Processes that tokenise; 0 takes every core."""
    seed: int = 42
    """Seeds data order, adapter initialisation and dropout."""

    @property
    def shards(self) -> bool:
        """Whether several processes keep shards of the model, as asked or as suits the tuner."""
        if self.parallel == "auto":
            return self.tuner.kind == "full" or self.offload
        return self.parallel != "ddp"

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> Self:
        """Raise on combinations that have no meaning, with the reason."""
        reads_whole = self.objective.num_rows != 1 or self.objective.head != "tokens"
        if self.overlong == "split" and reads_whole:
            raise ValueError(
                f"overlong: {self.objective.kind} reads texts whole, which cannot be split;"
                " use drop, truncate or error"
            )
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError("rendezvous: needed for nodes above 1; give HOST:PORT of one of them")
        whole = [one.kind for one in (self.tuner, self.optimizer) if one.needs_whole_matrices]
        if self.shards and (self.gpus * self.nodes > 1 or self.offload) and whole:
            names = " and ".join(whole)
            raise ValueError(
                f"parallel: shards split matrices, which {names} must have whole; use ddp"
            )
        self._refuse_offload()
        if (self.rope_scaling == "none") != (self.rope_factor is None):
            raise ValueError("rope_scaling and rope_factor: one says nothing without the other")
        if isinstance(self.objective, Online) and self.objective.is_online:
            self.objective.rollout.refuse(
                tuner=self.tuner,
                is_sharded=self.shards and self.gpus * self.nodes > 1,
                is_stretched=self.rope_factor is not None,
            )
        is_continued = isinstance(self.tuner, Adapter) and self.tuner.adapter is not None
        if isinstance(self.objective, Grpo) and self.objective.beta and is_continued:
            raise ValueError(
                "objective.beta: switching off an adapter that is trained on gives the model before"
                " it, not the one at the start; use beta 0, or merge the adapter first"
            )
        if self.overlong in {"split", "truncate"} and isinstance(self.objective, Grpo):
            raise ValueError("overlong: a prompt cannot be cut; use drop or error")
        if self.sequence_method != "auto" and self.sequence_parallel == 1:
            raise ValueError(
                f"sequence_method: {self.sequence_method} needs several processes for each row; set"
                " sequence_parallel"
            )
        if self.reference == "live" and not self.objective.needs_reference:
            raise ValueError(f"reference: {self.objective.kind} has none to choose; leave it out")
        if self.reference == "live" and not isinstance(self.tuner, Adapter):
            raise ValueError(
                f"reference: `live` switches an adapter off, and {self.tuner.kind} has none;"
                " use precomputed"
            )
        for name in self.optimizer.unused:
            if getattr(self.optim, name) != Optim.model_fields[name].default:
                raise ValueError(f"optim.{name}: {self.optimizer.kind} has none; leave it out")
        self.tuner.refuse(
            optimizer=self.optimizer, optim=self.optim, accumulate=self.accumulate, dtype=self.dtype
        )
        return self

    def _refuse_offload(self) -> None:
        if not self.offload:
            return
        if self.parallel == "ddp":
            raise ValueError("offload: ddp keeps no shards that could lie elsewhere; use fsdp")
        if self.device == "cpu":
            raise ValueError("offload: a job on the CPU has everything there; leave it out")
        if self.objective.is_online:
            raise ValueError(
                f"offload: {self.objective.kind} samples answers from the whole model; leave it out"
            )


class TrainResult(Result, frozen=True):
    """What training came to."""

    output: Path
    """The tuned model or adapter."""
    steps: int
    epochs: float
    tokens: int
    """Tokens seen, all of them real: rows are packed without padding."""
    seconds: float
    tokens_per_s: float
    train_loss: float
    """Mean of the last epoch's steps; nats a labelled token for sft and pt."""
    validation_loss: float | None
    """Of the weights that were kept; None without a validation split."""
    validation_before: float | None
    """The same before training, where it was measured."""
    best_step: int | None
    peak_memory_bytes: int
    report: Path

    def text(self) -> str:
        """A few lines."""
        before = "" if self.validation_before is None else f"{self.validation_before:.4f} -> "
        held_out = ""
        if self.validation_loss is not None:
            held_out = f", held out {before}{self.validation_loss:.4f}"
        return (
            f"trained {self.steps} steps on {self.tokens:,} tokens in {self.seconds:.0f} s"
            f" ({self.tokens_per_s:,.0f} tokens/s)\n"
            f"loss {self.train_loss:.4f}{held_out}\n"
            f"model:  {self.output}\nreport: {self.report}"
        )


class TrainPlan(Result, frozen=True):
    """What a job would do."""

    lines: dict[str, str]
    """What is on and off and why, by subject."""
    memory_bytes: int
    trained_parameters: int
    total_parameters: int

    def text(self) -> "RenderableType":
        """Subject and fact, one a row."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for subject, fact in self.lines.items():
            table.add_row(subject, Text(fact))
        return table
