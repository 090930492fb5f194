"""Tuners: one file each; which parameters move, how, and how the result is saved."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dialoop.core.schema import Option

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch.optim import Optimizer as TorchOptimizer
    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts
    from dialoop.train.optim import Optim
    from dialoop.train.optimizers import Optimizer


class Tuner(Option, frozen=True):
    """Decides which parameters of a loaded model move."""

    quantization: ClassVar[Literal["nf4"] | None] = None
    """How the frozen base is stored while training, unless it is quantized already."""
    takes_quantized: ClassVar[bool] = False
    """Whether it trains on a base that is quantized already."""
    saves_model: ClassVar[bool] = True
    """Whether the result is a whole model; otherwise it is an adapter."""
    autocasts: ClassVar[bool] = True
    """Whether weights that are wider than the job's type do the computing, by autocast."""
    needs_whole_matrices: ClassVar[bool] = False
    """Whether it cannot work, or was not made to, on shards of a matrix."""
    default_lr: ClassVar[float]
    """Peak learning rate when the job names none."""

    @property
    def reads_weights(self) -> bool:
        """Whether `prepare` computes with weights on the host, so that every rank needs them."""
        return False

    @property
    def start(self) -> str:
        """What beside the model decides the policy at its start, for caches."""
        return str(self.quantization)

    def refuse(self, *, optimizer: Optimizer, optim: Optim, accumulate: int, dtype: str) -> None:
        """Raise on a job that this tuner cannot do.

        Raises:
            ValueError: the field, and why.
        """
        del optimizer, optim, accumulate, dtype

    def text_folder(self, folder: Path, output: Path) -> Path:
        """Where the tokenizer and the template lie that the job uses and its result gets.

        Args:
            folder: the model's.
            output: the job's, which may be written.
        """
        del output
        return folder

    @abstractmethod
    def prepare(self, model: PreTrainedModel, seed: int) -> None:
        """Mark or add the parameters that move, in place; those are float32 afterwards."""

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path, base: str, dtype: str) -> None:
        """Write the weights that other tools load: an adapter in PEFT's format, or a model."""

    @abstractmethod
    def num_trained(self, facts: ModelFacts) -> int:
        """How many parameters move in a model of that shape, for the plan."""

    @abstractmethod
    def weight_bytes(self, facts: ModelFacts, compute_bytes: int) -> int:
        """Memory of all weights, trained ones included, for the plan."""

    def state_bytes(self, facts: ModelFacts, optimizer: Optimizer) -> int:
        """Memory of gradients and optimiser states, for the plan."""
        return int(self.num_trained(facts) * (4 + optimizer.state_bytes))

    def parameter_groups(self, model: PreTrainedModel, optim: Optim) -> list[dict[str, Any]]:
        """The parameters that move, in groups as torch's optimisers take them.

        Beside `params` and `weight_decay` a group says `lr_scale`, the factor of the job's rate,
        and `is_hidden`: matrices between embedding and head, which Muon treats apart.
        """
        from dialoop.train.groups import groups_of

        return groups_of(model, optim.weight_decay)

    def optimizer(
        self, model: PreTrainedModel, optim: Optim, optimizer: Optimizer, seed: int
    ) -> TorchOptimizer:
        """What moves the parameters; `seed` is for tuners that draw."""
        del seed
        return optimizer.build(self.parameter_groups(model, optim), optim)

    def step(
        self, model: PreTrainedModel, optimizer: TorchOptimizer, number: int, seed: int
    ) -> AbstractContextManager[None]:
        """Around the forward passes, the backward passes and the update of one step.

        Args:
            model: the model in training.
            optimizer: what `optimizer` made.
            number: of the step, from 0; the same after a resume.
            seed: of the run.
        """
        del model, optimizer, number, seed
        return nullcontext()
