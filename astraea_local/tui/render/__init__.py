"""What people see of a StateFrame, as Rich text: panels, `top --once` and `ps` share it; no Textual here."""

from astraea_local.tui.render.ps import job_table as job_table
from astraea_local.tui.render.ps import kv_place as kv_place
from astraea_local.tui.render.units import seconds as seconds
