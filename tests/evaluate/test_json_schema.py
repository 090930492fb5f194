"""JSON Schema: every keyword, a value that fits and one that does not."""

from typing import Any

import pytest

from dialoop.evaluate.json_schema import problems, refuse_unknown


@pytest.mark.parametrize(
    ("schema", "fits", "breaks"),
    [
        ({"type": "integer"}, 3.0, 3.5),
        ({"type": "number"}, 3, True),
        ({"type": ["string", "null"]}, None, 0),
        ({"const": 1}, 1.0, True),
        ({"enum": ["a", [1]]}, [1.0], "b"),
        ({"minimum": 2, "exclusiveMaximum": 3}, 2, 3),
        ({"multipleOf": 2}, 4, 5),
        ({"minLength": 2, "maxLength": 3, "pattern": "^a"}, "ab", "abcd"),
        ({"pattern": "^a"}, 7, "ba"),
        ({"minItems": 1, "maxItems": 2, "uniqueItems": True}, [1, 2], [1, 1.0]),
        ({"prefixItems": [{"type": "string"}], "items": {"type": "null"}}, ["a", None], ["a", 1]),
        ({"required": ["a"], "additionalProperties": False, "properties": {"a": {}}}, {"a": 1}, {}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"a": 1}, {"b": 1}),
        ({"properties": {"a": {"items": {"type": "string"}}}}, {"a": ["x"]}, {"a": [1]}),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, 6, 4),
        ({"oneOf": [{"minimum": 2}, {"maximum": 3}]}, 1, 2.5),
        ({"allOf": [{"minimum": 2}, {"maximum": 3}]}, 2, 4),
        ({"not": {"type": "string"}}, 1, "x"),
        ({"minProperties": 1, "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}),
    ],
)
def test_keywords(schema: dict[str, Any], fits: Any, breaks: Any) -> None:
    refuse_unknown(schema)
    assert problems(schema, fits) == []
    assert problems(schema, breaks)


def test_problems_say_where() -> None:
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    assert problems(schema, {"a": ["x", 1]}) == ["$.a[1] is no string"]


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"type": "text"}, {"anyOf": [{"if": {}}]}, 3])
def test_what_is_not_known_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"not known|unknown|a schema is an object"):
        refuse_unknown(schema)
