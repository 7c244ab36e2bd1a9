"""The one model that is hosted, as OpenAI's, Anthropic's and Codex's clients want it listed."""

from datetime import UTC, datetime
from typing import Any

from astraea_local.engine.messages import Ready

# Codex takes its instructions from the catalog. Its own are longer than the context of many local models.
_INSTRUCTIONS = (
    "You are a coding agent in the user's terminal. Read before you change, change as little as the task "
    "needs, run what you changed, and say briefly what you did. Use the tools you are given; do not ask "
    "for what you can find out."
)
# What Codex assumes of models that it does not know.
_TOOL_OUTPUT_BYTES = 10_000


def listing(name: str, created: int, ready: Ready | None) -> dict[str, Any]:
    """The body of `/v1/models`; `created` is Unix time, `ready` has the facts once the model is loaded."""
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "astraea-local",
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
    }
    if ready is not None:
        entry["meta"] = {
            "context": ready.context,
            "job_context": ready.job_context,
            "slots": ready.slots,
            "layout": ready.layout,
        }
    return {
        "object": "list",
        "data": [entry],
        "has_more": False,
        "first_id": name,
        "last_id": name,
        "models": [_for_codex(name, ready)],
    }


def _for_codex(name: str, ready: Ready | None) -> dict[str, Any]:
    """Codex refuses the whole catalog when a field is missing; the set grew with its versions."""
    context = None if ready is None else ready.job_context
    return {
        "slug": name,
        "display_name": name,
        "description": "Hosted by astraea-local",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0,
        "upgrade": None,
        "availability_nux": None,
        "context_window": context,
        "max_context_window": context,
        "effective_context_window_percent": 95,
        "input_modalities": ["text"],
        "base_instructions": _INSTRUCTIONS,
        "model_messages": None,
        "include_skills_usage_instructions": False,
        "shell_type": "shell_command",
        "apply_patch_tool_type": None,
        "web_search_tool_type": "text",
        "truncation_policy": {"mode": "bytes", "limit": _TOOL_OUTPUT_BYTES},
        "supports_parallel_tool_calls": True,
        "supports_search_tool": False,
        "supports_image_detail_original": False,
        "experimental_supported_tools": [],
        "default_reasoning_level": None,
        "supported_reasoning_levels": [],
        "supports_reasoning_summaries": False,
        "default_reasoning_summary": "auto",
        "support_verbosity": False,
        "default_verbosity": None,
        "additional_speed_tiers": [],
        "service_tiers": [],
        "default_service_tier": None,
        "use_responses_lite": False,
    }
