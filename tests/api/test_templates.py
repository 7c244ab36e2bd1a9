"""Chat templates: what they get, what they may not do, and how they refuse."""

from datetime import UTC, datetime
from typing import Any

import pytest

from astraea_local.api.errors import ApiError
from astraea_local.api.schemas import Message
from astraea_local.api.templates import ChatTemplate

CALL = {"id": "1", "type": "function", "function": {"name": "read", "arguments": '{"path": "é"}'}}


def template(source: str | None, **settings: Any) -> ChatTemplate:
    """A template with plain special tokens."""
    return ChatTemplate(source, bos="<s>", eos="</s>", **settings)


def user(text: str = "hi") -> Message:
    """A user's message."""
    return Message(role="user", content=text)


def render(source: str | None, *messages: Message, **settings: Any) -> str:
    """The prompt of these messages, or of one greeting."""
    return template(source).render(list(messages) or [user()], **settings)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ ('' | attr('__class__')).__mro__ }}",
        "{{ messages.insert(0, 1) }}",
        "{{ messages[0].clear() }}",
        "{{ range(1000000000) | list }}",
    ],
)
def test_the_sandbox_refuses_tricks(source: str) -> None:
    """A model file cannot reach Python's internals, change its input or eat the memory."""
    with pytest.raises(ApiError, match="the model's chat template") as refused:
        render(source)
    assert (refused.value.status, refused.value.param) == (400, "messages")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__closure__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '' | attr('__class__') }}",
    ],
)
def test_the_sandbox_shows_nothing_of_python(source: str) -> None:
    """An attribute that leads inside is empty."""
    assert render(source) == ""


def test_a_template_may_refuse_a_conversation() -> None:
    """Its own words reach the client, as a fault of the messages."""
    source = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('Users speak first') }}{% endif %}ok"
    with pytest.raises(ApiError, match=r"^400: messages: .*Users speak first$") as refused:
        render(source, Message(role="assistant", content="x"))
    assert refused.value.body["error"] == {
        "message": "messages: the model's chat template refuses them: Users speak first",
        "type": "invalid_request_error",
        "param": "messages",
        "code": None,
    }
    assert render(source) == "ok"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0]['content'] + 1 }}",
        "{{ missing.field }}",
        "{{ 1 / 0 }}",
        "{{ '{} {}'.format(1) }}",
        "{{ 'x'.index('y') }}",
        "{% macro loop() %}{{ loop() }}{% endmacro %}{{ loop() }}",
    ],
)
def test_a_failing_template_is_a_fault_of_the_messages(source: str) -> None:
    """Whatever goes wrong inside is an answer, not a failure of the server."""
    with pytest.raises(ApiError) as refused:
        render(source)
    assert (refused.value.status, refused.value.param) == (400, "messages")


def test_a_broken_template_leaves_the_model_usable() -> None:
    """A template that is no Jinja is reported when it is needed, with its line and the way around it."""
    broken = template("fine\n{% if %}")
    with pytest.raises(ApiError, match=r"not valid \(line 2: .*/v1/completions"):
        broken.render([user()])


def test_json_is_not_escaped_for_html() -> None:
    """Tool definitions reach the model as plain JSON, in the order and script in which they were sent."""
    tools = [{"z": "<b> & 'é'", "a": 1}]
    assert render("{{ tools | tojson }}", tools=tools) == '[{"z": "<b> & \'é\'", "a": 1}]'
    assert render("{{ tools[0] | tojson(indent=1) }}", tools=[{"a": 1}]) == '{\n "a": 1\n}'


def test_today_is_the_given_clock() -> None:
    """Templates that write the date ask for it through `strftime_now`."""
    dated = template("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2031, 3, 9, tzinfo=UTC))
    assert dated.render([user()]) == "09 Mar 2031"


def test_specials_and_flags_are_given() -> None:
    """Templates see BOS, EOS and whether an answer is wanted, and a client cannot change them."""
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ add_generation_prompt }}{{ more }}"
    extra = {"bos_token": "x", "messages": [], "add_generation_prompt": False, "self": 1, "more": "!"}
    assert render(source, extra=extra) == "<s>hi</s>True!"
    assert render(source, add_generation_prompt=False) == "<s>hi</s>False"


def test_no_content_is_empty_text() -> None:
    """Templates that add strings do not meet null."""
    assert render("{{ messages[0].content + '!' }}", Message(role="assistant")) == "!"


def test_parts_are_one_text() -> None:
    """A list of text parts is their text."""
    message = Message.model_validate(
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    )
    assert render("{{ messages[0].content }}", message) == "ab"


def test_calls_are_handed_to_templates_that_know_them() -> None:
    """Such a template formats the calls itself, and the result keeps its id."""
    arguments = "{{ m.tool_calls[0].function.arguments | tojson if m.tool_calls }}"
    each = (
        "{{ m.tool_calls[0].function.name if m.tool_calls }}"
        + arguments
        + "{{ m.tool_call_id }}{{ m.content }}"
    )
    source = f"{{% for m in messages %}}{each}{{% endfor %}}"
    messages = [
        Message(role="assistant", tool_calls=[CALL]),
        Message(role="tool", content="done", tool_call_id="1"),
    ]
    assert render(source, *messages) == 'read{"path": "é"}1done'
    as_text = source.replace("arguments | tojson", "arguments + ''")
    assert render(as_text, *messages) == 'read{"path": "é"}1done'


def test_calls_become_text_for_templates_that_know_none() -> None:
    """Otherwise the model would never see what it asked for, nor what came of it."""
    messages = [
        Message(role="assistant", content="Reading.", tool_calls=[CALL]),
        Message(role="tool", content="a"),
        Message(role="tool", content="b"),
    ]
    call = '<tool_call>\n{"name": "read", "arguments": {"path": "é"}}\n</tool_call>'
    results = "<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>"
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert render(source, *messages) == f"[assistant]Reading.\n{call}[user]{results}"
    assert render("{{ messages[0].content }}", Message(role="assistant", tool_calls=[CALL])) == call


def test_results_stay_with_their_calls_where_a_message_has_one_call() -> None:
    """Also where a client numbers the calls of each answer anew."""
    source = (
        "{% for m in messages %}{% if m.tool_calls %}{{ raise_exception('one') if m.tool_calls[1] }}"
        "[{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}]"
        "{% endif %}{{ m.content }}{% endfor %}"
    )

    def calls(*names: str) -> Message:
        made = [{"id": f"call_{i}", "function": {"name": n, "arguments": "{}"}} for i, n in enumerate(names)]
        return Message(role="assistant", tool_calls=made)

    def result(number: int, text: str) -> Message:
        return Message(role="tool", tool_call_id=f"call_{number}", content=text)

    messages = [
        *(calls("a", "b"), result(1, "B"), result(0, "A")),
        *(calls("c", "d"), result(0, "C"), user("!"), result(1, "D")),
        *(calls("e"), result(0, "E"), result(7, "?")),
    ]
    assert render(source, *messages) == "[a {}]A[b {}]B[c {}]C[d {}]D![e {}]E?"


def test_tools_are_described_where_a_template_has_no_place_for_them() -> None:
    tools = [{"type": "function", "function": {"name": "read", "description": "Reads", "parameters": {}}}]
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    prompt = render(source, Message(role="system", content="Be brief."), user(), tools=tools)
    assert prompt.startswith("[system]Be brief.\n\nYou can call functions.")
    assert '{"name": "read", "description": "Reads", "parameters": {}}' in prompt
    assert prompt.endswith("[user]hi")
    # Nor for system messages.
    folded = render(
        "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{{ m.content }}{% endfor %}",
        user(),
        tools=tools,
    )
    assert folded.endswith("hi")
    assert "Reads" in folded


@pytest.mark.parametrize("arguments", ['{"path": "é', "[1]", "nothing", "", None, {"path": "é"}])
def test_arguments_of_any_kind_can_be_shown(arguments: Any) -> None:
    """A client sends back what a model made, which need not be JSON."""
    call = {"function": {"name": "read", "arguments": arguments}}
    source = (
        "{% for m in messages %}{{ m.content }}{% if m.tool_calls %}{% for k, v in "
        "m.tool_calls[0].function.arguments.items() %}{{ k }}={{ v }};{% endfor %}{% endif %}{% endfor %}"
    )
    shown = render(source, Message(role="assistant", tool_calls=[call]))
    assert shown in ("", "path=é;", f"invalid_arguments={arguments};")


def test_earlier_thoughts_are_kept_where_the_template_can() -> None:
    """Without them the next prompt would not begin like the last one."""
    source = "{{ preserve_thinking }}{{ clear_thinking }}"
    assert render(source) == "TrueFalse"
    assert render(source, extra={"preserve_thinking": False}) == "FalseFalse"
    assert render("{{ keep_past_thinking is defined }}{{ drop_thinking is defined }}") == "TrueTrue"
    assert render("{{ enable_thinking is defined }}") == "False"


def test_neighbours_of_one_role_are_merged_where_roles_must_alternate() -> None:
    source = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('alternate') }}{% endif %}[{{ m.content }}]{% endfor %}"
    )
    messages = [user("a"), user("b"), Message(role="assistant", content=None), user("c")]
    assert render(source, *messages) == "[a\n\nb\n\nc]"


def test_developers_are_the_system() -> None:
    """Templates know no developer role."""
    source = "{{ messages[0].role }}{{ messages[0].content }}"
    assert render(source, Message(role="developer", content="x")) == "systemx"


def test_without_a_template_it_is_chatml() -> None:
    """A GGUF that brings none gets the most common form."""
    expected = "<|im_start|>user\nhi<|im_end|>\n"
    assert render(None, add_generation_prompt=False) == expected
    assert render(None) == expected + "<|im_start|>assistant\n"
