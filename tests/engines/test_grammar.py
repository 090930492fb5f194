"""Schemas become grammars that OpenVINO GenAI and xgrammar's own matcher read alike."""

import json

import pytest

from dialoop.chat.calls import TAGS, call_schema
from dialoop.engines.grammar import ebnf

xgrammar = pytest.importorskip("xgrammar")


def allows(schema: object, value: str) -> bool:
    """Whether a grammar, read anew from its spelling, takes a whole text."""
    info = xgrammar.TokenizerInfo([bytes([n]) for n in range(256)], stop_token_ids=[])
    grammar = xgrammar.Grammar.from_ebnf(ebnf(json.dumps(schema)))
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(grammar))
    return matcher.accept_string(value) and matcher.is_completed()


def test_repetitions_without_an_end_are_spelt_as_older_versions_read_them() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"const": 'a{0, -1}"[{1, -1}]'}, "l": {"type": "array"}},
        "required": ["x", "l"],
    }
    assert "{0,}" in ebnf(json.dumps(schema))
    assert allows(schema, json.dumps({"x": 'a{0, -1}"[{1, -1}]', "l": [1, 2, 3, 4]}))


def test_white_space_is_that_of_json_dumps() -> None:
    assert allows({"type": "object"}, '{"a": [1, 2]}')
    assert not allows({"type": "object"}, '{ "a": [1, 2]}')


def test_a_call_has_the_arguments_of_its_own_tool() -> None:
    def takes(name: str) -> dict[str, object]:
        link = {"$ref": "#/$defs/T"}
        fixed = {"type": "object", "properties": {name: link}, "required": [name]}
        return fixed | {"additionalProperties": False, "$defs": {"T": {"const": name}}}

    schema = call_schema({name: takes(name) for name in "fgh"}, TAGS)
    for name in "fgh":
        for key in "fgh":
            call = json.dumps({"name": name, "arguments": {key: key}})
            assert allows(schema, call) == (name == key)
