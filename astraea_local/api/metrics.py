"""Prometheus metrics: histograms of what clients felt, and the engine's last frame."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from astraea_local.engine.messages import Finished
from astraea_local.frame import PressureLevel, StateFrame

_LEVELS: list[PressureLevel] = ["low", "normal", "high", "critical"]
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_JOB_SECONDS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, frame: Callable[[], StateFrame | None]) -> None:
        """`frame` gives the newest picture of the engine, if there is one."""
        self.registry = CollectorRegistry()
        self.registry.register(_FrameCollector(frame))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"astraea_{name}_seconds", text, buckets=buckets, registry=self.registry)

        self._ttft = histogram("time_to_first_token", "Request to first token, queue included", _SECONDS)
        self._itl = histogram("inter_token_latency", "Mean time between tokens of a request", _TOKEN_SECONDS)
        self._queue = histogram("queue_wait", "Request to slot", _SECONDS)
        self._jct = histogram("job_completion", "First request of a job to its last answer", _JOB_SECONDS)
        self._lost = Counter(
            "astraea_prefix_lost",
            "Requests that did not repeat what is known of their job",
            ["cause"],
            registry=self.registry,
        )
        self._lost_tokens = Counter(
            "astraea_prefix_lost_tokens", "Known tokens that they did not repeat", registry=self.registry
        )
        self._refused = Counter(
            "astraea_refused", "Requests refused before any endpoint", ["code"], registry=self.registry
        )
        self._requests = Counter(
            "astraea_requests", "Requests by outcome", ["endpoint", "outcome"], registry=self.registry
        )

    def segment(self, finished: Finished) -> None:
        """Counts a finished segment."""
        self._queue.observe(finished.queued_s)
        self._ttft.observe(finished.queued_s + finished.prefill_s)
        if finished.output_tokens > 1:
            self._itl.observe(finished.decode_s / (finished.output_tokens - 1))

    def request(self, endpoint: str, outcome: str) -> None:
        """Counts a request."""
        self._requests.labels(endpoint, outcome).inc()

    def prefix_lost(self, cause: str, tokens: int) -> None:
        """Counts a request that made a job's known prefix worthless."""
        self._lost.labels(cause).inc()
        self._lost_tokens.inc(tokens)

    def refused(self, code: str) -> None:
        """Counts a request that the gate turned away."""
        self._refused.labels(code).inc()

    def job(self, seconds: float) -> None:
        """Counts a completed job."""
        self._jct.observe(seconds)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)


class _FrameCollector(Collector):
    def __init__(self, frame: Callable[[], StateFrame | None]) -> None:
        self._frame = frame

    def collect(self) -> Iterator[Metric]:
        frame = self._frame()
        if frame is None:
            return
        queued = GaugeMetricFamily("astraea_queue_length", "Waiting segments", labels=["queue"])
        for level in sorted({row.queue for row in frame.queue} | {0}):
            queued.add_metric([str(level)], sum(row.queue == level for row in frame.queue))
        yield queued
        slots = GaugeMetricFamily("astraea_slots", "Sequences by phase", labels=["phase"])
        for phase in ("free", "resident", "prefill", "decode"):
            slots.add_metric([phase], sum(row.phase == phase for row in frame.slots))
        yield slots
        yield _gauge("kv_cells_used", "KV cells in use", frame.kv.cells_used)
        yield _gauge("kv_cells", "KV cells in total", frame.kv.cells_total)
        yield _gauge("parked_bytes", "Bytes of parked KV in RAM", frame.kv.ram_bytes)
        yield from _tiers(frame)
        pressure = GaugeMetricFamily(
            "astraea_memory_pressure", "0 = low, 1 = normal, 2 = high, 3 = critical", labels=["memory"]
        )
        for memory, felt in frame.memory.pressure.items():
            pressure.add_metric([memory], _LEVELS.index(felt))
        yield pressure
        yield _gauge("scheduling_paused", "1 while nothing new is admitted", frame.scheduling_paused)
        yield _gauge("prefill_tokens_per_second", "Measured prefill speed", frame.speed.prefill_tokens_s)
        yield _gauge("decode_tokens_per_second", "Measured decode speed", frame.speed.decode_tokens_s)
        yield _gauge("engine_restarts", "Restarts after a crash", frame.restarts)
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens asked for", frame.totals.prompt_tokens),
            ("cached_tokens", "Prompt tokens taken from KV", frame.totals.cached_tokens),
            ("prefilled_tokens", "Tokens prefilled", frame.totals.prefilled_tokens),
            ("decoded_tokens", "Tokens decoded", frame.totals.decoded_tokens),
            ("steps", "Steps of the engine", frame.totals.steps),
            ("preemptions", "Segments that gave their slot away", frame.totals.preemptions),
        ):
            yield CounterMetricFamily(f"astraea_{name}", text, value=value)
        parks = CounterMetricFamily("astraea_parks", "KV states parked", labels=["tier"])
        parks.add_metric(["ram"], frame.kv.parks)
        restores = CounterMetricFamily("astraea_restores", "KV states restored", labels=["tier"])
        restores.add_metric(["ram"], frame.kv.restores)
        if frame.kv.disk_budget_bytes:
            parks.add_metric(["disk"], frame.kv.disk_writes)
            restores.add_metric(["disk"], frame.kv.disk_reads)
        yield parks
        yield restores


def _tiers(frame: StateFrame) -> Iterator[Metric]:
    """KV in each tier that exists, and what it may be at most."""
    kv, whole = frame.kv, frame.memory.context_bytes
    used = GaugeMetricFamily("astraea_kv_bytes", "Bytes of KV by where it is", labels=["tier"])
    limit = GaugeMetricFamily("astraea_kv_limit_bytes", "Most bytes of KV there", labels=["tier"])
    tiers = (
        ("slot", whole * kv.cells_used // max(1, kv.cells_total), whole),
        ("ram", kv.ram_bytes, kv.ram_budget_bytes),
        ("disk", kv.disk_bytes, kv.disk_budget_bytes),
    )
    for tier, size, most in tiers:
        if most:
            used.add_metric([tier], size)
            limit.add_metric([tier], most)
    yield used
    yield limit


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"astraea_{name}", text, value=value)
