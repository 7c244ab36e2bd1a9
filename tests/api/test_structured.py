"""Output that has to follow a grammar or a schema, on a real server."""

import json
from typing import Any

import httpx
import jsonschema
import pytest

from tests.api.format_checks import FORMATS
from tests.api.schema_corpus import REFUSED, SCHEMAS
from tests.conftest import Server

pytestmark = pytest.mark.e2e

CAT = [{"role": "user", "content": "Answer in JSON about a cat."}]
LEAF = {
    "type": "object",
    "properties": {"kind": {"enum": ["leaf"]}, "green": {"type": "boolean"}},
    "required": ["kind", "green"],
    "additionalProperties": False,
}


def chat(server: Server, **settings: Any) -> httpx.Response:
    """One answer, greedy unless stated otherwise."""
    body = {"messages": CAT, "temperature": 0, "max_tokens": 32} | settings
    return httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=120)


def choice_of(answer: httpx.Response) -> tuple[str, str]:
    """Text and finish reason."""
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def form(schema: Any) -> dict[str, Any]:
    """OpenAI's way to ask for a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_grammar_holds(server: Server, temperature: float) -> None:
    """Only what the grammar allows is said, and the answer ends where the grammar does."""
    text, reason = choice_of(
        chat(server, grammar='root ::= ("yes" | "no") ", " [0-9]{3}', temperature=temperature, seed=8)
    )
    word, number = text.split(", ")
    assert word in ("yes", "no")
    assert len(number) == 3
    assert number.isdigit()
    assert reason == "stop"


def test_a_grammar_holds_for_every_choice(server: Server) -> None:
    """Choices do not share their place in the grammar."""
    answer = chat(server, grammar='root ::= "<" [a-z]{4} ">"', n=3, temperature=2, seed=1).json()
    texts = [c["message"]["content"] for c in answer["choices"]]
    assert len(texts) == 3
    assert all(len(t) == 6 and t[0] == "<" and t[-1] == ">" and t[1:-1].islower() for t in texts)


def test_json_object_is_an_object(server: Server) -> None:
    """`json_object` gives an object, here with the shortest one the likeliest to be complete."""
    ask = [{"role": "user", "content": "Say {} and nothing else."}]
    bias = {str(t): 20 for t in tokens(server, "}")}
    text, reason = choice_of(
        chat(server, messages=ask, response_format={"type": "json_object"}, logit_bias=bias)
    )
    assert isinstance(json.loads(text), dict)
    assert reason == "stop"


def tokens(server: Server, text: str) -> list[int]:
    """Token ids of a text."""
    ids: list[int] = httpx.post(f"{server.url}/tokenize", json={"content": text}).json()["tokens"]
    return ids


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_holds(fast: Server, name: str) -> None:
    """The answer is JSON that the schema accepts, of a model that has no idea of either."""
    settings = {"response_format": form(SCHEMAS[name]), "max_tokens": 150}
    text, reason = choice_of(chat(fast, **settings))
    if reason == "length":
        # It would go deeper for ever: it is made to prefer an end.
        ends = ['"', "}", "]", "null", "[]", "<|im_end|>"]
        bias = {str(t): 30 for end in ends for t in tokens(fast, end)}
        text, reason = choice_of(chat(fast, **settings, logit_bias=bias))
    assert reason == "stop", text
    jsonschema.validate(json.loads(text), SCHEMAS[name], format_checker=FORMATS)


@pytest.mark.parametrize(
    "name", ["flat object", "tuple", "anyOf objects", "pydantic", "date-time", "duration"]
)
def test_a_schema_holds_for_a_real_model(server: Server, name: str) -> None:
    answers = chat(server, response_format=form(SCHEMAS[name]), max_tokens=300, temperature=1.5, n=4, seed=7)
    for choice in answers.json()["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMAS[name], format_checker=FORMATS)


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_enforced_is_refused(server: Server, name: str) -> None:
    """The error names what it is, rather than letting answers pass that do not fit."""
    schema, words = REFUSED[name]
    answer = chat(server, response_format=form(schema))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_json_schema", "response_format.json_schema.schema")
    assert words in error["message"]


def test_a_schema_holds_in_plain_completions(server: Server) -> None:
    """llama.cpp's own field works where there is no response_format."""
    body = {"prompt": "The leaf: ", "temperature": 0, "max_tokens": 32, "json_schema": LEAF}
    answer = httpx.post(f"{server.base_url}/completions", json=body, timeout=120).json()
    jsonschema.validate(json.loads(answer["choices"][0]["text"]), LEAF)


def test_a_schema_is_not_required(server: Server) -> None:
    """A json_schema format without a schema, like the schema `true`, asks for any JSON."""
    for schema in ({}, {"schema": True}):
        answer = chat(
            server,
            response_format={"type": "json_schema", "json_schema": {"name": "any"} | schema},
            max_tokens=1,
        )
        text, _ = choice_of(answer)
        assert text[0] in '{["-0123456789tfn'


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"grammar": 'root ::= "a'}, "grammar", "not a valid GBNF grammar"),
        ({"grammar": 'start ::= "a"'}, "grammar", "root"),
        ({"grammar": 'root ::= root "a" | "b"'}, "grammar", "left recursion"),
        ({"grammar": 'root ::= "a" | missing'}, "grammar", "grammar"),
        ({"grammar": 'root ::= "\ud800"'}, "grammar", "not a character"),
        ({"grammar": f'root ::= "a" # {"x" * 300_000}'}, "grammar", "has more than 262,144 characters"),
        ({"grammar": "x", "json_schema": {}}, "json_schema", "exclude each other"),
        ({"json_schema": {"type": "thing"}}, "json_schema", "not a valid JSON schema at type: 'thing'"),
        ({"json_schema": False}, "json_schema", "allows no answer"),
        ({"json_schema": {"not": {"type": "null"}}}, "json_schema", "cannot be held to not"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema is missing"),
        (
            {"response_format": form({"properties": {"a": {"type": "thing"}}})},
            "response_format.json_schema.schema",
            "not a valid JSON schema at properties.a.type",
        ),
    ],
)
def test_faults_are_named(server: Server, settings: dict[str, Any], param: str, words: str) -> None:
    """A wrong grammar or schema is a 400 that says which field is wrong and why."""
    # Plain ASCII JSON, because httpx refuses to encode half of a surrogate pair.
    content = json.dumps({"messages": CAT, "max_tokens": 4} | settings)
    answer = httpx.post(
        f"{server.base_url}/chat/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(f"{param}: ")
    assert words in error["message"]


def test_a_deep_schema_is_refused(server: Server) -> None:
    """Nesting beyond any use is a 400 too, not a failure of the server."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    answer = chat(server, json_schema=schema)
    assert answer.status_code == 400
    assert "nests arrays and objects more than" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "settings",
    [
        {"grammar": f'root ::= {"(" * 20_000}"a"{")" * 20_000}'},
        {
            "grammar": "root ::= r0\n"
            + "".join(f"r{i} ::= r{i + 1}\n" for i in range(50_000))
            + 'r50000 ::= "a"'
        },
    ],
)
def test_a_deep_grammar_is_refused(server: Server, settings: dict[str, Any]) -> None:
    """llama.cpp would overflow its stack on these, and take the server along."""
    answer = chat(server, **settings)
    assert answer.status_code == 400
    assert "nested too deeply" in answer.json()["error"]["message"]
    assert server.healthy()
