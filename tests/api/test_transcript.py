"""A conversation built from what dialects say."""

from astraea_local.api.transcript import History


def test_what_belongs_to_one_turn_is_one_message() -> None:
    history = History()
    history.user("fix it")
    history.reasoning("where is it")
    history.assistant("I look.")
    history.call("c1", "read", '{"path": "a"}')
    history.call("c2", "read", {"path": "b"})
    history.result("c1", "A")
    history.result("c2", "B")
    history.assistant("Done.")
    user, answer, first, second, last = history.messages()
    assert user == {"role": "user", "content": "fix it"}
    assert (answer["content"], answer["reasoning_content"]) == ("I look.", "where is it")
    assert [c["function"]["arguments"] for c in answer["tool_calls"]] == ['{"path": "a"}', '{"path": "b"}']
    assert first == {"role": "tool", "tool_call_id": "c1", "name": "read", "content": "A"}
    assert (second["tool_call_id"], last["content"]) == ("c2", "Done.")


def test_what_is_said_and_thought_in_pieces_is_one_text_each() -> None:
    history = History()
    for text in ("First.", "", "Second."):
        history.assistant(text)
        history.reasoning(text.lower())
    _, answer = history.messages()
    assert (answer["content"], answer["reasoning_content"]) == ("First.\n\nSecond.", "first.\n\nsecond.")
    assert history.messages()[1] == answer


def test_instructions_at_the_beginning_are_one_system_message() -> None:
    history = History()
    history.system("Be brief.")
    history.system("")
    history.system("Be kind.")
    history.user("hello")
    assert history.messages()[0] == {"role": "system", "content": "Be brief.\n\nBe kind."}


def test_later_instructions_keep_their_place() -> None:
    history = History()
    history.user("hello")
    history.assistant("hi")
    history.system("Now be brief.")
    assert history.messages()[-1] == {"role": "user", "content": "Now be brief."}


def test_there_is_always_a_user() -> None:
    assert History().messages() == [{"role": "user", "content": ""}]
    history = History()
    history.system("Be brief.")
    assert [m["role"] for m in history.messages()] == ["system", "user"]


def test_a_result_of_an_unknown_call_has_no_name() -> None:
    history = History()
    history.result("lost", "x")
    assert history.messages()[-1] == {"role": "tool", "tool_call_id": "lost", "content": "x"}
