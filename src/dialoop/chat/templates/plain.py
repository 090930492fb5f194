"""Base models that have no dialogue tokens: named roles, and the eos token after every answer."""

from dialoop.chat.templates import BuiltIn

TEMPLATE = BuiltIn(
    name="plain",
    rank=9,
    fits=lambda _model_type, _added: True,
    source=(
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        "{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}"
        "{% else %}"
        "{{ message['role'] | capitalize + ': ' + message['content'] + '\\n' }}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
)
