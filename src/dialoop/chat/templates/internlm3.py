"""InternLM 2 and 3: ChatML after the bos token."""

from dialoop.chat.templates import BuiltIn

TEMPLATE = BuiltIn(
    name="internlm3",
    rank=1,
    fits=lambda model_type, added: (
        model_type.startswith("internlm") and "<|im_start|>" in added and "<s>" in added
    ),
    source=(
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)
