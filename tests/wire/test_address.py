"""The URL of Redis, usable or not, shows no password."""

import pytest

from api_client.wire.address import for_celery, masked, parsed
from api_client.wire.errors import BadSettings
from api_client.wire.settings import Settings

UNUSABLE = [
    "geheim",
    "valkey://:geheim@host/0",
    "redis://:geheim@host:port/0",
    "redis://:geheim@host:99999/0",
    "redis://:geheim@host/zero",
    "redis://:geheim@.svc/0",
    f"redis://:geheim@{'host' * 16}/0",
    "unix://:geheim@/run/redis.sock",
    "redis://:geheim@host/0?db=zero",
    "redis://:geheim@host/0?geheim=1",
    "redis://:geheim@host/0?socket_timeout=soon",
    "redis://:geheim@host/0?ssl_ca_certs=/run/ca.pem",
    "redis://:geheim@host/0?decode_responses=true",
    "rediss://:geheim@host/0?ssl_cert_reqs=perhaps",
    *(f"redis://:{start}{sign}geheim@host/0" for start in ("ge", "12") for sign in "/?#["),
]


@pytest.mark.parametrize("url", UNUSABLE)
def test_a_url_that_cannot_be_used_is_refused_without_quoting_it(url):
    with pytest.raises(BadSettings, match="percent-encoded") as raised:
        Settings.read(redis_url=url)
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", {"host": "host"}),
        ("redis://:ge%2Fh%40eim@host:1/2", {"port": 1, "db": 2, "password": "ge/h@eim"}),
        (f"rediss://host?ssl_ca_certs={__file__}", {"ssl_ca_certs": __file__}),
        ("redis://host/?db=3&password=geheim", {"db": 3, "password": "geheim"}),
    ],
)
def test_a_url_is_read_as_redis_py_reads_it(url, expected):
    assert Settings.read(redis_url=url).redis_url
    assert parsed(url).items() >= expected.items()


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_that_the_url_names_can_be_read(option, tmp_path):
    url = f"rediss://:geheim@host/0?{option}={tmp_path}/it.pem"
    with pytest.raises(BadSettings, match=f"{option}, {tmp_path}/it.pem, cannot be read") as raised:
        Settings.read(redis_url=url)
    assert "geheim" not in str(raised.value)
    (tmp_path / "it.pem").touch()
    assert Settings.read(redis_url=url).redis_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:geheim@host:1/0", "redis://:***@host:1/0"),
        ("redis://user:geheim@host:1/0", "redis://user:***@host:1/0"),
        ("redis://host/0", "redis://host/0"),
        ("redis://host/0?password=geheim", "redis://host/0"),
        ("rediss://:geheim@host/0?ssl_password=geheim", "rediss://:***@host/0"),
    ],
)
def test_a_password_is_not_shown(url, shown):
    assert masked(url) == shown


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://host/?db=3&password=ge%2Fh%40eim", "redis://:ge%2Fh%40eim@host:6379/3"),
        ("redis://user:geheim@[::1]:1/2?socket_timeout=5", "redis://user:geheim@[::1]:1/2"),
        ("rediss://host/0?ssl_ca_certs=/ca&db=1", "rediss://host:6379/1?ssl_ca_certs=%2Fca"),
    ],
)
def test_celery_is_told_of_it_in_the_one_way_that_it_knows(url, told):
    assert for_celery(url) == told
