"""Building llguidance grammars, which are in its dialect of Lark.

A marker that is a special token of the model is written by its id, because no text spells it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NOTHING = '""'
# More than capable models ask for at once, and what is left comes with the next turn. Small models repeat a
# call until something ends it.
MAX_CALLS = 8
_ANY = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True)
class Marker:
    """A text that is one token in the model's vocabulary."""

    token: int
    control: bool
    """Whether only this token means it: no text does."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of the calls of one answer."""

    trigger: str
    """The text with which they begin."""
    rest: str
    """A Lark expression of everything behind it."""
    anchored: bool = False
    """Whether they begin only where the answer begins."""


class Lark:
    """A grammar in the making."""

    def __init__(self, markers: Mapping[str, Marker], *, exact: bool) -> None:
        """`exact`: schemas are enforced whole, or refused; else as far as possible."""
        self.exact = exact
        self._markers = markers
        self._rules: list[str] = []
        self._names = 0
        pattern = "|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True))
        self._split = re.compile(f"({pattern})") if pattern else None

    def text(self, start: str) -> str:
        """The whole grammar; `start` is the expression that an answer matches."""
        return "\n".join([f"start: {start}", *self._rules, ""])

    def rule(self, body: str, *, lazy: bool = False) -> str:
        """Adds a rule and returns its name; a lazy one is a single lexeme that ends as early as it can."""
        name = f"r{self._number()}"
        self._rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def terminal(self, body: str) -> str:
        """Adds a lexeme and returns its name."""
        name = f"T{self._number()}"
        self._rules.append(f"{name}: {body}")
        return name

    def literal(self, text: str) -> str:
        """Exactly this text."""
        pieces = self._split.split(text) if self._split else [text]
        parts = [
            f"<[{self._markers[p].token}]>" if p in self._markers else json.dumps(p, ensure_ascii=False)
            for p in pieces
            if p
        ]
        return " ".join(parts)

    def json(self, grammar: str) -> str:
        """A value of a schema that was prepared for `%json`."""
        return self.rule(f"%json {grammar}")

    def any_of(self, options: Iterable[str]) -> str:
        """One of the expressions."""
        return self.rule(" | ".join(options))

    def more(self, call: str, *, parallel: bool) -> str:
        """Further calls of one answer, where it may have several."""
        return f"({call}){{0,{MAX_CALLS - 1}}}" if parallel else ""

    def free(self, *, without: Iterable[str] = (), not_first: Iterable[str] = ()) -> str:
        """Any text in which none of these stand, or with which it does not begin."""
        body = _ANY
        for text in without:
            if not self._is_control(text):
                body += rf" & ~/(.|\n)*{_regex(text)}(.|\n)*/"
        for text in not_first:
            if not self._is_control(text):
                body += rf" & ~/\s*{_regex(text)}(.|\n)*/"
        return self.terminal(body)

    def up_to(self, text: str, *, not_first: Iterable[str] = ()) -> str:
        """Any text that ends at the first occurrence of `text`, which it includes."""
        if self._is_control(text):
            return f"{self.free(not_first=not_first)} {self.literal(text)}"
        quoted = json.dumps(text, ensure_ascii=False)
        return self.rule(f"{self.free(not_first=not_first)} {quoted}", lazy=True)

    def _is_control(self, text: str) -> bool:
        marker = self._markers.get(text)
        return marker is not None and marker.control

    def _number(self) -> int:
        self._names += 1
        return self._names


def _regex(text: str) -> str:
    # Not `re.escape`: in this dialect a backslash before < or > means a word's border.
    return re.sub(r"[\\.+*?()|\[\]{}^$/#&~-]", lambda m: "\\" + m[0], text).replace("\n", "\\n")
