"""InternLM3 for transformers before 5.23: the Llama decoder under the family's name."""

from transformers import LlamaForCausalLM  # noqa: TID253 - transformers loads this file by itself

from .configuration_internlm3 import InternLM3Config  # noqa: TID252 - it also runs outside dialoop


class InternLM3ForCausalLM(LlamaForCausalLM):
    """The same modules and the same weights as Llama."""

    config_class = InternLM3Config
