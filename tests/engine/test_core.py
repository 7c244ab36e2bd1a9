"""EngineCore with llama.cpp really running, in the test's own process."""

import pytest

from astraea_local.bench.random_model import ShapeName
from astraea_local.engine.binding import Model
from astraea_local.engine.sampling import SamplingParams
from astraea_local.profile import Profile, override
from astraea_local.scheduler.batching import even_chunk
from tests.engine.harness import Harness, MakeHarness, prompt


@pytest.mark.parametrize("layout", ["per_slot", "unified"])
@pytest.mark.parametrize("policy", ["fcfs", "astraea"])
def test_more_jobs_than_slots_all_finish(harness: MakeHarness, layout: str, policy: str) -> None:
    """Every job gets its tokens, and no more segments run at once than there are slots."""
    h = harness(kv__layout=layout, scheduler__policy=policy)
    segments = [h.submit(f"job{i}", prompt(i, 20 + 7 * i), 6) for i in range(10)]
    h.run()
    assert [h.finished(s).output_tokens for s in segments] == [6] * 10
    assert all(s.segment is None for s in h.core.table)


@pytest.mark.parametrize("layout", ["per_slot", "unified"])
@pytest.mark.parametrize("shape", ["tiny", "tiny-swa", "tiny-recurrent", "tiny-hybrid"])
def test_a_returning_job_reuses_its_context(harness: MakeHarness, shape: ShapeName, layout: str) -> None:
    """Also after others took every slot; what is reused changes nothing in the answer."""
    h = harness(shape, kv__layout=layout)
    first = h.ask("agent", prompt(1, 100))
    for other in range(6):
        h.ask(f"other{other}", prompt(10 + other, 90))
    longer = [*prompt(1, 100), *first.output, *prompt(2, 30)]
    again = h.ask("agent", longer)
    assert again.cached_tokens >= 100
    fresh = harness(shape, kv__layout=layout).ask("new", longer)
    assert fresh.cached_tokens == 0
    assert again.output == fresh.output


def test_a_parked_conversation_continues_exactly(demo_model: Model) -> None:
    """Parked to RAM and restored into an empty context, it says what it says without parking."""
    profile = override(Profile(), {"context.size": 2048, "context.slots": 1})
    never, parked = Harness(demo_model, profile), Harness(demo_model, profile)
    prompt = never.tokens("<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n")
    tail = never.tokens("<|im_end|>\n<|im_start|>user\nAnd about ships?<|im_end|>\n<|im_start|>assistant\n")
    first = never.ask("agent", prompt, 40)
    assert parked.ask("agent", prompt, 40).output == first.output
    assert parked.core.residency.park_now("agent") == len(prompt) + 39
    assert not parked.core.table.cells_used
    parked.context.clear()
    longer = [*prompt, *first.output, *tail]
    expected, restored = never.ask("agent", longer, 60), parked.ask("agent", longer, 60)
    assert restored.cached_tokens == expected.cached_tokens > len(prompt)
    assert parked.core.residency.store.stats.restores == 1
    assert restored.output == expected.output
    never.close()
    parked.close()


def test_a_context_that_fills_up_ends_with_length(harness: MakeHarness) -> None:
    """Per slot, a job ends where its stream ends; nothing else is touched."""
    h = harness()
    end = h.ask("agent", prompt(1, 250), 100)
    assert end.reason == "length"
    assert 250 + end.output_tokens == 256


def test_parking_off_means_recomputing(harness: MakeHarness) -> None:
    """Without a RAM budget nothing is wrong, only slower."""
    h = harness(context__slots=1, context__size=512, retention__ram_mib=0)
    first = h.ask("agent", prompt(1, 100))
    h.ask("other", prompt(2, 100))
    longer = [*prompt(1, 100), *first.output, 7, 8, 9]
    again = h.ask("agent", longer)
    assert again.cached_tokens == 0
    assert h.core.residency.store.stats.parks == 0
    assert again.output == harness(context__slots=1, context__size=512).ask("x", longer).output


def test_a_long_prompt_is_computed_in_equal_chunks() -> None:
    """No short rest at the end, no chunk above the limit, and nothing left out."""
    for pending in range(1, 700):
        for most in (16, 64, 150, 512):
            left, chunks = pending, []
            while left:
                chunks.append(even_chunk(left, most))
                left -= chunks[-1]
            assert max(chunks) <= most
            assert max(chunks) - min(chunks) <= 1
            assert len(chunks) == -(-pending // most)


def test_a_constraint_may_ask_for_special_tokens_and_their_text(demo_model: Model) -> None:
    h = Harness(demo_model, override(Profile(), {"context.size": 512, "context.slots": 1}))
    mark = int(demo_model.vocab.tokenize("<repo_name>", add_special=False, parse_special=True)[0])
    rules = SamplingParams(temperature=0, guidance=f'start: "before" <[{mark}]> "behind"\n')
    prompt = h.tokens("Say something.")
    hidden = h.ask("a", prompt, 32, sampling=rules, stream=False, ignore_eos=False)
    shown = h.ask("b", prompt, 32, sampling=rules, stream=False, ignore_eos=False, shown=(mark,))
    h.close()
    assert (hidden.text, hidden.reason) == ("beforebehind", "stop")
    assert (shown.text, shown.reason) == ("before<repo_name>behind", "stop")
