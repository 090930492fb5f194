"""What the tuners share that add tokens to the vocabulary, and how their rows begin.

A row begins as the mean of the rows that wrote the token before. Where the tokenizer knows one of
those pieces only as unknown, the mean would be the same for all such tokens; their rows are drawn
from the normal distribution of the table's rows. Source: Hewitt 2021, "Initializing New Word
Embeddings for Pretrained Language Models", with a diagonal covariance.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from dialoop.core import env
from dialoop.train.tuners import Tuner

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from dialoop.models.spec import ModelFacts


class Vocabulary(Tuner, frozen=True):
    """A tuner that can add tokens."""

    new_tokens: list[str] = Field(default=[])
    """Special tokens added to the vocabulary; their rows of embedding and head are trained."""
    new_words: list[str] = Field(default=[])
    """Words or characters added likewise, as plain text: those that the tokenizer reads as unknown,
    say."""

    @override
    def text_folder(self, folder: Path, output: Path) -> Path:
        from dialoop.models.new_tokens import extend

        if not self.new_tokens and not self.new_words:
            return folder
        if env.rank() == 0:  # the others find what it wrote
            extend(folder, output, self.new_tokens, self.new_words)
        return output

    @property
    @override
    def reads_weights(self) -> bool:
        return bool(self.new_tokens or self.new_words)

    def num_new(self, facts: ModelFacts) -> int:
        """Parameters of the rows added, for the plan."""
        count = len({*self.new_tokens, *self.new_words})
        return count * facts.hidden_size * (1 if facts.tied_embeddings else 2)

    def add_rows(self, model: PreTrainedModel, seed: int) -> tuple[int, ...]:
        """Rows for the new tokens.

        Args:
            model: grown in place.
            seed: of the rows that are drawn.

        Returns:
            their ids.
        """
        import torch

        from dialoop.models.lora import grow, tables
        from dialoop.models.new_tokens import Pieces, token_ids

        added = [*self.new_tokens, *self.new_words]
        if not added:
            return ()
        folder = Path(str(model.name_or_path))
        ids, pieces = token_ids(folder, added), Pieces(folder)
        num_before = len(model.get_input_embeddings().get_parameter("weight"))
        grow(model, max(ids.values()) + 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for table in tables(model):
                weight = table.get_parameter("weight")
                known = weight[:num_before].float()  # (V, D)
                mean, deviation = known.mean(0).cpu(), known.std(0).cpu()
                for token, number in ids.items():
                    old = pieces.known(token)
                    row: Tensor = (
                        mean + deviation * torch.randn(mean.shape, generator=generator)
                        if old is None
                        else known[old].mean(0)
                    )
                    weight[number] = row.to(weight.device, weight.dtype)
        return tuple(ids.values())
