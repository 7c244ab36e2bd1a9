"""An agent as its author would write it: the official client, a loop of completion and tool."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import openai

_TOOLS = ("grep", "pytest", "cat", "ls")


@dataclass
class Log:
    """What happened to one agent."""

    name: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    retries: int = 0
    error: str = ""


async def run_agent(base_url: str, name: str, *, turns: int = 4, seed: int = 0, retries: int = 0) -> Log:
    """Runs one agent to its end; a retryable error is tried again up to `retries` times."""
    rng = random.Random(seed)
    log = Log(name)
    secret = f"{name.upper()}-{rng.randrange(10**6):06d}"
    log.messages = [
        {"role": "system", "content": "You are a careful coding agent. Think in short steps."},
        {
            "role": "user",
            "content": f"I am {name}; my code word is {secret}. "
            + " ".join(f"Line {i} of my file says {rng.randrange(1000)}." for i in range(12)),
        },
    ]
    # The client's own retries are off, so that an error is seen here and judged.
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=240) as client:
        for turn in range(turns):
            while True:
                try:
                    text = await _ask(client, log)
                    break
                except openai.APIStatusError as error:
                    retryable = error.status_code in (429, 503) and "retry-after" in error.response.headers
                    if not retryable or log.retries >= retries:
                        log.error = f"{error.status_code}: {error.message}"
                        return log
                    log.retries += 1
                    await asyncio.sleep(float(error.response.headers["retry-after"]))
            log.messages.append({"role": "assistant", "content": text})
            if turn + 1 < turns:
                await asyncio.sleep(rng.uniform(0.01, 0.3))
                result = f"{rng.choice(_TOOLS)}: exit 0, {rng.randrange(100)} lines for {secret}"
                log.messages.append({"role": "user", "content": result})
    return log


async def _ask(client: openai.AsyncOpenAI, log: Log) -> str:
    raw = await client.chat.completions.with_raw_response.create(
        model="default",
        messages=log.messages,  # type: ignore[arg-type]
        max_tokens=16,
        temperature=0,
    )
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    log.cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    log.prompts.append(answer.usage.prompt_tokens)
    log.outputs.append(answer.usage.completion_tokens)
    log.jobs.append(raw.headers["x-astraea-job"])
    return answer.choices[0].message.content or ""
