"""ChatML: the form of Qwen, SmolLM and many others."""

from dialoop.chat.templates import BuiltIn

TEMPLATE = BuiltIn(
    name="chatml",
    rank=3,
    fits=lambda _, added: {"<|im_start|>", "<|im_end|>"} <= added,
    source=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)
