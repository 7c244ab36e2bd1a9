"""Questions: yes or no, one of several, and numbers."""

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, OptionList
from textual.widgets.option_list import Option

Answer = TypeVar("Answer")


class _Dialog(ModalScreen[Answer]):
    # The app's own keys do not reach below a dialog.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "app.quit", show=False)]


class Confirm(_Dialog[bool]):
    """Asks before something that hurts; the harmless answer has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
        Binding("left,right,up,down", "app.focus_next", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question and two buttons."""
        with Vertical(classes="dialog"):
            yield Label(self._question, markup=False)
            with Horizontal():
                yield Button("No (n)", id="no", compact=True)
                yield Button("Yes (y)", id="yes", variant="error", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answers."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Answers by key."""
        self.dismiss(answer)


class Pick(_Dialog[Answer | None], Generic[Answer]):
    """Asks for one of several; None when it is left."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]

    def __init__(
        self, question: str, options: Sequence[tuple[Answer, str]], current: Answer | None = None
    ) -> None:
        """`options`: values and their words."""
        super().__init__()
        self._question = question
        self._options = options
        self._current = current

    def compose(self) -> ComposeResult:
        """The question and a list."""
        with Vertical(classes="dialog"):
            yield Label(self._question, markup=False)
            yield OptionList(*(Option(words) for _, words in self._options), markup=False)

    def on_mount(self) -> None:
        """Begins at the present one."""
        values = [value for value, _ in self._options]
        if self._current is not None and self._current in values:
            self.query_one(OptionList).highlighted = values.index(self._current)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answers."""
        self.dismiss(self._options[event.option_index][0])


class Leave(Pick[str]):
    """Asks what becomes of the server that was started with the UI: `stop`, `leave` or `stay`."""

    def __init__(self) -> None:
        options = (
            ("stop", "stop the server: running calls end first"),
            ("leave", "close this screen, the server goes on"),
            ("stay", "stay here"),
        )
        super().__init__("Close the screen?", options)


class Resize(_Dialog[tuple[int, int] | None]):
    """Asks for the cells and slots of the context; None when it is left."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]

    def __init__(self, size: int, slots: int) -> None:
        super().__init__()
        self._values = {"size": size, "slots": slots}

    def compose(self) -> ComposeResult:
        """Two fields."""
        with Vertical(classes="dialog"):
            yield Label("New size of the context: Tab goes on, Enter asks, Esc leaves it as it is")
            for name, words in (("size", "KV cells in total"), ("slots", "slots")):
                yield Label(words)
                yield Input(str(self._values[name]), type="integer", id=name, compact=True)
            yield Label("", id="fault")

    @on(Input.Submitted)
    def _submitted(self) -> None:
        values = []
        for name, least in (("size", 256), ("slots", 1)):
            field = self.query_one(f"#{name}", Input)
            try:
                value = int(field.value)
            except ValueError:
                value = 0
            if value < least:
                self.query_one("#fault", Label).update(f"{name}: a number from {least} on")
                field.focus()
                return
            values.append(value)
        self.dismiss((values[0], values[1]))
