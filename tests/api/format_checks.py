"""Whether a text has a format; jsonschema alone knows half of those that output is held to."""

import functools
import re
from datetime import date

import jsonschema

_ATOM = r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIME = rf"{_CLOCK}:(?:[0-5]\d|60)(?:\.\d+)?(?:z|[+-]{_CLOCK})"
_DAYS = r"(?:\d+y(?:\d+m(?:\d+d)?)?|\d+m(?:\d+d)?|\d+d)"
_HOURS = r"t(?:\d+h(?:\d+m(?:\d+s)?)?|\d+m(?:\d+s)?|\d+s)"
# RFC 5321, RFC 1123, RFC 3339.
_PATTERNS = {
    "email": rf"(?=.{{3,254}}\Z){_ATOM}(?:\.{_ATOM})*@(?:{_HOST}|\[[a-z0-9:.-]+\])",
    "hostname": rf"(?=.{{1,253}}\Z){_HOST}",
    "time": _TIME,
    "date-time": rf"\d{{4}}-\d\d-\d\dt{_TIME}",
    "duration": rf"p(?:{_DAYS}(?:{_HOURS})?|{_HOURS}|\d+w)",
    "uri": r"[a-z][a-z0-9+.-]*:\S*",
}


def _matches(name: str, value: object) -> bool:
    # A format says nothing of what is no text.
    found = not isinstance(value, str) or re.fullmatch(_PATTERNS[name], value, re.ASCII | re.IGNORECASE)
    return bool(found)


def _is_date_time(value: object) -> bool:
    found = _matches("date-time", value)
    return found and (not isinstance(value, str) or bool(date.fromisoformat(value[:10])))


FORMATS = jsonschema.FormatChecker()
for _name in _PATTERNS:
    FORMATS.checks(_name)(functools.partial(_matches, _name))
FORMATS.checks("date-time", raises=ValueError)(_is_date_time)
