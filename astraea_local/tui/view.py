"""What all panels draw from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from astraea_local.frame import JobRow, StateFrame
from astraea_local.tui.advisor import Advice
from astraea_local.tui.render.palette import PLAIN, Palette
from astraea_local.tui.source import Link
from astraea_local.tui.trail import Trail


@dataclass(slots=True)
class View:
    """The newest frame, what led to it, and how it is to look."""

    frame: StateFrame | None = None
    link: Link = field(default_factory=lambda: Link("connecting", "connecting"))
    trail: Trail = field(default_factory=Trail)
    advice: Sequence[Advice] = ()
    palette: Palette = PLAIN
    held: bool = False
    """The user keeps this frame on the screen."""
    late_s: float = 0.0
    """Age of the frame when it is not the newest there could be."""

    @property
    def status(self) -> str:
        """What the header says about where the frame comes from; empty while all is well."""
        parts = [self.link.text] if self.link.text else []
        if self.held:
            parts.append("held: p goes on")
        if self.late_s and self.frame is not None:
            parts.append(f"this is {self.late_s:.0f} s old")
        return ", ".join(parts)

    @property
    def stale(self) -> bool:
        """Whether the server may be otherwise by now."""
        return self.link.state in ("connecting", "loading", "lost")

    def job(self, name: str | None) -> JobRow | None:
        """The row of that job, while it is there."""
        if self.frame is None or name is None:
            return None
        return next((job for job in self.frame.jobs if job.job == name), None)
