"""What is still to come, learned from what was seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astraea_local.scheduler.distribution import Distribution
from astraea_local.scheduler.job import Job
from astraea_local.scheduler.predictor import Predictor, tool_path


def _job(name: str = "a", kind: str = "", tool: str = "", segments: int = 0) -> Job:
    return Job(name, 0.0, kind=kind, tool=tool, segments=segments)


def _output(predictor: Predictor, job: Job) -> float:
    """The median length that is expected."""
    return predictor.output(job, 1000, 4096).quantile(0.5)


def _wait(predictor: Predictor, job: Job) -> float:
    return predictor.wait(job).quantile(0.5)


@pytest.mark.parametrize("median", [20.0, 80.0, 500.0])
def test_nothing_known_gives_the_prior(median: float) -> None:
    found = Predictor(median).output(_job(), 1000, 4096)
    assert found.quantile(0.5) == pytest.approx(median, rel=0.1)
    assert found.mean == pytest.approx(median * 167 / 80, rel=0.1)


def test_before_any_was_seen_a_tool_is_expected_to_be_quick_and_now_and_then_slow() -> None:
    wait = Predictor().wait(_job(tool="shell"))
    assert wait.quantile(0.5) < 0.5
    assert wait.quantile(0.95) > 5
    assert wait.mean > 2


def test_a_job_is_expected_to_go_on_as_it_did() -> None:
    predictor, job = Predictor(80.0), _job()
    for _ in range(2):
        predictor.segment_ended(job, 20)
    early = predictor.output(job, 1000, 4096).mean
    for _ in range(98):
        predictor.segment_ended(job, 20)
    late = predictor.output(job, 1000, 4096).mean
    assert 20 < late < 22 < early < 167


def test_a_new_job_is_expected_to_be_like_others_of_its_kind() -> None:
    predictor = Predictor()
    for number in range(50):
        predictor.segment_ended(_job(f"coder-{number}", "coder"), 20)
        predictor.segment_ended(_job(f"writer-{number}", "writer"), 2000)
    assert _output(predictor, _job("new", "coder")) == pytest.approx(20, rel=0.1)
    assert _output(predictor, _job("new", "writer")) == pytest.approx(2000, rel=0.1)
    assert 20 < predictor.output(_job("new"), 1000, 4096).mean < 2000


def test_a_job_that_differs_from_its_kind_is_known_by_itself() -> None:
    predictor, odd = Predictor(), _job("odd", "coder")
    for number in range(50):
        predictor.segment_ended(_job(f"coder-{number}", "coder"), 20)
        predictor.segment_ended(odd, 600)
    assert _output(predictor, odd) == pytest.approx(600, rel=0.1)


@given(st.lists(st.integers(0, 5000), max_size=20), st.integers(0, 5000), st.integers(0, 5000))
def test_longer_answers_never_lower_the_prediction(outputs: list[int], a: int, b: int) -> None:
    means = []
    for last in sorted((a, b)):
        predictor = Predictor()
        for length in (*outputs, last):
            predictor.segment_ended(_job(), length)
        means.append(predictor.output(_job(), 1000, 4096).mean)
    assert means[0] <= means[1] * (1 + 1e-9)


def test_a_wait_is_known_by_tool_and_by_verb() -> None:
    predictor = Predictor()
    for _ in range(100):
        predictor.wait_ended(_job(tool="shell:pytest", segments=1), 60.0, 100)
        predictor.wait_ended(_job(tool="shell:ls", segments=1), 0.1, 100)
        predictor.wait_ended(_job(tool="search", segments=1), 3.0, 100)
    assert _wait(predictor, _job(tool="shell:pytest")) == pytest.approx(60, rel=0.1)
    assert _wait(predictor, _job(tool="shell:ls")) == pytest.approx(0.1, rel=0.1)
    assert _wait(predictor, _job(tool="search")) == pytest.approx(3, rel=0.1)
    unknown_verb = predictor.wait(_job(tool="shell:make"))
    assert unknown_verb.beyond(30) == pytest.approx(0.5, abs=0.1)
    assert unknown_verb.within(0.0, 1.0) == pytest.approx(0.5, abs=0.1)


def test_a_wait_without_a_name_is_known_by_the_kind_of_job() -> None:
    predictor = Predictor()
    for _ in range(100):
        predictor.wait_ended(_job(kind="coder", segments=1), 30.0, 100)
        predictor.wait_ended(_job(kind="chat", segments=1), 600.0, 100)
    assert _wait(predictor, _job(kind="coder")) == pytest.approx(30, rel=0.1)
    assert _wait(predictor, _job(kind="chat")) == pytest.approx(600, rel=0.1)


def test_tools_and_kinds_of_one_name_are_told_apart() -> None:
    assert tool_path(_job(kind="shell", tool="shell:ls")) == ("kind shell", "shell", "shell:ls")
    assert tool_path(_job(tool="shell")) == ("", "shell", "")
    assert tool_path(_job()) == ("", "", "")


def test_the_rest_is_what_jobs_of_the_kind_needed() -> None:
    predictor = Predictor()
    for number in range(400):
        job = _job(f"coder-{number}", "coder")
        for calls in range(1, 6):
            predictor.segment_ended(job, 50)
            job.segments = calls
            if calls < 5:
                predictor.wait_ended(job, 2.0, 300)
        predictor.job_ended(job)
    for done in range(5):
        rest = predictor.rest(_job("new", "coder", segments=done))
        assert rest.segments == pytest.approx(4 - done, abs=0.15)
        assert rest.output == pytest.approx(50, rel=0.15)
        assert rest.growth == pytest.approx(300, rel=0.15)
        assert rest.wait.quantile(0.5) == pytest.approx(2, rel=0.1)


def test_later_waits_are_those_of_the_kind_whatever_tool_comes_next() -> None:
    predictor = Predictor()
    for _ in range(200):
        predictor.wait_ended(_job(kind="coder", tool="shell", segments=1), 30.0, 100)
        predictor.wait_ended(_job(kind="chat", tool="user", segments=1), 600.0, 100)
    assert predictor.rest(_job(kind="coder", tool="user")).wait.quantile(0.5) == pytest.approx(30, rel=0.1)
    assert predictor.rest(_job(kind="chat")).wait.quantile(0.5) == pytest.approx(600, rel=0.1)


def test_a_job_that_returns_after_it_was_counted_as_over_did_not_go_on() -> None:
    """Else its silence would count as an end and as no end."""
    predictor, job = Predictor(), _job(segments=3)
    predictor.job_ended(job)
    job.presumed_over = True
    predictor.wait_ended(job, 5000.0, 100)
    assert predictor.calls.count == 1
    assert predictor.waits.count == 1


def test_a_job_that_never_called_has_no_length() -> None:
    predictor = Predictor()
    predictor.job_ended(_job())
    assert predictor.calls.count == 0


class _Model:
    """Knows output lengths of one job and waits of one tool."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def output(self, job: Job, prompt_tokens: int, max_output: int) -> Distribution | None:
        return Distribution.of([float(prompt_tokens + max_output)]) if job.id == "known" else None

    def wait(self, job: Job) -> Distribution | None:
        return Distribution.of([7.0]) if job.tool == "known" else None

    def segment_ended(self, job: Job, output_tokens: int) -> None:
        self.seen.append((job.id, output_tokens))

    def wait_ended(self, job: Job, seconds: float) -> None:
        self.seen.append((job.tool, seconds))


def test_a_trained_model_is_asked_first_and_learns_as_well() -> None:
    model = _Model()
    predictor, plain = Predictor(learned=model), Predictor()
    assert predictor.output(_job("known"), 30, 12).mean == 42
    assert predictor.output(_job("other"), 30, 12) == plain.output(_job("other"), 30, 12)
    assert predictor.wait(_job(tool="known")).mean == 7
    assert predictor.wait(_job(tool="other")) == plain.wait(_job(tool="other"))
    predictor.segment_ended(_job("known"), 5)
    predictor.wait_ended(_job(tool="known", segments=1), 2.5, 10)
    assert model.seen == [("known", 5), ("known", 2.5)]
    assert (predictor.outputs.count, predictor.waits.count) == (1, 1)
