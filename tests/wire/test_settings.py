import json
from math import inf

import pytest

from api_client.gateway.settings import GatewaySettings
from api_client.stack.settings import StackSettings
from api_client.wire.address import masked
from api_client.wire.errors import BadSettings, NoBroker
from api_client.wire.settings import Settings, files
from worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("CLIPYARD_REDIS_URL", "CLIPYARD_CONFIG"):
        monkeypatch.delenv(name, raising=False)


PATHS = [
    (kind, name)
    for kind in (WorkerSettings, StackSettings, GatewaySettings)
    for name, field in kind.model_fields.items()
    if "Path" in repr(field.annotation)
]


@pytest.mark.parametrize(("kind", "name"), PATHS)
def test_a_persons_home_is_meant_in_every_path(monkeypatch, tmp_path, kind, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    value = '["~/a"]' if name.endswith("_roots") else "~/a"
    monkeypatch.setenv(f"CLIPYARD_{name.upper()}", value)
    read = getattr(kind.read(), name)
    assert read in (tmp_path / "a", (tmp_path / "a",))
    monkeypatch.setenv(f"CLIPYARD_{name.upper()}", value.replace("~", "~nobody-of-that-name"))
    with pytest.raises(BadSettings, match=f"^CLIPYARD_{name.upper()}: there is no such user here"):
        kind.read()


def test_so_it_is_in_the_names_of_files_with_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.json").write_text('{"chunk_size": 7}')
    (tmp_path / "url").write_text("redis://a")
    monkeypatch.setenv("CLIPYARD_CONFIG", "~/c.json")
    monkeypatch.setenv("CLIPYARD_REDIS_URL_FILE", "~/url")
    read = Settings.read()
    assert (read.chunk_size, read.url()) == (7, "redis://a")
    named = {"CLIPYARD_CONFIG": tmp_path / "c.json", "CLIPYARD_REDIS_URL_FILE": tmp_path / "url"}
    assert files() == {name: str(path) for name, path in named.items()}
    for name in named:
        with monkeypatch.context() as there:
            there.setenv(name, "~nobody-of-that-name/x")
            with pytest.raises(BadSettings, match=rf"^{name}: cannot read .* no such user"):
                Settings.read()
            assert files()[name].endswith("~nobody-of-that-name/x")  # who reads it says so


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("CLIPYARD_SLOTS", "3", "slots", 3),
        ("RAG_CLIP_MODEL", "ViT-B-32/openai", "default_model", "ViT-B-32/openai"),
        ("CLIP_MODEL_NAME", "ViT-B-32/openai", "default_model", "ViT-B-32/openai"),
        ("CLIP_BATCH_SIZE", "8", "batch_size", 8),
        ("CLIP_MAX_WORKERS", "2", "decode_threads", 2),
        ("CLIP_GPU_MEMORY_THRESHOLD", "6.5", "gpu_memory_threshold_gb", 6.5),
        ("CLIP_ENABLE_CACHING", "false", "keep_models", False),
        ("CLIP_FALLBACK_TO_CPU", "0", "fallback_to_cpu", False),
        ("CLIP_LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("MODEL_USAGE_TRACKER_ENABLED", "false", "sweeps_enabled", False),
        ("MODEL_USAGE_TRACKER_CLEANUP_INTERVAL", "5", "sweep_interval_s", 5),
        ("MODEL_USAGE_TRACKER_VISION_EMBEDDING_VRAM_TIMEOUT", "1", "vision_vram_timeout_s", 1),
        ("MODEL_USAGE_TRACKER_VISION_EMBEDDING_RAM_TIMEOUT", "2", "vision_ram_timeout_s", 2),
        ("MODEL_USAGE_TRACKER_EMBEDDING_MODEL_VRAM_TIMEOUT", "3", "text_vram_timeout_s", 3),
        ("MODEL_USAGE_TRACKER_EMBEDDING_MODEL_RAM_TIMEOUT", "4", "text_ram_timeout_s", 4),
        ("LAZY_LOADING_UNLOADING_MEMORY_PRESSURE_THRESHOLD", "0.5", "pressure_threshold", 0.5),
        ("LAZY_LOADING_UNLOADING_MEMORY_PRESSURE_TIMEOUT", "9", "pressure_timeout_s", 9),
    ],
)
def test_the_names_people_have_set_are_honoured(
    monkeypatch, tmp_path, variable, value, field, expected
):
    monkeypatch.setenv(variable, value)
    read = WorkerSettings.read()
    assert getattr(read, field) == expected
    assert read.origin(field) == variable
    monkeypatch.delenv(variable)
    for name in (variable.lower(), variable):
        config = tmp_path / f"{name}.json"
        config.write_text(json.dumps({name: json.loads(value) if value[0].isdigit() else value}))
        monkeypatch.setenv("CLIPYARD_CONFIG", str(config))
        read = WorkerSettings.read()
        assert getattr(read, field) == expected
        assert read.origin(field) == str(config)


def test_the_environment_wins_over_the_file_and_ours_over_the_older_name(monkeypatch, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(
        '{"CLIPYARD_CHUNK_SIZE": 9, "chunk_size": 6, '
        '"slots": 5, "clip_batch_size": 5, "of_another_program": 1}'
    )
    monkeypatch.setenv("CLIPYARD_CONFIG", str(config))
    monkeypatch.setenv("CLIPYARD_SLOTS", "4")
    monkeypatch.setenv("CLIP_BATCH_SIZE", "9")
    monkeypatch.setenv("CLIPYARD_BATCH_SIZE", "7")
    read = WorkerSettings.read()
    assert (read.slots, read.batch_size, read.chunk_size) == (4, 7, 6)


@pytest.mark.parametrize("setting", ["answer_timeout_s", "answer_ttl_s"])
@pytest.mark.parametrize("never", ["inf", "nan", "1e300", "604801"])
def test_nobody_waits_for_ever(setting, never):
    with pytest.raises(BadSettings, match=setting.upper()):
        Settings.read(**{setting: never})
    assert getattr(Settings.read(**{setting: "604800"}), setting) == 604800


@pytest.mark.parametrize("make", [Settings, Settings.read])
def test_what_is_given_counts_whichever_way_and_no_mistyped_name_is_left_out(monkeypatch, make):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://of-the-environment")
    assert make(redis_url="redis://given").url() == "redis://given"
    assert make(clipyard_redis_url="redis://given").url() == "redis://given"
    with pytest.raises(TypeError, match=r"^no setting key_prefx, redis_ur; there are "):
        make(redis_ur="redis://:s3cret@given", key_prefx="mine")
    with pytest.raises(BadSettings, match=r"^CLIPYARD_CHUNK_SIZE: "):
        make(chunk_size=0)


def test_a_list_that_is_no_json_is_told_by_the_name_of_its_variable(monkeypatch):
    monkeypatch.setenv("CLIPYARD_SINK_ROOTS", "/vectors")
    with pytest.raises(BadSettings, match=r"^CLIPYARD_SINK_ROOTS: it is no JSON; .* list"):
        WorkerSettings.read()


@pytest.mark.parametrize("setting", ["sweep_interval_s", "tend_interval_s"])
@pytest.mark.parametrize("interval", ["0", "1e-300", "1e300", "inf", "nan"])
def test_beat_is_given_an_interval_that_it_can_keep(setting, interval):
    with pytest.raises(BadSettings, match=setting.upper()):
        Settings.read(**{setting: interval})


@pytest.mark.parametrize(
    "setting",
    [
        "device_memory_gb",
        "host_memory_gb",
        "content_cache_mb",
        "decode_timeout_s",
        "job_lease_s",
        "slots",
        "max_image_bytes",
        "max_image_pixels",
    ],
)
@pytest.mark.parametrize("huge", ["inf", "1e300", "9" * 26])
def test_a_number_that_no_machine_can_count_with_stops_the_start(setting, huge):
    with pytest.raises(BadSettings, match=setting.upper()):
        WorkerSettings.read(**{setting: huge})


@pytest.mark.parametrize(
    "setting", ["vision_vram_timeout_s", "text_ram_timeout_s", "pressure_timeout_s"]
)
def test_a_time_that_no_status_can_tell_stops_the_start(setting):
    with pytest.raises(BadSettings, match=f"{setting.upper()}: .* finite"):
        WorkerSettings.read(**{setting: "inf"})
    assert WorkerSettings.read(slot_wait_s="inf").slot_wait_s == inf  # in no status


def test_every_mistake_gets_a_line_with_its_name(monkeypatch):
    monkeypatch.setenv("CLIPYARD_SLOTS", "none")
    monkeypatch.setenv("CLIPYARD_DEVICE", "tpu")
    with pytest.raises(BadSettings) as raised:
        WorkerSettings.read()
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    assert any(line.startswith("CLIPYARD_SLOTS: ") for line in lines)
    assert any(line.startswith("CLIPYARD_DEVICE: ") and "cuda:N" in line for line in lines)


def test_a_mistake_is_told_by_the_name_that_was_set(monkeypatch, tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"model_usage_tracker_cleanup_interval": 0, "slots": 0}')
    monkeypatch.setenv("CLIPYARD_CONFIG", str(config))
    monkeypatch.setenv("Clip_Batch_Size", "many")
    with pytest.raises(BadSettings) as raised:
        WorkerSettings.read()
    names = {line.partition(": ")[0] for line in str(raised.value).splitlines()}
    keys = {"model_usage_tracker_cleanup_interval", "slots"}
    assert names == {"CLIP_BATCH_SIZE", *(f"{key} in {config}" for key in keys)}
    with pytest.raises(BadSettings, match=r"^CLIPYARD_BATCH_SIZE: .*'few'"):  # as an argument
        WorkerSettings.read(batch_size="few", slots=2, sweep_interval_s=1)


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_config_file_that_cannot_be_used_is_one_line(monkeypatch, tmp_path, content):
    config = tmp_path / "config.json"
    if content is not None:
        config.write_text(content)
    monkeypatch.setenv("CLIPYARD_CONFIG", str(config))
    with pytest.raises(BadSettings, match="CLIPYARD_CONFIG"):
        Settings.read()


@pytest.mark.parametrize("setting", ["signing_key", "old_signing_key"])
def test_a_key_that_can_be_guessed_is_refused_and_not_quoted(setting):
    sentence = "it has fewer than 16 characters and could be guessed; make one with `openssl"
    with pytest.raises(BadSettings, match=f"^CLIPYARD_{setting.upper()}: {sentence}") as raised:
        Settings.read(**{setting: "a" * 15})
    assert "aaa" not in str(raised.value)


@pytest.mark.parametrize(
    "key", ["clipyard_signing_key_file", "CLIPYARD_SIGNING_KEY_FILE", "signing_key_file"]
)
def test_the_file_of_a_secret_may_be_named_in_the_json_file(monkeypatch, tmp_path, key):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: "key"}))  # beside it, wherever the process stands
    (tmp_path / "key").write_text("k" * 16)
    monkeypatch.setenv("CLIPYARD_CONFIG", str(config))
    read = Settings.read()
    assert read.signing_key.get_secret_value() == "k" * 16
    assert read.origin("signing_key") == str(config)
    (tmp_path / "key").write_text("")
    assert Settings.read(signing_key="m" * 16).signing_key.get_secret_value() == "m" * 16
    with pytest.raises(BadSettings, match=rf"{key} in {config}: {tmp_path / 'key'} is empty"):
        Settings.read()
    (tmp_path / "nobody.json").write_text(json.dumps({key: "~nobody-of-that-name/key"}))
    monkeypatch.setenv("CLIPYARD_CONFIG", str(tmp_path / "nobody.json"))
    with pytest.raises(BadSettings, match=rf"{key} in .*nobody.json: cannot read .* no such user"):
        Settings.read()


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_file_is_no_secret_and_lets_nobody_in(monkeypatch, tmp_path, content):
    file = tmp_path / "signing.key"
    file.write_text(content)
    monkeypatch.setenv("CLIPYARD_SIGNING_KEY_FILE", str(file))
    with pytest.raises(BadSettings, match=r"CLIPYARD_SIGNING_KEY_FILE: .* is empty"):
        Settings.read()


def test_who_has_no_home_is_told_so_only_where_one_is_needed(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert Settings.read(redis_url="redis://127.0.0.1:1").url() == "redis://127.0.0.1:1"
    with pytest.raises(NoBroker, match="set CLIPYARD_REDIS_URL"):
        Settings.read().url()


def test_variables_of_other_programs_are_not_taken_for_ours(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("SLOTS", "9")
    assert WorkerSettings.read().slots == 2


def test_secrets_are_masked_wherever_settings_are_shown():
    read = Settings.read(redis_url="redis://user:s3cret@127.0.0.1:1/0", signing_key="s3cret" * 5)
    assert "s3cret" not in repr(read)
    assert "s3cret" not in str(read.rows())
    assert masked(read.url()) == "redis://user:***@127.0.0.1:1/0"


def test_without_a_redis_the_error_says_what_to_do(tmp_path):
    with pytest.raises(NoBroker, match="clipyard up"):
        Settings.read(home=tmp_path).url()
