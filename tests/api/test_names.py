"""What clients send about themselves, each as that client writes it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from astraea_local.api.errors import ApiError
from astraea_local.api.names import FIELDS, Claim, claim

_SESSION = "5f6c2a9e-0000-4000-8000-1234567890ab"


def _claim(headers: dict[str, str] | None = None, **fields: Any) -> Claim:
    return claim(Headers(headers or {}), fields, {"resp_1": "earlier"}.get)


# In the order in which they count.
_SOURCES: list[tuple[dict[str, str], dict[str, Any], str, str]] = [
    ({"X-Astraea-Job": "build", "X-Astraea-Agent": "coder"}, {}, "build/coder", "X-Astraea headers"),
    ({"x-claude-code-agent-id": "a1"}, {}, "a1", "x-claude-code-agent-id"),
    ({"thread-id": "t-1"}, {}, "t-1", "thread-id"),
    ({"x-openai-subagent": "review"}, {}, "review", "x-openai-subagent"),
    ({"X-Claude-Code-Session-Id": "c-1"}, {}, "c-1", "x-claude-code-session-id"),
    ({"session-id": "x-1"}, {}, "x-1", "session-id"),
    ({"session_id": "x-2"}, {}, "x-2", "session_id"),
    ({"conversation_id": "x-3"}, {}, "x-3", "conversation_id"),
    ({"X-Session-Id": "s-1"}, {}, "s-1", "x-session-id"),
    ({"x-session-affinity": "s-2"}, {}, "s-2", "x-session-affinity"),
    ({"X-Dynamo-Session-ID": "d-1"}, {}, "d-1", "x-dynamo-session-id"),
    ({"x-litellm-trace-id": "l-1"}, {}, "l-1", "x-litellm-trace-id"),
    ({"x-litellm-session-id": "l-2"}, {}, "l-2", "x-litellm-session-id"),
    ({"x-acme-session-id": "v-1"}, {}, "v-1", "x-acme-session-id"),
    ({}, {"metadata": {"user_id": f'{{"session_id": "{_SESSION}"}}'}}, _SESSION, "metadata.user_id"),
    ({}, {"metadata": {"session_id": "b"}}, "b", "metadata.session_id"),
    ({}, {"metadata": {"job_id": "a"}}, "a", "metadata.job_id"),
    ({}, {"metadata": {"conversation_id": "c"}}, "c", "metadata.conversation_id"),
    ({}, {"metadata": {"thread_id": "d"}}, "d", "metadata.thread_id"),
    ({}, {"previous_response_id": "resp_1"}, "earlier", "previous_response_id"),
    ({}, {"prompt_cache_key": "cache"}, "cache", "prompt_cache_key"),
    ({}, {"conversation": "conv_1"}, "conv_1", "conversation"),
    ({}, {"safety_identifier": "person"}, "person", "safety_identifier"),
    ({}, {"user": "ann"}, "ann", "user"),
]


@pytest.mark.parametrize(("headers", "fields", "job", "source"), _SOURCES)
def test_every_name_that_a_client_may_send(
    headers: dict[str, str], fields: dict[str, Any], job: str, source: str
) -> None:
    found = _claim(headers, **fields)
    assert (found.job, found.source) == (job, source)
    assert found.shared == (source in ("safety_identifier", "user"))


def test_an_earlier_source_wins_over_all_later_ones() -> None:
    for first in range(len(_SOURCES)):
        headers: dict[str, str] = {}
        fields: dict[str, Any] = {"metadata": {}}
        for sent, body, _job, _source in _SOURCES[first:]:
            headers |= sent
            fields = fields | body | {"metadata": fields["metadata"] | body.get("metadata", {})}
        assert _claim(headers, **fields).source == _SOURCES[first][3]


@pytest.mark.parametrize(
    ("headers", "job", "parent"),
    [
        # Claude Code: the session stays the lead's; its agents are known by their own id.
        ({"x-claude-code-session-id": "s"}, "s", None),
        ({"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"}, "s/a", "s"),
        (
            {
                "x-claude-code-session-id": "s",
                "x-claude-code-agent-id": "b",
                "x-claude-code-parent-agent-id": "a",
            },
            "s/b",
            "s/a",
        ),
        # Codex: a thread each, the session shared.
        ({"session-id": "root", "thread-id": "root"}, "root", None),
        ({"session-id": "s", "thread-id": "t"}, "t", None),
        ({"session-id": "s", "thread-id": "t", "x-openai-subagent": "review"}, "t", "s"),
        ({"session-id": "s", "thread-id": "t", "x-codex-parent-thread-id": "p"}, "t", "p"),
        ({"session-id": "s", "x-openai-subagent": "compact"}, "s/compact", "s"),
        # Threads are jobs without a session before their name.
        (
            {"session-id": "s", "x-openai-subagent": "compact", "x-codex-parent-thread-id": "p"},
            "s/compact",
            "s",
        ),
        # OpenCode.
        ({"X-Session-Id": "child", "X-Parent-Session-Id": "lead"}, "child", "lead"),
        ({"x-session-affinity": "child", "X-Parent-Session-Id": "lead"}, "child", "lead"),
        # Dynamo.
        ({"X-Dynamo-Session-ID": "d", "X-Dynamo-Parent-Session-ID": "p"}, "d", "p"),
        # What the user says himself wins.
        ({"X-Session-Id": "child", "X-Parent-Session-Id": "lead", "X-Astraea-Parent": "me"}, "child", "me"),
    ],
)
def test_sub_agents_are_children(headers: dict[str, str], job: str, parent: str | None) -> None:
    found = _claim(headers)
    assert (found.job, found.parent) == (job, parent)


@pytest.mark.parametrize(
    ("user_id", "job", "shared"),
    [
        (f'{{"device_id": "d", "account_uuid": "", "session_id": "{_SESSION}"}}', _SESSION, False),
        (f"user_0a1b_account__session_{_SESSION}", _SESSION, False),
        (f"user_0a1b_account_77-88_session_{_SESSION}", _SESSION, False),
        ("ann", "ann", True),
        ('{"session_id": 5}', '{"session_id": 5}', True),
        ("{" * 5000, "{" * 128, True),
        (None, None, False),
        ("", None, False),
    ],
)
def test_claude_codes_user_id_in_both_forms(user_id: object, job: str | None, shared: bool) -> None:
    found = _claim(metadata={"user_id": user_id})
    assert (found.job, found.shared) == (job, shared)


def test_the_user_id_that_a_gateway_translated() -> None:
    found = _claim(user=f"user_0a1b_account__session_{_SESSION}")
    assert (found.job, found.shared) == (_SESSION, False)


@pytest.mark.parametrize("metadata", [None, {}, {"job_id": 7}, {"job_id": ""}, {"user": "u"}, "text", 5])
def test_other_metadata_names_no_job(metadata: object) -> None:
    assert _claim(metadata=metadata) == Claim()


def test_a_conversation_object_is_known_by_its_id() -> None:
    assert _claim(conversation={"id": "conv_2"}).job == "conv_2"
    assert _claim(conversation={"name": "x"}).job is None


def test_an_unknown_response_id_is_no_name() -> None:
    assert _claim(previous_response_id="resp_gone").job is None


@pytest.mark.parametrize(
    ("headers", "job"),
    [
        ({"X-Astraea-Job": "build"}, "build"),
        ({"X-Astraea-Agent": "coder"}, "coder"),
        ({"X-Astraea-Job": "  ", "X-Session-Id": "s"}, "s"),
        ({"X-Astraea-Job": "a\x1b[31m\tb"}, "a[31mb"),
        ({"X-Astraea-Job": "x" * 500}, "x" * 128),
    ],
)
def test_names_are_made_fit_to_be_shown(headers: dict[str, str], job: str) -> None:
    assert _claim(headers).job == job


def test_parent_priority_and_final_are_read() -> None:
    found = _claim({"X-Astraea-Parent": "lead", "X-Astraea-Priority": "-2", "X-Astraea-Final": "True"})
    assert (found.parent, found.priority, found.final) == ("lead", -2, True)
    plain = _claim({"X-Astraea-Final": "no"})
    assert (plain.parent, plain.priority, plain.final) == (None, None, False)
    assert _claim({"X-Dynamo-Session-ID": "d", "X-Dynamo-Session-Final": "true"}).final


@pytest.mark.parametrize("value", ["10", "-10", "high", "", "1.5"])
def test_a_bad_priority_is_refused_by_name(value: str) -> None:
    with pytest.raises(ApiError, match=r"X-Astraea-Priority: .* from -9 to 9") as refused:
        _claim({"X-Astraea-Priority": value})
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({"service_tier": "priority"}, 1),
        ({"service_tier": "flex"}, -1),
        ({"service_tier": "auto"}, None),
        ({"nvext": {"agent_hints": {"priority": 3}}}, 3),
        ({"nvext": {"agent_hints": {"priority": 50}}}, 9),
        ({"nvext": {"agent_hints": {"priority": 2}}, "service_tier": "flex"}, 2),
        ({"nvext": {"agent_hints": None}}, None),
        ({"nvext": {}}, None),
    ],
)
def test_hints_of_other_servers_are_priorities(fields: dict[str, Any], priority: int | None) -> None:
    assert _claim(**fields).priority == priority
    assert _claim({"X-Astraea-Priority": "-4"}, **fields).priority == -4


@pytest.mark.parametrize("value", ["high", True, [1], float("nan")])
def test_a_hint_that_is_no_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(ApiError, match=r"nvext\.agent_hints\.priority: .* is not a number"):
        _claim(nvext={"agent_hints": {"priority": value}})


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.dictionaries(st.sampled_from(["user_id", "session_id", "id", "agent_hints"]), inner),
    max_leaves=5,
)


@given(fields=st.dictionaries(st.sampled_from(FIELDS), _VALUES))
def test_whatever_stands_in_the_fields_gives_a_short_printable_name(fields: dict[str, Any]) -> None:
    job = _claim(**fields).job
    assert job is None or (0 < len(job) <= 128 and job.isprintable())
