"""Templates that never end or eat the memory: each costs its own process, and nothing else."""

from datetime import UTC, datetime

import pytest

from astraea_local.api.sandbox import Sandbox, TemplateFailure, TemplateFault

NOW = datetime(2024, 5, 1, tzinfo=UTC)
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP,
        "{% macro a(n) %}{% for i in range(99999) %}{{ a(n) }}{% endfor %}{% endmacro %}{{ a(1) }}",
        "{{ 'a' * 4000000000 }}",
        "{{ '%4000000000d' % 1 }}",
        "{{ ['a'] * 2000000000 }}",
        "{{ 9 ** (messages | length * 9999999999) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{{ 'x' | center(4000000000) }}",
        "{{ messages | tojson(indent=1000000000) }}",
    ],
)
def test_a_template_without_end_is_ended(source: str) -> None:
    sandbox = Sandbox(f"{{% if bad %}}{source}{{% endif %}}fine", time_s=1)
    with pytest.raises(TemplateFailure):
        sandbox.render({"bad": True, "messages": [{"a": 1}]}, NOW)
    assert sandbox.render({"bad": False}, NOW) == "fine"
    sandbox.close()


def test_a_template_that_cannot_be_compiled_says_where() -> None:
    with pytest.raises(TemplateFault, match="line 2: "):
        Sandbox("fine\n{% if %}")
    with pytest.raises(TemplateFault):
        Sandbox("{{ " + "(" * 5000 + ")" * 5000 + " }}")


def test_half_a_surrogate_pair_comes_back_as_it_was() -> None:
    sandbox = Sandbox("{{ x }}é🙂")
    assert sandbox.render({"x": "\ud800\n"}, NOW) == "\ud800\né🙂"
    sandbox.close()


def test_the_process_ends_with_its_owner() -> None:
    sandbox = Sandbox("x")
    process = sandbox._process
    del sandbox
    assert process.poll() is not None
