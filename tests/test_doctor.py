"""The doctor on machines of every kind; llama.cpp and the demo model are real, NVML is not."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from astraea_local.doctor import Report, examine, kv_bytes_per_token, render, survey
from astraea_local.doctor.report import Build, Device, Host
from astraea_local.engine import binding
from astraea_local.engine.binding import amx
from astraea_local.model_source import resolve
from astraea_local.profile import KvType, load, override

GIB = 1 << 30
INSTALL = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir llama-cpp-python==0.3.36'
DEMO = load("smollm2-cpu")
ON_GPU = override(DEMO, {"model.gpu_layers": -1})


class NvmlError(Exception):
    """What the fake raises in place of pynvml.NVMLError."""


class FakeNvml:
    """The part of pynvml that is used; `refused` names the calls that fail."""

    NVMLError = NvmlError

    def __init__(self, *gpus: str | bytes, refused: tuple[str, ...] = ()) -> None:
        self.gpus = gpus
        self.refused = refused
        self.open = False

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.refused:
            return self._refuse
        return super().__getattribute__(name)

    def _refuse(self, *args: object) -> None:
        raise NvmlError("Not Supported")

    def nvmlInit(self) -> None:  # noqa: N802
        self.open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open = False

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "550.54"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802
        return self.gpus[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=24 * GIB, free=22 * GIB, used=2 * GIB)


NO_NVML = FakeNvml(refused=("nvmlInit",))


def texts(report: Report, severity: str) -> str:
    return "\n".join(f.text for f in report.findings if f.severity == severity)


def gpu_build(monkeypatch: pytest.MonkeyPatch, *, free: int = 22 * GIB, devices: int = 1) -> None:
    found = [
        Device(name=f"CUDA{i}", description="NVIDIA Card", is_gpu=True, free=free, total=24 * GIB)
        for i in range(devices)
    ]
    made = Build(version="0.3.36", gpu_offload=True, cpu_features=("AVX2",), devices=tuple(found))
    monkeypatch.setattr(survey, "read_build", lambda: made)


@pytest.fixture(autouse=True)
def _usable_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with most compilers and CPUs."""
    monkeypatch.setattr(amx, "must_be_off", lambda: False)


def host(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    real = survey.read_host()
    plenty = {"ram_total": 64 * GIB, "ram_available": 60 * GIB, "disk_free": {"/cache": 100 * GIB}}
    changed = Host.model_validate(real.model_dump() | plenty | changes)
    monkeypatch.setattr(survey, "read_host", lambda: changed)


def test_gpu_beside_a_cpu_only_build_is_called_out() -> None:
    report = examine(ON_GPU, nvml=FakeNvml("NVIDIA Card"))
    assert report.build is not None
    assert not report.build.gpu_offload
    assert report.worst == "error"
    assert "NVIDIA Card" in texts(report, "error")
    assert INSTALL in texts(report, "error")
    assert INSTALL in render(report), "on one line, fit to be copied"


def test_idle_gpu_is_only_a_warning_for_a_cpu_profile() -> None:
    report = examine(DEMO, nvml=FakeNvml("NVIDIA Card"))
    assert INSTALL in texts(report, "warning")
    assert texts(report, "error") == ""


def test_machine_without_gpu_is_fine_for_a_cpu_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch)
    report = examine(DEMO, nvml=NO_NVML)
    assert report.gpus == ()
    assert report.nvml == "sees no NVIDIA GPU: Not Supported"
    assert report.worst == "ok"


def test_machine_without_gpu_for_a_gpu_profile_names_the_field() -> None:
    report = examine(ON_GPU, nvml=NO_NVML)
    assert "model.gpu_layers" in texts(report, "warning")
    assert "profile `cpu`" in texts(report, "warning")


def test_real_nvml_is_asked_by_default() -> None:
    report = examine(DEMO)
    assert re.match(r"sees (no|\d+) NVIDIA GPU", report.nvml)


def test_readings_of_a_gpu() -> None:
    nvml = FakeNvml("NVIDIA Card", b"Old Card")
    report = examine(DEMO, nvml=nvml)
    assert [gpu.name for gpu in report.gpus] == ["NVIDIA Card", "Old Card"]
    gpu = report.gpus[0]
    assert (gpu.total, gpu.free, gpu.used, gpu.driver) == (24 * GIB, 22 * GIB, 2 * GIB, "550.54")
    assert report.nvml == "sees 2 NVIDIA GPUs"
    assert "NVIDIA Card: 24.0 GiB, 2.0 GiB used, 22.0 GiB free, driver 550.54" in render(report)
    assert not nvml.open


@pytest.mark.parametrize(
    ("refused", "line"),
    [
        ("nvmlDeviceGetMemoryInfo", "NVIDIA Card: memory not reported, driver 550.54"),
        ("nvmlSystemGetDriverVersion", "2.0 GiB used, 22.0 GiB free, driver not reported"),
        ("nvmlDeviceGetName", "GPU 0: 24.0 GiB"),
        ("nvmlDeviceGetHandleByIndex", "GPU 0: memory not reported"),
        ("nvmlDeviceGetCount", "sees 0 NVIDIA GPUs"),
        ("nvmlShutdown", "NVIDIA Card: 24.0 GiB"),
    ],
)
def test_each_refused_reading_costs_one_line(refused: str, line: str) -> None:
    report = examine(DEMO, nvml=FakeNvml("NVIDIA Card", refused=(refused,)))
    assert line in render(report)


def test_report_survives_json() -> None:
    report = examine(DEMO, nvml=FakeNvml("NVIDIA Card"))
    assert Report.model_validate_json(report.model_dump_json()) == report
    data = json.loads(report.model_dump_json())
    assert data["gpus"][0]["total"] == 24 * GIB
    assert {f["severity"] for f in data["findings"]} <= {"ok", "warning", "error"}


def test_text_names_build_model_and_every_finding() -> None:
    report = examine(DEMO, nvml=NO_NVML)
    text = render(report)
    assert "llama-cpp-python 0.3.36, CPU only" in text
    assert "profile       smollm2-cpu, model demo" in text
    assert "23,040 B of KV each" in text
    assert all(f"{f.severity.upper():<14}{f.text}\n" in text for f in report.findings)


@pytest.mark.parametrize(("type_k", "type_v", "share"), [("f16", "f16", 1), ("q8_0", "q8_0", 34 / 64)])
def test_kv_per_token_of_the_demo_model(type_k: KvType, type_v: KvType, share: float) -> None:
    with binding.Model(resolve("demo"), vocab_only=True) as model:
        assert kv_bytes_per_token(model, type_k, type_v) == pytest.approx(23_040 * share, rel=0.01)
        mixed = kv_bytes_per_token(model, "f32", "q4_0")
        assert mixed == pytest.approx(23_040 * (2 + 18 / 64) / 2, rel=0.01)


def test_estimate_is_what_llama_cpp_allocates(caplog: pytest.LogCaptureFixture) -> None:
    estimate = examine(DEMO, nvml=NO_NVML).estimate
    assert estimate is not None
    params = binding.ContextParams(n_ctx=DEMO.context.size, n_seq=DEMO.context.slots)
    with caplog.at_level(logging.DEBUG, "llama.cpp"), binding.Model(resolve("demo")) as model:
        assert estimate.weights == pytest.approx(model.size_bytes, rel=0.05)
        binding.Context(model, params).close()

    def allocated(what: str) -> float:
        sizes = re.findall(rf"{what} buffer size = +([\d.]+) MiB", caplog.text)
        return float(sizes[-1]) * (1 << 20)

    assert estimate.kv == pytest.approx(allocated("KV"), rel=0.01)
    assert estimate.compute == pytest.approx(allocated("compute"), rel=0.05)
    assert (estimate.on_gpu, estimate.on_host) == (0, estimate.weights + estimate.kv + estimate.compute)


class Header:
    """Stands in for a model of which only metadata is asked."""

    def __init__(self, **values: int | str) -> None:
        self.values = {"general.architecture": "qwen3"} | {
            f"qwen3.{key.replace('__', '.')}": str(value) for key, value in values.items()
        }

    def metadata(self, key: str) -> str | None:
        return self.values.get(key)


def test_kv_per_token_takes_the_head_size_that_the_header_states() -> None:
    qwen3_8b: Any = Header(
        block_count=36,
        embedding_length=4096,
        attention__head_count=32,
        attention__head_count_kv=8,
        attention__key_length=128,
        attention__value_length=128,
    )
    assert kv_bytes_per_token(qwen3_8b, "f16", "f16") == 147_456
    assert kv_bytes_per_token(qwen3_8b, "q8_0", "q8_0") == 78_336


def test_kv_per_token_is_an_upper_bound_without_a_count_of_kv_heads() -> None:
    header: Any = Header(block_count=2, embedding_length=256, attention__head_count=4)
    assert kv_bytes_per_token(header, "f16", "f16") == 2 * 2 * 256 * 2


def test_model_without_attention_keeps_no_kv() -> None:
    header: Any = Header(block_count=2, embedding_length=256)
    assert kv_bytes_per_token(header, "f16", "f16") == 0


def test_fit_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_build(monkeypatch)
    host(monkeypatch)
    report = examine(ON_GPU, nvml=FakeNvml("NVIDIA Card"))
    assert report.worst == "ok"
    assert "NVIDIA Card's memory, 22.0 GiB of 24.0 GiB is free: it fits" in texts(report, "ok")
    assert report.estimate is not None
    assert report.estimate.on_host == 0


@pytest.mark.parametrize(
    ("cells", "free", "severity", "said"),
    [
        (2_000_000, 24 * GIB, "error", "GiB is free: lower context.size to "),
        (900_000, 12 * GIB, "error", "stop other programs, lower context.size to "),
        (900_000, 20 * GIB + GIB // 4, "warning", "leaves hardly any: lower context.size to "),
    ],
)
def test_too_large_for_the_gpu_says_what_would_fit(
    monkeypatch: pytest.MonkeyPatch, cells: int, free: int, severity: str, said: str
) -> None:
    gpu_build(monkeypatch, free=free)
    host(monkeypatch)
    profile = override(ON_GPU, {"context.size": cells, "kv.layout": "unified"})
    text = texts(examine(profile, nvml=NO_NVML), severity)
    assert said in text
    assert 'kv.type_k and kv.type_v to "q8_0"' in text

    advised = int(re.findall(r"lower context\.size to (\d+)", text)[0])
    assert 0 < advised < cells
    better = examine(override(profile, {"context.size": advised}), nvml=NO_NVML)
    assert "it fits" in texts(better, "ok")


def test_partial_offload_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_build(monkeypatch)
    half = examine(override(ON_GPU, {"model.gpu_layers": 15}), nvml=NO_NVML).estimate
    assert half is not None
    assert half.on_host == pytest.approx((half.weights + half.kv) / 2, rel=0.01)
    assert half.on_gpu + half.on_host == half.weights + half.kv + half.compute


def test_gpu_build_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_build(monkeypatch, devices=0)
    assert "nvidia-smi" in texts(examine(ON_GPU, nvml=NO_NVML), "warning")


def test_main_gpu_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_build(monkeypatch)
    report = examine(override(ON_GPU, {"model.main_gpu": 1}), nvml=NO_NVML)
    assert "model.main_gpu is 1" in texts(report, "error")


def test_unusable_llama_cpp_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(binding, "build_info", fail)
    report = examine(DEMO, nvml=NO_NVML)
    assert report.build is None
    assert re.search("libcudart.*reinstall it with `pip install", texts(report, "error"))
    assert "error" in render(report).lower()


def test_a_compiler_whose_amx_code_crashes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "must_be_off", lambda: True)
    report = examine(DEMO, nvml=NO_NVML)
    assert "AMX" in texts(report, "warning")
    assert "CXXFLAGS=-U__AMX_INT8__ pip install --force-reinstall" in texts(report, "warning")


def test_hub_model_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    report = examine(load("gpu-8g"), nvml=NO_NVML)
    assert report.model is None
    assert "Qwen/Qwen3-4B-GGUF:Q4_K_M is not downloaded yet" in texts(report, "warning")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"GGUF but not really", "cannot load"), (b"PK\3\4", "not a GGUF file")],
)
def test_unusable_model_file(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "m.gguf"
    if content is not None:
        file.write_bytes(content)
    report = examine(override(DEMO, {"model.source": str(file)}), nvml=NO_NVML)
    assert re.search(f"model.source: .*{said}", texts(report, "error"))


def test_split_model_with_a_part_missing(tmp_path: Path) -> None:
    file = tmp_path / "m-00001-of-00002.gguf"
    file.write_bytes(b"GGUF")
    report = examine(override(DEMO, {"model.source": str(file)}), nvml=NO_NVML)
    assert "m-00002-of-00002.gguf: No such file" in texts(report, "error")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context.size": 65536, "context.slots": 4}, "lower context.size to 32768 or raise context.slots"),
        ({"context.size": 1024, "kv.layout": "per_slot"}, "raise context.size to 8192, lower context.slots"),
        ({"context.size": 1024, "context.slots": 1, "kv.layout": "unified"}, "raise context.size to 2048"),
        ({"model.threads": 1000}, "model.threads is 1000"),
    ],
)
def test_unsuitable_settings_name_the_field(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    host(monkeypatch)
    assert said in texts(examine(override(DEMO, changes), nvml=NO_NVML), "warning")


def test_parked_states_must_leave_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, ram_available=2 * GIB)
    report = examine(override(DEMO, {"retention.ram_mib": 4096}), nvml=NO_NVML)
    text = texts(report, "warning")
    advised = int(re.findall(r"retention\.ram_mib allows 4\.0 GiB .*: lower it to (\d+)", text)[0])
    assert 512 < advised < 1024
    again = examine(override(DEMO, {"retention.ram_mib": advised}), nvml=NO_NVML)
    assert again.worst == "ok"


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, disk_free={"/models": GIB})
    assert "/models has 1.0 GiB left" in texts(examine(DEMO, nvml=NO_NVML), "warning")


def test_cache_folders_need_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "a" / "b"))
    free = examine(DEMO, nvml=NO_NVML).host.disk_free
    assert free[str(tmp_path / "a" / "b")] > 0
    assert not (tmp_path / "a").exists()
