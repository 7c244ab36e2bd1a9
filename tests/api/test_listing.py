"""The hosted model in the lists of three families of clients."""

from anthropic.types import ModelInfo
from openai.types import Model

from astraea_local.api.listing import listing
from astraea_local.engine.messages import Ready

READY = Ready("m", "full", "all", "per_slot", slots=4, context=8192, job_context=2048, pid=1)


def test_one_entry_serves_openai_and_anthropic() -> None:
    (entry,) = listing("m", 1_700_000_000, READY)["data"]
    assert Model.model_validate(entry).id == "m"
    assert ModelInfo.model_validate(entry | {"lifecycle": "active"}).created_at.timestamp() == 1_700_000_000
    assert entry["meta"]["job_context"] == 2048


def test_codex_plans_with_the_context_of_one_job() -> None:
    (model,) = listing("m", 0, READY)["models"]
    assert (model["slug"], model["context_window"]) == ("m", 2048)


def test_a_model_that_still_loads_is_listed() -> None:
    assert "meta" not in listing("m", 0, None)["data"][0]
