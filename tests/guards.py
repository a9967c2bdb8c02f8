"""Takes each guard out, in a copy, and sees that its test fails.

python -m tests.guards
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("api_client", "worker", "tasks", "beat_schedule", "tests", "pyproject.toml")

IMAGES, WEB, STORES = (
    "worker/datapath/images.py",
    "worker/datapath/web.py",
    "worker/datapath/stores.py",
)
DECODING, DECODERS = "worker/datapath/decoding.py", "worker/datapath/decoders.py"
SIGNING, MESSAGES = "api_client/wire/signing.py", "api_client/wire/messages.py"
SETTINGS, BROKER = "api_client/wire/settings.py", "api_client/wire/broker.py"
GATE, PASSES = "api_client/gateway/guard.py", "api_client/gateway/passes.py"
BUDGETS, ACL = "api_client/gateway/budgets.py", "api_client/acl.py"
AT_GATE, AT_BUDGETS = "api_client/gateway/test_guard.py", "api_client/gateway/test_budgets.py"
WEIGHTS, OPEN_CLIP = "worker/backends/weights.py", "worker/backends/openclip.py"
DOORS, MANIFEST = "worker/reembed/doors.py", "worker/reembed/manifest.py"

# File, what stands there, what stands there without the guard, the test that must notice.
GUARDS = [
    (IMAGES, "if root is None:", "if False:", "worker/datapath/test_images.py -k no_way_leads_out"),
    (IMAGES, " | os.O_NOFOLLOW", "", "worker/datapath/test_images.py -k swapped"),
    (
        IMAGES,
        "not stat.S_ISREG(status.st_mode)",
        "False",
        "worker/datapath/test_images.py -k devices",
    ),
    (IMAGES, " | os.O_NONBLOCK", "", "worker/datapath/test_images.py -k pipes --timeout 5"),
    (
        IMAGES,
        "if len(data) > self._max_bytes",
        "if False",
        "worker/datapath/test_images.py -k of_bytes",
    ),
    (
        DECODING,
        "pixels > limits.pixels",
        "False",
        "worker/datapath/test_images.py -k decompression_bomb",
    ),
    (DECODING, "data.count(_START_OF_SCAN)", "0", "worker/datapath/test_images.py -k passes"),
    (DECODING, "data.startswith(_PLAIN_PPM)", "False", "worker/datapath/test_images.py -k numbers"),
    (DECODING, ", formats=FORMATS", "", "worker/datapath/test_images.py -k unreadable"),
    (
        DECODERS,
        "resource.RLIMIT_AS: memory,",
        "",
        "worker/datapath/test_decoders.py -k little_memory",
    ),
    (DECODERS, "env={", "env={**os.environ, ", "worker/datapath/test_decoders.py -k no_secret"),
    (
        WEB,
        "not all(map(self._allowed, addresses))",
        "False",
        "worker/datapath/test_web.py -k metadata",
    ),
    (
        WEB,
        "all(map(self._allowed",
        "any(map(self._allowed",
        "worker/datapath/test_web.py -k refused_whole",
    ),
    (WEB, "str(address), port", "host, port", "worker/datapath/test_web.py -k public_picture"),
    (
        WEB,
        "self._checked(urljoin(",
        "_parsed(urljoin(",
        "worker/datapath/test_web.py -k only_listed",
    ),
    (WEB, "range(REDIRECTS + 1)", "range(99)", "worker/datapath/test_web.py -k for_ever"),
    (
        WEB,
        "if length > self._max_bytes",
        "if False",
        "worker/datapath/test_web.py -k over_the_limit --timeout 9",
    ),
    (
        WEB,
        "self._stream.read(max_bytes, self._left_s())",
        "self._stream.read(max_bytes, 9)",
        "worker/datapath/test_web.py -k drops --timeout 9",
    ),
    (
        WEB,
        "if place.port not in self._ports",
        "if False",
        "worker/datapath/test_web.py -k own_ports",
    ),
    (WEB, "    _refuse_odd(host)\n", "", "worker/datapath/test_web.py -k odd_url"),
    (WEB, "address in _NAT64", "False", "worker/datapath/test_web.py -k internet_is_public"),
    (STORES, " or _climbs(url)", "", "worker/datapath/test_stores.py -k nothing_else"),
    (
        STORES,
        "not url.startswith(self._prefixes) or ",
        "",
        "worker/datapath/test_stores.py -k nothing_else",
    ),
    (
        SIGNING,
        "not isinstance(given, str) or not any(",
        "not any((True,)) and any(",
        "wire/test_signing.py -k changed",
    ),
    (SIGNING, "[task, request, payload]", "[payload]", "wire/test_signing.py -k no_other"),
    (
        SIGNING,
        'isinstance(plain.get("deadline"), int | float)',
        "True",
        "wire/test_signing.py -k without_an_end",
    ),
    (MESSAGES, 'extra="forbid"', 'extra="ignore"', "wire/test_versions.py -k unknown"),
    (MESSAGES, "> MAX_BATCH_CHARS", "< 0", "wire/test_versions.py -k bounded"),
    (SETTINGS, '"rediss:"', '"never:"', "security/test_tls.py -k strangers"),
    (
        BROKER,
        "task_repr_maxlevels=1",
        "task_repr_maxlevels=9",
        "security/test_installation.py -k secret_is_shown",
    ),
    (
        BROKER,
        'accept_content=["json"]',
        'accept_content=["json", "pickle"]',
        "security/test_installation.py -k holds_code",
    ),
    (
        IMAGES,
        "hashlib.sha256(data).hexdigest() != ref.sha256",
        "False",
        "worker/datapath/test_images.py -k signed",
    ),
    (
        "api_client/requests.py",
        "pictures.sealed() if settings.signing_key else pictures.refs",
        "pictures.refs",
        "security/test_neighbours.py -k swapped",
    ),
    (GATE, "caller is None and path not in OPEN_PATHS", "False", f"{AT_GATE} -k known_token"),
    (GATE, "elif not _is_local(headers)", "elif False", f"{AT_GATE} -k another_site"),
    (
        GATE,
        "if len(body) > self._settings.gateway_body_bytes",
        "if False",
        f"{AT_GATE} -k large_body",
    ),
    (
        GATE,
        "asyncio.timeout(self._settings.gateway_body_timeout_s)",
        "asyncio.timeout(99)",
        f"{AT_GATE} -k slow_body --timeout 9",
    ),
    (
        GATE,
        "self._at_work >= self._settings.gateway_concurrency",
        "False",
        f"{AT_GATE} -k at_once --timeout 30",
    ),
    (GATE, "await self._budgets.spend(caller", "await self._budgets.spend(None", AT_BUDGETS),
    (BUDGETS, "if wait > 0 then", "if false then", f"{AT_BUDGETS} -k told_when"),
    (BUDGETS, "'PX', math.ceil((full - now) * 1000)", "'KEEPTTL'", f"{AT_BUDGETS} -k forgets"),
    (
        PASSES,
        "hashlib.sha256(self.token.encode()).hexdigest()[:32]",
        "self.token",
        f"{AT_BUDGETS} -k holds_no_token",
    ),
    (
        ACL,
        "{sign}{prefix}:{pattern}",
        "{sign}*:{pattern}",
        "security/test_neighbours.py -k no_role",
    ),
    (
        ACL,
        '"user default off"',
        '"user default on nopass ~* &* +@all"',
        "security/test_installation.py -k without_a_name",
    ),
    (
        WEIGHTS,
        "weights_only=True",
        "weights_only=False",
        "worker/backends/test_openclip.py -k holds_code",
    ),
    (
        OPEN_CLIP,
        "self._checkpoints.sha256(source) != entry.sha256.lower()",
        "False",
        "worker/backends/test_openclip.py -k wrong_sha256",
    ),
    (
        DOORS,
        "if not any(real.is_relative_to(root) for root in roots)",
        "if False",
        "worker/reembed/test_sinks.py -k outside",
    ),
    (
        MANIFEST,
        "if _digest(body) != digest",
        "if False",
        "worker/reembed/test_manifest.py -k changed_after",
    ),
]


def main() -> int:
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        for name in COPIED:
            place = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy.mkdir(exist_ok=True)
            place(ROOT / name, copy / name)
        for file, guard, without, test in GUARDS:
            text = (copy / file).read_text()
            if guard not in text:
                print(f"GONE      {file}: {guard.strip()}")
                unnoticed += 1
                continue
            (copy / file).write_text(text.replace(guard, without))
            path, *options = f"tests/{test}".split()
            command = [sys.executable, "-m", "pytest", "-q", "-x", path, *options]
            done = subprocess.run(command, cwd=copy, capture_output=True, check=False)
            (copy / file).write_text(text)
            noticed = done.returncode == 1
            unnoticed += not noticed
            print(f"{'noticed' if noticed else 'UNNOTICED':9} {file}: {guard.strip()}", flush=True)
    return bool(unnoticed)


if __name__ == "__main__":
    sys.exit(main())
