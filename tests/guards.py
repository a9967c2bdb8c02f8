"""Takes each guard out, in a copy, and sees that its test fails.

python -m tests.guards
"""

import argparse
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
JPEG, EIGHTH = "worker/datapath/jpeg.py", "worker/datapath/eighth.c"
SIGNING, MESSAGES = "api_client/wire/signing.py", "api_client/wire/messages.py"
SUSPECTS, ANSWERS = "worker/delivery/suspects.py", "worker/delivery/answers.py"
WATCHDOG, CONSUMER = "worker/delivery/watchdog.py", "worker/delivery/consumer.py"
LINE, POOL = "worker/delivery/line.py", "worker/delivery/pool.py"
QUARANTINE, TRANSPORT = "worker/delivery/quarantine.py", "worker/delivery/transport.py"
HOUSEKEEPING, HEALTH = "worker/housekeeping.py", "worker/health.py"
SETTINGS, BROKER = "api_client/wire/settings.py", "api_client/wire/broker.py"
ADDRESS = "api_client/wire/address.py"
GATE, PASSES = "api_client/gateway/guard.py", "api_client/gateway/passes.py"
BUDGETS, ACL = "api_client/gateway/budgets.py", "api_client/acl.py"
AT_GATE, AT_BUDGETS = "api_client/gateway/test_guard.py", "api_client/gateway/test_budgets.py"
WEIGHTS, OPEN_CLIP = "worker/backends/weights.py", "worker/backends/openclip.py"
LOGS = "api_client/wire/logs.py"
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
    (
        DECODING,
        "near * near * long > RESIZED_PIXELS * short",
        "False",
        "worker/datapath/test_images.py -k strip",
    ),
    (JPEG, "data.count(bytes((0xFF, _SCAN)))", "1", "worker/datapath/test_images.py -k passes"),
    (
        JPEG,
        "elif marker not in _TABLES_AND_TEXTS:",
        "elif False:",
        "worker/datapath/test_images.py -k stands_before",
    ),
    (EIGHTH, "bits->at > end + sizeof bits->next", "0", "worker/datapath/test_jpeg.py -k its_own"),
    (EIGHTH, "= 2 * BLOCK_BYTES", "= 9", "worker/datapath/test_jpeg.py -k its_own"),
    (
        "worker/extent.py",
        "size - 1 < part <= size for",
        "True for",
        "worker/backends/test_resize.py -k less_than_a_pixel",
    ),
    (DECODING, "data.startswith(_PLAIN_PPM)", "False", "worker/datapath/test_images.py -k numbers"),
    (DECODING, "data[4:8] == _ISO_MEDIA", "False", "worker/datapath/test_images.py -k avif_is"),
    (
        DECODING,
        "DEFAULT_MAX_THREADS = 1",
        "DEFAULT_MAX_THREADS = 0",
        "worker/datapath/test_images.py -k one_thread",
    ),
    (DECODING, ", formats=FORMATS", "", "worker/datapath/test_images.py -k unreadable"),
    (
        DECODERS,
        "resource.RLIMIT_AS: memory,",
        "",
        "worker/datapath/test_decoders.py -k little_memory",
    ),
    (DECODERS, "not decoder.has_ended", "True", "worker/datapath/test_decoders.py -k while_idle"),
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
        "self._checked(elsewhere, seen_from=place.url)",
        "_parsed(elsewhere, place.url)",
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
    (STORES, " or climbs(url)", "", "worker/datapath/test_stores.py -k nothing_else"),
    (
        STORES,
        "not url.startswith(self._prefixes) or ",
        "",
        "worker/datapath/test_stores.py -k nothing_else",
    ),
    (
        SIGNING,
        "not (isinstance(given, str) and given.isascii()) or not any(",
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
    (ADDRESS, 'url.partition("?")[0]', "url", "wire/test_address.py -k shown"),
    (ACL, " or not file.read_text().strip()", "", "api_client/test_acl.py -k never_written"),
    (ADDRESS, "if _is_misread(url)", "if False", "wire/test_address.py -k quoting"),
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
    (BUDGETS, "'PX', whole_ms", "'KEEPTTL'", f"{AT_BUDGETS} -k forgets"),
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
        "worker/backends/ollama.py",
        "if self._pulled().digest != self._digest:",
        "if False:",
        "worker/backends/test_ollama.py -k pulled_meanwhile",
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
    (SUSPECTS, ">= TWICE", ">= 99", "worker/delivery/test_suspects.py -k condemned"),
    (
        SUSPECTS,
        " or redis.call('HGET', KEYS[1], 'answered')",
        "",
        "worker/delivery/test_suspects.py -k before_its_deadline",
    ),
    (
        SUSPECTS,
        " or not _is_alive(process, seen[process])",
        " or True",
        "worker/delivery/test_suspects.py -k first_worker_lives",
    ),
    (
        SUSPECTS,
        "_seat = threading.Lock()",
        "_seat = threading.Semaphore(9)",
        "worker/delivery/test_suspects.py -k one_suspect_at_a_time",
    ),
    (SUSPECTS, "if came_late:", "if False:", "worker/delivery/test_suspects.py -k not_blamed"),
    (
        SUSPECTS,
        "if suspects._device_lost:",
        "if False:",
        "worker/delivery/test_suspects.py -k not_blamed",
    ),
    (
        SUSPECTS,
        "except BaseException:\n            start.give_up()",
        "except BaseException:",
        "worker/delivery/test_suspects.py -k given_back",
    ),
    (
        SUSPECTS,
        "redis.call('EXPIRE', KEYS[1], ARGV[3])",
        "",
        "worker/delivery/test_suspects.py -k struck_out",
    ),
    (SUSPECTS, "if has_twin:", "if False:", "worker/delivery/test_suspects.py -k twin"),
    (
        ANSWERS,
        "if start.is_condemned:",
        "if False:",
        "worker/delivery/test_answers.py -k two_workers_down",
    ),
    (
        SUSPECTS,
        "redis.call('DEL', KEYS[2])",
        "",
        "worker/delivery/test_answers.py -k two_workers_down",
    ),
    (
        ANSWERS,
        ' and not info.get("redelivered")',
        "",
        "worker/delivery/test_answers.py -k delivered_before",
    ),
    (
        ANSWERS,
        " and not accepted(runtime.here().settings)",
        "",
        "worker/delivery/test_answers.py -k hears_a_signed",
    ),
    (ANSWERS, "kind is EmbedBatch and ", "", "worker/delivery/test_answers.py -k moves_models"),
    (
        ANSWERS,
        "here.watchdog.end(str(lost))",
        "pass",
        "worker/delivery/test_answers.py -k device_is_lost",
    ),
    (
        QUARANTINE,
        "redis.call('HDEL', KEYS[1], oldest)",
        "",
        "worker/delivery/test_quarantine.py -k bounded",
    ),
    (
        QUARANTINE,
        "redis.call('EXPIRE', KEYS[1], ARGV[4])",
        "",
        "worker/delivery/test_quarantine.py -k bounded",
    ),
    (TRANSPORT, " or not self.listens", "", "worker/delivery/test_transport.py -k no_more"),
    (TRANSPORT, " + pool.others()", "", "worker/delivery/test_transport.py -k step_aside"),
    (TRANSPORT, " - pool.parked_bulk()", "", "worker/delivery/test_transport.py -k parked"),
    (
        POOL,
        "run.pool.bulk_at_work() > BULK_TASKS",
        "False",
        "worker/delivery/test_pool.py -k parked",
    ),
    (TRANSPORT, "!= names.EMBED", "", "worker/delivery/test_transport.py -k stands_back"),
    (
        "worker/app.py",
        "transport.Channel.stands_back = runtime.here().stands_back",
        "pass",
        "flow/test_healing.py -k first_model",
    ),
    (CONSUMER, "qos.restore_by_tag(", "id(", "worker/delivery/test_consumer.py -k in_hand"),
    (
        WATCHDOG,
        "min(older_s, 2 * LOOK_S)",
        "older_s",
        "worker/delivery/test_watchdog.py -k stopped_for_an_hour",
    ),
    (
        WATCHDOG,
        "last.join(LAST_WORDS_S)",
        "last.join()",
        "worker/delivery/test_watchdog.py -k does_not_answer",
    ),
    (WATCHDOG, "self._give_back())", "0)", "worker/delivery/test_watchdog.py -k wedged_worker"),
    (HEALTH, "min(WEDGED_S, wedged_after_s)", "WEDGED_S", "worker/test_health.py -k by_then"),
    (
        "worker/datapath/batcher.py",
        "self._lose(str(found))",
        "pass",
        "worker/datapath/test_batcher.py -k lost_device",
    ),
    (
        "worker/reembed/embedding.py",
        "crash.place == self.place for",
        "True for",
        "worker/reembed/test_portions.py -k condemn",
    ),
    (
        "worker/reembed/embedding.py",
        "in self.crashes) >= TWICE",
        "in self.crashes) >= 1",
        "worker/reembed/test_portions.py -k condemned",
    ),
    ("worker/reembed/duty.py", ">= CRASHES", ">= 99", "worker/reembed/test_duty.py -k of_no_item"),
    (
        "api_client/wire/jobscripts.py",
        "redis.call('EXPIRE', key, {OVER_KEPT_S})",
        "",
        "worker/reembed/test_ledger.py -k books_of_a_cancelled_job",
    ),
    (
        "worker/reembed/ledger.py",
        "if redis.call('TTL', H) ~= -1 then return {} end",
        "",
        "worker/reembed/test_ledger.py -k books_of_a_cancelled_job",
    ),
    (
        HOUSEKEEPING,
        "pipe.expire(key, ORPHANS_KEPT_S)",
        "pass",
        "worker/test_housekeeping.py -k comes_back",
    ),
    (
        HOUSEKEEPING,
        "pipe.srem(table, *gone)",
        "pass",
        "worker/test_housekeeping.py -k known_for_a_day",
    ),
    (
        HOUSEKEEPING,
        "count > BINDINGS_KEPT and empty",
        "False",
        "worker/test_housekeeping.py -k who_listen",
    ),
    (
        "api_client/stack/supervisor.py",
        "[] if post.ready else [now]",
        "[now]",
        "api_client/test_supervisor.py -k however_often",
    ),
    (
        TRANSPORT,
        "    BaseParser.EXCEPTION_CLASSES.update(dict.fromkeys(broker.NO_WRITES, TakesNoWrites))\n",
        "",
        "flow/test_kill_matrix.py -k no_writes",
    ),
    (
        TRANSPORT,
        "except UNREADABLE as error:",
        "except ZeroDivisionError as error:",
        "worker/delivery/test_transport.py -k no_envelope",
    ),
    (
        TRANSPORT,
        'if (payload.get("headers") or {}).get("compression"):',
        "if False:",
        "worker/delivery/test_transport.py -k no_envelope",
    ),
    (CONSUMER, "hash(self.name)", "pass", "worker/delivery/test_consumer.py -k refused_at_once"),
    (
        TRANSPORT,
        "if self.connection is not None:",
        "if True:",
        "worker/delivery/test_transport.py -k lost_channel",
    ),
    (
        TRANSPORT,
        "        finally:\n            self.qos.hear()\n",
        "        finally:\n            pass\n",
        "worker/delivery/test_transport.py -k not_missed",
    ),
    (
        LINE,
        "            self._unheard = 0\n            self._connection.disconnect()",
        "            pass",
        "worker/delivery/test_line.py -k next_commands",
    ),
    (
        CONSUMER,
        "isinstance(exc_info.exception, MemoryError)",
        "False",
        "flow/test_kill_matrix.py -k no_memory",
    ),
    (
        "api_client/talks.py",
        "self.send(replace(call, is_first=False))",
        "self.send(call)",
        "api_client/test_client.py -k under_its_id",
    ),
    (
        "api_client/talks.py",
        "self._message(replace(call, is_first=False))",
        "self._message(call)",
        "api_client/test_client.py -k by_whoever_waits",
    ),
    (BROKER, '{"declare": [], **options}', "options", "wire/test_broker.py -k declaring"),
    (BROKER, "said.startswith(NO_WRITES)", "False", "wire/test_broker.py -k without_room"),
    (
        "beat_schedule/__init__.py",
        'f"{__name__}:Scheduler"',
        '"celery.beat:Scheduler"',
        "beat_schedule -k set_back",
    ),
    (
        OPEN_CLIP,
        "copyfile(source, file)",
        "file.symlink_to(source)",
        "worker/backends/test_openclip.py -k writes_over",
    ),
    (
        "worker/residency/reservation.py",
        "            pipe.expire(self._key, math.ceil(self._ttl_s))\n",
        "",
        "worker/residency/test_reservation.py -k never_comes_back",
    ),
    (
        "worker/reembed/embedding.py",
        " if item.id not in held",
        "",
        "worker/reembed/test_duty.py -k pictures_have_gone",
    ),
    (
        "worker/reembed/duty.py",
        "if start.is_needless:",
        "if False:",
        "worker/reembed/test_duty.py -k takes_no_claim",
    ),
    (
        "worker/reembed/links.py",
        "Path(alias).name != alias",
        "False",
        "worker/reembed/test_sinks.py -k leads_nowhere",
    ),
    (
        "worker/reembed/sinks/lance.py",
        ", read_consistency_interval=timedelta(0)",
        "",
        "worker/reembed/test_sinks.py -k opened_it_before",
    ),
    (
        "worker/tracker.py",
        'if told := text(self._store.get(self._keys.current) or b""):',
        'if told := "":',
        "worker/test_tracker.py -k comes_later",
    ),
    (
        "worker/reembed/job.py",
        "tidy(self.doors.writing(self.spec.sink.where))",
        "pass",
        "worker/reembed/test_duty.py -k killed_writer",
    ),
    (
        DOORS,
        ' and "?" not in f"{address}/".removeprefix(base)',
        "",
        "worker/reembed/test_sinks.py -k no_server_but",
    ),
    (DOORS, "if climbs(url):", "if False:", "worker/reembed/test_sources.py -k beside_an_allowed"),
    (DOORS, "if leads_up(address):", "if False:", "worker/reembed/test_sinks.py -k step_up"),
    (
        "worker/reembed/sources/refs.py",
        "if not _is_of(header, name, length):",
        "if False:",
        "worker/reembed/test_sources.py -k written_anew",
    ),
    (
        "worker/reembed/job.py",
        "not in (None, before):",
        "in ():",
        "worker/reembed/test_duty.py -k overtaken_leaves",
    ),
    (
        "worker/reembed/sources/refs.py",
        "if length > doors.max_image_bytes:",
        "if False:",
        "worker/reembed/test_sources.py -k than_a_picture",
    ),
    (SETTINGS, "if not secret:", "if False:", "wire/test_settings.py -k empty_file"),
    (CONSUMER, "info(safe=True)", "info(safe=safe)", "worker/delivery/test_consumer.py -k no_text"),
    (LOGS, ".translate(ESCAPES)", "", "wire/test_logs.py -k readable"),
    (
        "api_client/talks.py",
        "yield lambda r: r.lpush(queue, again)",
        "pass",
        "api_client/test_client.py -k by_whoever_waits",
    ),
]


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
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
