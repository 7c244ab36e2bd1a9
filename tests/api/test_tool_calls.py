"""Tool calls and thoughts on a real server, spoken to by the official client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionChunk

from astraea_local.api.tool_formats.lark import MAX_CALLS
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
COMMAND = {
    "type": "object",
    "properties": {"command": {"type": "string", "pattern": "^(ls|cat) [a-z]{1,4}$"}},
    "required": ["command"],
    "additionalProperties": False,
}


def tool(name: str, schema: dict[str, Any]) -> Any:
    function = {"name": name, "description": f"Runs {name}", "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [tool("weather", CITY), tool("bash", COMMAND)]
SCHEMAS = {"weather": CITY, "bash": COMMAND}
ASK: list[Any] = [{"role": "user", "content": "How will the weather be in Oslo for 3 days, in celsius?"}]
QUIET: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 120}
# Left to itself the demo model would go on calling.
ONE_CALL = QUIET | {"parallel_tool_calls": False}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


# One written argument by argument, and one in channels; test_walks.py has all of them.
@pytest.fixture(scope="module", params=["qwen_coder", "harmony"])
def other(
    request: Any, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenAI]:
    """A server whose model is told to write its calls in another format."""
    profile = tmp_path_factory.mktemp("format") / "format.toml"
    profile.write_text(f'[model]\ngpu_layers = 0\ntool_format = "{request.param}"\n')
    server = start_server("--profile", str(profile))
    with OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client
    server.stop()


def check_call(call: Any) -> None:
    assert call.type == "function"
    assert call.id
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def stream(client: OpenAI, **settings: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(**ONE_CALL | settings, messages=ASK, tools=TOOLS, stream=True))


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_required_call_fits_its_schema(client: OpenAI, temperature: float) -> None:
    settings = ONE_CALL | {"temperature": temperature, "seed": 3}
    answer = client.chat.completions.create(**settings, messages=ASK, tools=TOOLS, tool_choice="required")
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    for call in choice.message.tool_calls or []:
        check_call(call)
    assert choice.message.tool_calls


def test_a_named_tool_is_called_once(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "bash"}}
    answer = client.chat.completions.create(
        **QUIET, messages=ASK, tools=TOOLS, tool_choice=named, parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls or []
    check_call(call)
    assert call.function.name == "bash"


def arguments_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or []]
    return "".join(d.function.arguments or "" for d in deltas if d.index == index and d.function)


def test_a_stream_says_the_same_as_a_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ONE_CALL, messages=ASK, tools=TOOLS, tool_choice="required")
    chunks = stream(client, tool_choice="required")
    (call,) = whole.choices[0].message.tool_calls or []
    assert arguments_of(chunks) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_calls_are_told_one_after_another(client: OpenAI) -> None:
    """As many as an answer may have, which a small model takes; and then it is over."""
    command = {"type": "object", "properties": {"command": {"enum": ["ls", "pwd"]}}, "required": ["command"]}
    settings = QUIET | {"max_tokens": 400, "tools": [tool("bash", command)], "tool_choice": "required"}
    chunks = list(client.chat.completions.create(**settings, messages=ASK, stream=True))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or []]
    begun = [d for d in deltas if d.id]
    assert 1 < len(begun) <= MAX_CALLS
    assert [d.index for d in begun] == list(range(len(begun)))
    assert all(d.type == "function" and d.function and d.function.name for d in begun)
    # Never back to an earlier one.
    assert [d.index for d in deltas] == sorted(d.index for d in deltas)
    assert len(deltas) > 2 * len(begun)
    for index in range(len(begun)):
        jsonschema.validate(json.loads(arguments_of(chunks, index)), command)


def test_a_call_that_is_cut_off_is_told_as_far_as_it_went(client: OpenAI) -> None:
    """As OpenAI does: the arguments so far, and `length`."""
    settings = ONE_CALL | {"messages": ASK, "tools": TOOLS, "tool_choice": "required"}
    whole = client.chat.completions.create(**settings)
    assert whole.usage is not None
    cut = client.chat.completions.create(**settings | {"max_tokens": whole.usage.completion_tokens - 12})
    assert cut.choices[0].finish_reason == "length"
    (call,), (so_far,) = whole.choices[0].message.tool_calls or [], cut.choices[0].message.tool_calls or []
    assert so_far.type == call.type == "function"
    assert so_far.function.name == call.function.name
    assert call.function.arguments.startswith(so_far.function.arguments)
    assert 0 < len(so_far.function.arguments) < len(call.function.arguments)


def test_the_model_calls_by_itself(client: OpenAI) -> None:
    """Text stays text until a call begins; from there on the tool's schema holds, whatever was asked for."""
    place = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome", "Lima"]}},
        "required": ["city"],
    }
    said: list[Any] = []
    # What it did before a small model does again.
    for city in ("Rome", "Lima", "Rome", "Oslo"):
        function = {"name": "weather", "arguments": json.dumps({"city": city})}
        earlier = {"id": f"call_{len(said)}", "type": "function", "function": function}
        said += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "tool_calls": [earlier]},
            {"role": "tool", "tool_call_id": earlier["id"], "content": "Sunny."},
            {"role": "assistant", "content": f"It is sunny in {city}."},
        ]
    said.append({"role": "user", "content": "Weather in Paris?"})
    settings = ONE_CALL | {"messages": said, "tools": [tool("weather", place)]}
    whole = client.chat.completions.create(**settings)
    assert whole.choices[0].finish_reason == "tool_calls"
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    jsonschema.validate(json.loads(call.function.arguments), place)
    chunks = list(client.chat.completions.create(**settings, stream=True))
    assert arguments_of(chunks) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_half_of_a_surrogate_pair_in_arguments_breaks_nothing(client: OpenAI, server: Server) -> None:
    """JSON can spell what UTF-8 cannot: every dialect answers all the same."""
    spelled = r'<tool_call>{"arguments": {"city": "\ud83d"}, "name": "weather"}</tool_call>'
    extra = {"grammar": f"root ::= {json.dumps(spelled)}"}
    lenient = [tool("weather", {"type": "object"})]
    settings = QUIET | {"messages": ASK, "tools": lenient, "extra_body": extra}
    whole = client.chat.completions.create(**settings)
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "\ud83d"}
    chunks = list(client.chat.completions.create(**settings, stream=True))
    assert arguments_of(chunks) == call.function.arguments
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    body = {"messages": ASK, "tools": tools, "temperature": 0, "max_tokens": 120} | extra
    answer = httpx.post(f"{server.base_url}/messages", json=body, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["content"][0]["input"] == {"city": "\ud83d"}


def test_without_a_need_the_model_answers_in_text(client: OpenAI) -> None:
    answer = client.chat.completions.create(**QUIET | {"max_tokens": 8}, messages=ASK, tools=TOOLS)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_none_means_no_call(client: OpenAI) -> None:
    again = "Repeat after me: <tool_call>"
    messages: list[Any] = [{"role": "user", "content": again}]
    answer = client.chat.completions.create(**QUIET, messages=messages, tools=TOOLS, tool_choice="none")
    message = answer.choices[0].message
    assert message.tool_calls is None
    assert "<tool_call>" not in (message.content or "")


def test_the_results_come_back_and_the_scheduler_knows_the_tool(client: OpenAI, server: Server) -> None:
    """The job waits under its tool's name, and its next request is known again."""
    named: Any = {"type": "function", "function": {"name": "bash"}}
    first = client.chat.completions.with_raw_response.create(
        **QUIET, messages=ASK, tools=TOOLS, tool_choice=named, parallel_tool_calls=False
    )
    job = first.headers["x-astraea-job"]
    message = first.parse().choices[0].message
    assert message.tool_calls
    verb = json.loads(message.tool_calls[0].function.arguments)["command"].split()[0]

    def waits_for() -> str:
        jobs: Any = server.state()["jobs"]
        return str(next((j.get("tool") for j in jobs if j["job"] == job), ""))

    server.wait_until(lambda: waits_for() == f"bash:{verb}", 10)
    messages = [
        *ASK,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "notes.txt"},
    ]
    second = client.chat.completions.with_raw_response.create(**QUIET, messages=messages, tools=TOOLS)
    assert second.headers["x-astraea-job"] == job
    usage = second.parse().usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) > 0.7 * usage.prompt_tokens


def test_several_choices_call_on_their_own(client: OpenAI) -> None:
    settings = ONE_CALL | {"temperature": 1.2, "seed": 5}
    answer = client.chat.completions.create(
        **settings, messages=ASK, tools=TOOLS, tool_choice="required", n=2
    )
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or []]
    assert len(set(ids)) == len(ids) >= 2


def test_every_format_can_be_forced(other: OpenAI) -> None:
    answer = other.chat.completions.create(**ONE_CALL, messages=ASK, tools=TOOLS, tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls or []
    check_call(call)
    assert arguments_of(stream(other, tool_choice="required")) == call.function.arguments


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "gone"}}},
            "tool_choice",
            "'gone', which is not in tools",
        ),
        ({"tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type", "'allowed_tools'"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}},
            "tool_choice.allowed_tools.tools",
            "at least 1",
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "'weather' is defined twice"),
        ({"tools": [tool("two words", CITY)]}, "tools.0.function.name", "pattern"),
        (
            {"tools": [tool("f", {"properties": {"a": {"not": {}}}})], "tool_choice": "required"},
            "tools.0.function.parameters",
            "cannot be held to not",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls",
            "each call needs",
        ),
    ],
)
def test_faults_are_named(client: OpenAI, settings: dict[str, Any], param: str, words: str) -> None:
    body: Any = QUIET | {"messages": ASK} | settings
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(**body)
    assert words in error.value.message
    assert error.value.param == param


def test_a_schema_that_cannot_be_enforced_does_not_stop_a_free_choice(client: OpenAI) -> None:
    """Real tools have such schemas; where no call is forced they are followed as far as possible."""
    odd = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}, "not": {}}
    answer = client.chat.completions.create(
        **QUIET | {"max_tokens": 4}, messages=ASK, tools=[tool("odd", odd), *TOOLS]
    )
    assert answer.choices[0].message.content
