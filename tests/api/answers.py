"""Answers as the model could give them, for tests of every dialect."""

from hypothesis import strategies as st

from astraea_local.api.parts import AnswerPart, Reasoning, Text, ToolArguments, ToolCallBegun

# Pieces of one JSON object each, however it is cut.
ARGUMENTS = ['{"path": ', '"a.py"', "}"]


def call(index: int) -> list[AnswerPart]:
    """One complete tool call."""
    begun = ToolCallBegun(index, f"call_{index}", "read")
    return [begun, *(ToolArguments(index, fragment) for fragment in ARGUMENTS)]


@st.composite
def answers(draw: st.DrawFn) -> list[AnswerPart]:
    """Any order of thoughts, text and calls; calls are numbered as they come."""
    parts: list[AnswerPart] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from("trc"), max_size=8)):
        if kind == "c":
            parts += call(calls)
            calls += 1
        else:
            piece = draw(st.text(max_size=5))
            parts.append(Text(piece) if kind == "t" else Reasoning(piece))
    return parts
