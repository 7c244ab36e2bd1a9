"""One simulation by names: policy, machine, workload; each policy with the KV retention it came with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from astraea_local.bench.machine import Machine
from astraea_local.bench.oracle import Oracle, Truth
from astraea_local.bench.predictions import Noisy, TrueEverything, TrueLengths
from astraea_local.bench.simulator import SimResult, Simulation
from astraea_local.bench.workloads import SimJob
from astraea_local.profile import RetentionSettings, SchedulerSettings
from astraea_local.scheduler.policies import POLICIES, Policy
from astraea_local.scheduler.predictor import Predictor
from astraea_local.scheduler.retention import RETENTIONS, make
from astraea_local.scheduler.scheduler import Scheduler

POLICY_NAMES = (*POLICIES, "oracle")
RETENTION_NAMES = tuple(RETENTIONS)

# As published or as built: vLLM drops at tool calls, llama-server and the classics here keep and park.
_RETENTION = {
    "fcfs": "drop",
    "astraea_paper": "paper",
    "continuum": "ttl",
    "astraea": "adaptive",
    "oracle": "adaptive",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated."""

    policy: str
    machine: Machine
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    retention: str | None = None
    """None = the policy's own."""
    noise: float = 0.0
    """Sigma of the log-normal error of predictions."""
    exact_limits: bool = False
    """Clients ask for just as many tokens as they get, and no policy knows more: as in a replay."""
    seed: int = 0
    """Of the noise."""


def retention_of(policy: str) -> str:
    """The retention that a policy is simulated with unless another is asked for."""
    return _RETENTION.get(policy, "lru")


def simulate(
    setting: Setting,
    jobs: Sequence[SimJob],
    on_progress: Callable[[int], None] | None = None,
    *,
    make_policy: Callable[[SchedulerSettings, Predictor], Policy] | None = None,
    make_predictor: Callable[[Mapping[str, Truth]], Predictor] | None = None,
) -> SimResult:
    """Runs it. Raises `ValueError` for unknown names.

    `make_policy` and `make_predictor` replace those that the setting names, for ablations; the latter gets
    the true jobs by id, which fill while it runs.
    """
    truths: dict[str, Truth] = {}
    settings = setting.scheduler
    predictor = make_predictor(truths) if make_predictor else _predictor(setting, truths)
    named = settings.model_copy(update={"policy": setting.policy})
    policy: Policy | None = None
    if setting.policy == "oracle":
        named, policy = settings, Oracle(settings, predictor, truths)
    elif make_policy is not None:
        policy = make_policy(named, predictor)
    scheduler = Scheduler(named, setting.machine.slots, predictor=predictor, policy=policy)
    name = setting.retention or retention_of(setting.policy)
    retention = make(name, RetentionSettings(), watermark=settings.paper_watermark)
    simulation = Simulation(setting.machine, scheduler, retention, truths, exact_limits=setting.exact_limits)
    return simulation.run(jobs, on_progress)


def _predictor(setting: Setting, truths: dict[str, Truth]) -> Predictor:
    if setting.policy == "oracle":
        return TrueEverything(truths)
    if setting.policy == "astraea_paper" and not (setting.noise or setting.exact_limits):
        return TrueLengths(truths)
    if setting.noise:
        return Noisy(setting.noise, setting.seed, setting.scheduler.predicted_output_tokens)
    return Predictor(setting.scheduler.predicted_output_tokens)
