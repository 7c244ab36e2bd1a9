"""The OpenAPI document is true: whatever it allows is answered, as it says."""

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from astraea_local.bench import random_model
from tests.api.conftest import profile
from tests.conftest import Server, StartServer

pytestmark = pytest.mark.e2e

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_EXAMPLES = 15
# An answer of every length is as true as a short one, and endless streams are tested elsewhere.
_SHORT = {"n": 1, "stream": False}
_ENDLESS = "/astraea/v1/events"


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """With a model that gives embeddings as well."""
    folder = tmp_path_factory.mktemp("openapi")
    return start_server("--profile", profile(folder, random_model.write(folder / "tiny.gguf", pooling=1)))


def _shorten(body: Any) -> Any:
    if not isinstance(body, dict) or not {"messages", "prompt", "input", "stream"} & set(body):
        return body
    body.pop("max_completion_tokens", None)
    limit = "max_output_tokens" if "input" in body else "max_tokens"
    return body | {k: v for k, v in _SHORT.items() if k in body} | {limit: 2}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_holds_what_the_document_says(tiny: Server, mode: GenerationMode) -> None:
    """What the document allows is answered, and what it does not is answered or refused, as it says."""
    schema: OpenApiSchema = schemathesis.openapi.from_url(f"{tiny.url}/openapi.json")
    tried = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        # Where nothing is sent nothing can be wrong.
        if operation.path == _ENDLESS or (mode is GenerationMode.NEGATIVE and not operation.body):
            continue
        tried.append(operation.label)

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def holds(case: schemathesis.Case[Any]) -> None:
            case.body = _shorten(case.body)
            case.call_and_validate(checks=_CHECKS, timeout=30)

        holds()
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize"):
        assert f"POST {path}" in tried
    assert tiny.state()["restarts"] == 0


def test_the_document_names_every_error_in_its_shape(tiny: Server) -> None:
    document: dict[str, Any] = httpx.get(f"{tiny.url}/openapi.json", timeout=30).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"400", "403", "500", "503"} <= set(operation["responses"]), (path, method)
            assert "422" not in operation["responses"]
            assert operation["responses"]["200"].get("content"), (path, method)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_the_document_names_the_headers_of_a_job(tiny: Server, path: str) -> None:
    operation = httpx.get(f"{tiny.url}/openapi.json", timeout=30).json()["paths"][path]["post"]
    named = {p["name"] for p in operation["parameters"] if p["in"] == "header"}
    assert named == {f"X-Astraea-{name}" for name in ("Job", "Agent", "Parent", "Priority", "Final")}
    assert set(operation["responses"]["200"]["headers"]) == {"X-Astraea-Job"}
    for status in ("429", "503"):
        assert set(operation["responses"][status]["headers"]) == {"Retry-After"}
