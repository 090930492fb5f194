"""Configuration of InternLM3 for transformers before 5.23: Llama's, with the family's names."""

from transformers import LlamaConfig  # noqa: TID253 - transformers loads this file by itself


class InternLM3Config(LlamaConfig):
    """A Llama configuration whose biases are called `qkv_bias` and `bias`."""

    model_type = "internlm3"
    attribute_map = {"qkv_bias": "attention_bias", "bias": "mlp_bias"}  # noqa: RUF012 - its contract
