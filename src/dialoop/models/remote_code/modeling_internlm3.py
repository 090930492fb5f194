"""InternLM3 for transformers before 5.23: the Llama decoder under the family's name."""

from torch import nn  # noqa: TID253 - transformers loads this file by itself
from transformers import (  # noqa: TID253
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    LlamaPreTrainedModel,
)

from .configuration_internlm3 import InternLM3Config  # noqa: TID252 - it also runs outside dialoop


class InternLM3Model(LlamaModel):
    """The decoder without a head."""

    config_class = InternLM3Config


class InternLM3ForCausalLM(LlamaForCausalLM):
    """The same modules and the same weights as Llama."""

    config_class = InternLM3Config


class InternLM3ForSequenceClassification(LlamaForSequenceClassification):
    """The decoder with scores of the last token."""

    config_class = InternLM3Config

    def __init__(self, config: InternLM3Config) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # Llama's own asks the auto classes
        self.num_labels: int = config.num_labels or 1
        self.model = InternLM3Model(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()
