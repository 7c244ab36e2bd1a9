"""Profiles: what is accepted, and what is said about what is not."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from astraea_local.profile import (
    ContextSettings,
    KvSettings,
    ModelSettings,
    PolicyName,
    Profile,
    ProfileError,
    RetentionSettings,
    SchedulerSettings,
    ServerSettings,
    fields,
    load,
    override,
    parse,
    shipped,
)

FILE = Path("my.toml")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
GPU_PROFILES = ("gpu-8g", "gpu-12g", "gpu-16g", "gpu-24g", "gpu-48g")
# Size of the file in bytes, bytes of f16 KV per token, context the model was trained for, vocabulary.
MODELS = {
    "demo": (101_000_000, 30 * 3 * 64 * 4, 8_192, 49_152),
    "hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M": (1_120_000_000, 28 * 2 * 128 * 4, 32_768, 151_936),
    "hf:Qwen/Qwen3-4B-GGUF:Q4_K_M": (2_500_000_000, 36 * 8 * 128 * 4, 40_960, 151_936),
    "hf:Qwen/Qwen3-8B-GGUF:Q4_K_M": (5_030_000_000, 36 * 8 * 128 * 4, 40_960, 151_936),
    "hf:Qwen/Qwen3-14B-GGUF:Q4_K_M": (9_000_000_000, 40 * 8 * 128 * 4, 40_960, 151_936),
    "hf:Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M": (18_600_000_000, 48 * 4 * 128 * 4, 40_960, 151_936),
    "hf:Qwen/Qwen3-30B-A3B-GGUF:Q8_0": (32_500_000_000, 48 * 4 * 128 * 4, 40_960, 151_936),
}


def refusal(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse(text, FILE)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_empty_profile_is_the_defaults_under_the_name_of_its_file() -> None:
    assert parse("", FILE) == Profile(name="my")


def test_values_are_read() -> None:
    profile = parse('name = "n"\n[model]\nsource = "/m.gguf"\n[scheduler]\nlevel_tokens = [5, 9]', FILE)
    assert (profile.name, profile.model.source, profile.scheduler.level_tokens) == ("n", "/m.gguf", (5, 9))


@pytest.mark.parametrize(
    ("text", "line", "field", "known"),
    [
        ('name = "x"\n\n[model]\nsorce = "demo"\n', 4, "model.sorce", "source, gpu_layers"),
        ("[context]\nsize = 512\n\n[server]\nport = 1\nhots = 'x'\n", 6, "server.hots", "host, port"),
        ("colour = 1\n", 1, "colour", "name, description, model"),
        ("[kv]\n\n[contxt]\nsize = 512\n", 3, "contxt", "name, description, model"),
        ("name = 'x'\nserver.prot = 1\n", 2, "server.prot", "host, port"),
        ('[model]\nsource = "demo"\n[context]\nsource = 1\n', 4, "context.source", "size, slots"),
        ("[ server ]\n  hots = 1", 2, "server.hots", "host, port"),
        ('["server"]\n"hots" = 1', 2, "server.hots", "host, port"),
    ],
)
def test_unknown_key_is_refused_with_its_line(text: str, line: int, field: str, known: str) -> None:
    message = refusal(text)
    assert message.startswith(f"my.toml:{line}: unknown field '{field}': known here are {known}")


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ('[context]\n\nsize = "big"', 3, "context.size"),
        ('[server]\nport = "8080"', 2, "server.port"),
        ("[context]\nslots = true", 2, "context.slots"),
        ("[context]\nslots = 2.5", 2, "context.slots"),
        ("[model]\nsource = 3", 2, "model.source"),
        ("[kv]\ntype_k = 'q9_9'", 2, "kv.type_k"),
        ("[kv]\nlayout = 'split'", 2, "kv.layout"),
        ("[scheduler]\npolicy = 'lottery'", 2, "scheduler.policy"),
        ("[scheduler]\nlevel_tokens = 8192", 2, "scheduler.level_tokens"),
        ("[scheduler]\nlevel_tokens = [\n  1,\n  'two',\n]", 2, "scheduler.level_tokens.1"),
        ("model = 'demo'", 1, "model"),
    ],
)
def test_wrong_type_is_refused_with_its_line(text: str, line: int, field: str) -> None:
    assert refusal(text).startswith(f"my.toml:{line}: {field}: Input should be")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[context]\nsize = 255", "context.size"),
        ("[context]\nslots = 0", "context.slots"),
        ("[context]\nslots = 65", "context.slots"),
        ("[model]\ngpu_layers = -2", "model.gpu_layers"),
        ("[server]\nport = 65536", "server.port"),
        ("[scheduler]\naging_ratio = 1", "scheduler.aging_ratio"),
        ("[scheduler]\nmax_step_ms = inf", "scheduler.max_step_ms"),
        ("[server]\nkeepalive_s = nan", "server.keepalive_s"),
        ("[retention]\nram_mib = -1", "retention.ram_mib"),
    ],
)
def test_value_out_of_range_is_refused_with_its_line(text: str, field: str) -> None:
    assert refusal(text).startswith(f"my.toml:2: {field}: Input should be")


def test_every_fault_is_named_at_once() -> None:
    message = refusal("[context]\nslots = 0\n[server]\nprot = 1")
    assert "my.toml:2: context.slots" in message
    assert "my.toml:4: unknown field 'server.prot'" in message


def test_ubatch_above_batch_names_both() -> None:
    message = refusal("\n[context]\nbatch = 256")
    assert message.startswith("my.toml:2: context: ")
    assert "context.ubatch (512) must not exceed context.batch (256)" in message


def test_quantized_v_cache_without_flash_attention_says_what_to_set() -> None:
    message = refusal("[model]\nflash_attention = 'off'\n[kv]\ntype_v = 'q8_0'")
    assert 'set model.flash_attention to "auto" or kv.type_v to "f16"' in message
    assert parse("[model]\nflash_attention = 'off'\n[kv]\ntype_k = 'q8_0'", FILE).kv.type_k == "q8_0"


@pytest.mark.parametrize("levels", ["[9, 5]", "[5, 5]", "[0, 5]", "[-1]"])
def test_levels_must_ascend(levels: str) -> None:
    message = refusal(f"[scheduler]\nlevel_tokens = {levels}")
    assert re.match(r"my\.toml:2: scheduler\.level_tokens: must be positive .* ascending", message)


def test_bad_toml_names_file_and_line() -> None:
    assert re.match(r"my\.toml: not valid TOML: .*line 2", refusal("[model]\nsource = demo\n"))


def test_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ProfileError, match=r"no profile named 'gpu-9g'.*gpu-8g.*smollm2-cpu"):
        load("gpu-9g")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no such profile file"):
        load(str(tmp_path / "none.toml"))
    with pytest.raises(ProfileError, match="cannot be read"):
        load(str(tmp_path))
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ProfileError, match=r"latin\.toml: cannot be read"):
        load(str(tmp_path / "latin.toml"))


def test_load_reads_a_file_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[server]\nport = 1\n", encoding="utf-8")
    assert load(str(tmp_path / "mine.toml")) == override(Profile(name="mine"), {"server.port": 1})


def test_override_replaces_only_what_is_named() -> None:
    before = load("smollm2-cpu")
    after = override(before, {"server.port": 9000, "name": "mine"})
    assert (after.server.port, after.name) == (9000, "mine")
    assert before.server.port == 8080
    changed = {"server.port", "name"}
    assert {n: v for n, v, _ in fields(after) if n not in changed} == {
        n: v for n, v, _ in fields(before) if n not in changed
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"server.port": 70000}, r"^server\.port: "),
        ({"server.prot": 1}, r"^unknown field 'server\.prot': known here are host, port"),
        ({"nosuch.port": 1}, r"^unknown field 'nosuch'"),
        ({"name.port": 1}, r"^name: Input should be a valid string"),
        ({"context.batch": 64}, r"context\.ubatch \(512\) must not exceed context\.batch \(64\)"),
    ],
)
def test_override_is_checked_too(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        override(Profile(), change)


def test_profiles_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Profile().server.port = 1  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    listed = {name: text for name, _, text in fields(Profile())}
    assert len(listed) > 25
    assert [name for name, text in listed.items() if not text.strip()] == []
    assert listed["context.size"] == "KV cells in total, shared by the slots."


def test_shipped_profiles_are_the_ones_documented() -> None:
    assert set(shipped()) == {"smollm2-cpu", "cpu", *GPU_PROFILES}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_profile_is_sound(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert profile.description
    share = profile.context.size // profile.context.slots
    trained = MODELS[profile.model.source][2]
    assert 2048 <= share <= trained, "a slot holds an agent's prompt, and no more than the model can use"
    assert share % 256 == 0, "llama.cpp rounds each stream to 256 cells"


@pytest.mark.parametrize("name", ["smollm2-cpu", "cpu"])
def test_cpu_profiles_ask_for_no_gpu_and_fit_a_small_machine(name: str) -> None:
    profile = load(name)
    assert profile.model.gpu_layers == 0
    assert memory(profile) + (profile.retention.ram_mib << 20) < 4 << 30


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_gpu_profile_fits_the_card_of_its_name(name: str) -> None:
    profile = load(name)
    assert profile.model.gpu_layers == -1
    card = int(name.removeprefix("gpu-").removesuffix("g")) << 30
    driver = 600_000_000
    assert 0.75 * card < memory(profile) + driver < 0.90 * card


def memory(profile: Profile) -> float:
    """Weights, KV and one graph, in bytes."""
    weights, per_token, _, vocabulary = MODELS[profile.model.source]
    half = {"f16": 1.0, "q8_0": 34 / 64}
    scale = (half[profile.kv.type_k] + half[profile.kv.type_v]) / 2
    return weights + per_token * scale * profile.context.size + 4 * vocabulary * profile.context.ubatch


def test_default_profile_is_the_demo_model_on_the_cpu() -> None:
    profile = load("smollm2-cpu")
    assert (profile.model.source, profile.context.size, profile.context.slots) == ("demo", 8192, 4)


def positive(low: float) -> SearchStrategy[float]:
    return st.floats(min_value=low, max_value=1e9, exclude_min=True)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SECTIONS = {
    "name": TEXT,
    "description": TEXT,
    "model": st.builds(
        ModelSettings,
        source=TEXT,
        gpu_layers=st.integers(-1, 200),
        main_gpu=st.integers(0, 8),
        flash_attention=st.sampled_from(("auto", "on")),
        threads=st.integers(0, 1024),
    ),
    "context": st.tuples(st.integers(32, 16384), st.integers(32, 16384)).flatmap(
        lambda sizes: st.builds(
            ContextSettings,
            size=st.integers(256, 1 << 20),
            slots=st.integers(1, 64),
            batch=st.just(max(sizes)),
            ubatch=st.just(min(sizes)),
        )
    ),
    "kv": st.builds(
        KvSettings,
        layout=st.sampled_from(("auto", "per_slot", "unified")),
        type_k=st.sampled_from(KV_TYPES),
        type_v=st.sampled_from(KV_TYPES),
    ),
    "scheduler": st.builds(
        SchedulerSettings,
        policy=st.sampled_from(get_args(PolicyName)),
        max_step_ms=positive(0),
        level_tokens=st.sets(st.integers(1, 1 << 30), max_size=6).map(lambda v: tuple(sorted(v))),
        aging_ratio=positive(1),
        preempt_factor=positive(1),
        min_quantum_tokens=st.integers(1, 10_000),
        predicted_output_tokens=st.integers(1, 10_000),
    ),
    "retention": st.builds(
        RetentionSettings, ram_mib=st.integers(0, 1 << 20), min_tokens=st.integers(1, 10_000)
    ),
    "server": st.builds(
        ServerSettings,
        host=TEXT,
        port=st.integers(0, 65535),
        max_queue=st.integers(1, 10_000),
        keepalive_s=positive(0),
        stream_interval_ms=st.floats(0, 1e6),
        drain_s=st.floats(0, 1e6),
        job_idle_s=positive(0),
        max_body_mib=st.integers(1, 1024),
    ),
}


def toml(values: dict[str, Any]) -> str:
    """Plain TOML; a JSON string, number or list of numbers is a TOML one, but for the DEL character."""

    def value(item: Any) -> str:
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")

    lines = [f"{key} = {value(item)}" for key, item in values.items() if not isinstance(item, dict)]
    for key, item in values.items():
        if isinstance(item, dict):
            lines += [f"[{key}]", *(f"{inner} = {value(v)}" for inner, v in item.items())]
    return "\n".join(lines)


@given(st.builds(Profile, **SECTIONS))
def test_any_valid_profile_survives_being_written_and_read(profile: Profile) -> None:
    assert parse(toml(profile.model_dump(mode="json")), FILE) == profile
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert override(profile, {n: v for n, v, _ in fields(profile)}) == profile
