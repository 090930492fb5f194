"""Smoke checks of langchain-openai; usage: langchain_client.py OPEN_URL KEYED_URL MODEL.

It runs in an environment of its own, without dialoop.
"""

import json
import sys
from typing import Any

import openai
from langchain_openai import (  # pyright: ignore[reportMissingImports]  an environment of its own
    ChatOpenAI,
    OpenAIEmbeddings,
)

OPEN, KEYED, MODEL = sys.argv[1:]
WORDS = "Hello there, friend"
PERSON = {
    "title": "person",
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def model(url: str = OPEN, name: str = MODEL, key: str = "any", **more: Any) -> Any:
    """A chat model of LangChain's."""
    return ChatOpenAI(base_url=url, model=name, api_key=key, max_retries=0, **more)


def text(chunks: list[Any]) -> str:
    """What a stream says."""
    return "".join(one.content for one in chunks)


def weather() -> str:
    """The weather."""
    return ""


def chat() -> None:
    """A whole answer."""
    found = model().invoke("hello")
    assert found.content == WORDS, found
    assert found.usage_metadata["total_tokens"] == 12, found


def stream() -> None:
    """An answer in pieces."""
    chunks = list(model(stream_usage=False).stream("hello"))
    assert text(chunks) == WORDS, chunks


def stream_usage() -> None:
    """Usage at the end of a stream."""
    told = [one.usage_metadata for one in model(stream_usage=True).stream("hello")]
    assert [one["total_tokens"] for one in told if one] == [12], told


def tool_call() -> None:
    """A required tool is called."""
    found = model().bind_tools([weather], tool_choice="required").invoke("hello")
    assert [one["name"] for one in found.tool_calls] == ["weather"], found


def json_schema() -> None:
    """An answer by a schema."""
    found = model().with_structured_output(PERSON, method="json_schema").invoke("hello")
    assert found == {"name": "Ada"}, found


def embeddings() -> None:
    """Vectors of a text."""
    client = OpenAIEmbeddings(
        base_url=OPEN, model=MODEL, api_key="any", check_embedding_ctx_length=False
    )
    found = client.embed_query("hello")
    assert found == [0.5, -0.25], found


def refusal(of: Any) -> tuple[int, Any]:
    """Status and code of what a model raises."""
    try:
        of.invoke("hello")
    except openai.APIStatusError as error:
        return error.status_code, error.code
    raise AssertionError("nothing is raised")


def not_found() -> None:
    """An absent model."""
    found = refusal(model(name="absent"))
    assert found == (404, "model_not_found"), found


def unauthorized() -> None:
    """A wrong key."""
    found = refusal(model(KEYED, key="wrong"))
    assert found == (401, "invalid_api_key"), found


def cut_stream() -> None:
    """A stream that the engine breaks raises."""
    try:
        list(model().stream("cut"))
    except openai.APIError:
        return
    raise AssertionError("nothing is raised")


CHECKS = (
    chat,
    stream,
    stream_usage,
    tool_call,
    json_schema,
    embeddings,
    not_found,
    unauthorized,
    cut_stream,
)

if __name__ == "__main__":
    results: dict[str, str] = {}
    for check in CHECKS:
        try:
            check()
            results[check.__name__] = "passed"
        except Exception as error:  # noqa: BLE001  whatever a client raises is a result
            results[check.__name__] = f"failed: {type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(results))
