"""Llama 3: role headers, and an end token after every turn."""

from dialoop.chat.templates import BuiltIn

TEMPLATE = BuiltIn(
    name="llama3",
    rank=2,
    fits=lambda _, added: {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= added,
    source=(
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
        " + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
        "{% endif %}"
    ),
)
