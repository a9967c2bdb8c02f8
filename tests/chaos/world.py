"""The stack that the chaos happens to: real processes, a real Valkey, and all that they lean on."""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil
import redis

from api_client import Client, Settings
from api_client.stack.child import Child
from api_client.stack.supervisor import Patience, Supervisor
from api_client.wire.names import Keys
from tests.flow.processes import ROOT, Valkey

from . import plan
from .clocks import Clocks
from .disk import Disk
from .host import PictureHost
from .proxy import Proxy

HOST = "chaos"  # of the workers' node names
ANSWERS_STAY_S = int(2 * plan.HOUR)  # what stays for less is gone when Redis's clock jumps
SLOTS = 2
FILE_MODEL = "shapes/file"
CATALOGUE = """
["fake/vision"]
backend = "chaos"
options = { dimension = 16, input_size = 8 }

["fake/text"]
backend = "chaos"
kinds = ["text"]

["fake/words"]
backend = "chaos"
kinds = ["text"]
options = { dimension = 12 }

["shapes/file"]
backend = "chaos_open_clip"
architecture = "open_clip_config.json"
checkpoint = "weights.safetensors"
dimension = 64
input_size = 64

["tiny/ViT-B-32"]
backend = "chaos_open_clip"
architecture = "ViT-B-32"
checkpoint = "ViT-B-32.safetensors"
dimension = 512
input_size = 224
"""
SHOWN = "CHAOS_WORLD"  # marks every process of this world, and of what they started


class World:
    """Everything, from `__enter__` to `__exit__`.

    Args:
        folder: empty; for all that is written.
        versions: checkpoints that the file of `shapes/file` may hold.
        pictures: file name -> bytes, below the image root and on the picture host.
        visibility_s: after which Redis delivers a message again that nobody renews.
        real: a checkpoint of the true ViT-B-32.
        env: settings of every process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        versions: Sequence[Path],
        pictures: Mapping[str, bytes],
        visibility_s: float,
        megabytes: int = 256,
        real: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.workers = [f"cpu{n}" for n in range(workers)]
        self.nodes = [f"{name}@{HOST}" for name in self.workers]
        self.versions = versions
        self.visibility_s = visibility_s
        self._pictures = pictures
        self._megabytes = megabytes
        self._real = real
        self._env = dict(env or {})
        self.orders, self.submissions = folder / "orders", folder / "submissions"
        self.pictures, self.models = folder / "pictures", folder / "models"
        self.checkpoint = self.models / "weights.safetensors"
        self.keys = Keys("clipyard")

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            for path in (self.orders, self.submissions, self.pictures, self.models):
                path.mkdir(parents=True)
            self.clocks = Clocks(self.folder / "clocks")
            self._write_inputs()
            self.disks = {
                name: parts.enter_context(Disk(self.folder / name, megabytes=self._megabytes))
                for name in (plan.SINKS, plan.REDIS)
            }
            self.valkey = Valkey(self.disks[plan.REDIS].folder, env=self.clocks.env(plan.REDIS))
            parts.callback(self.valkey.kill)
            self.proxy = parts.enter_context(Proxy(self.valkey.port))
            self.host = parts.enter_context(PictureHost(self._pictures))
            self.url = self.valkey.url.replace(f":{self.valkey.port}/", f":{self.proxy.port}/")
            self.supervisor = parts.enter_context(
                Supervisor(
                    [*map(self._worker, self.workers), self._beat(), self._client()],
                    logs=self.folder / "logs",
                    tell=lambda line: None,
                    patience=Patience(deaths=sys.maxsize, longest_delay_s=1.0),
                )
            )
            self.store = redis.Redis.from_url(self.valkey.url)
            parts.callback(self.store.close)
            self._undo = parts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def kinds(self) -> list[plan.Kind]:
        """What can be done to it on this machine."""
        missing = set()
        if not self.clocks.can_move:
            missing.add(plan.Kind.CLOCK)
        if not all(disk.is_own for disk in self.disks.values()):
            missing.add(plan.Kind.DISK_FULL)
        return [kind for kind in plan.Kind if kind not in missing]

    def client(self, **given: Any) -> Client:
        settings = Settings.read(redis_url=self.url, answer_ttl_s=ANSWERS_STAY_S, **given)
        return Client(settings, asked_by="chaos")

    def pid(self, target: str) -> int | None:
        """Of a worker, the beat, the client or Redis, as it runs now."""
        if target == plan.REDIS:
            return self.valkey.pid
        for process in psutil.Process().children():
            try:
                if process.environ().get("CHAOS_NAME") == target:
                    return process.pid
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return None

    def processes(self) -> list[psutil.Process]:
        """Whatever runs of this world, also what its processes started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(SHOWN) == str(self.folder):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def started(self) -> int:
        """How many worker processes have come up so far."""
        pairs = zip(self.workers, self.nodes, strict=True)
        return sum(self.log(name).count(f"{node} is ready.") for name, node in pairs)

    def log(self, name: str) -> str:
        file = self.folder / "logs" / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _write_inputs(self) -> None:
        (self.models / "catalogue.toml").write_text(CATALOGUE)
        shutil.copy(ROOT / "worker/models/shapes-demo/open_clip_config.json", self.models)
        shutil.copy(self.versions[0], self.checkpoint)
        if self._real is not None:
            (self.models / "ViT-B-32.safetensors").symlink_to(self._real)
        for name, content in self._pictures.items():
            (self.pictures / name).write_bytes(content)

    def _worker(self, name: str) -> Child:
        options = "worker -P threads -l INFO --without-gossip --without-mingle"
        return self._child(
            name,
            f"celery -A tests.chaos.app {options} -n {name}@{HOST}",
            ready=lambda said: " ready." in said,
            grace_s=30.0,
        )

    def _beat(self) -> Child:
        schedule = self.folder / "schedule"
        return self._child(plan.BEAT, f"celery -A beat_schedule beat --schedule {schedule}")

    def _client(self) -> Child:
        return self._child(plan.CLIENT, f"tests.chaos.elsewhere {self.submissions}")

    def _child(self, name: str, command: str, **more: Any) -> Child:
        roots = [str(self.pictures), str(self.models), str(self.disks[plan.SINKS].folder)]
        env = {
            "CLIPYARD_REDIS_URL": self.url,
            "CLIPYARD_ANSWER_TTL_S": str(ANSWERS_STAY_S),
            "CLIPYARD_CATALOGUE": str(self.models / "catalogue.toml"),
            "CLIPYARD_BACKENDS": json.dumps(
                ["chaos=tests.chaos.family:Faked", "chaos_open_clip=tests.chaos.family:Opened"]
            ),
            "CLIPYARD_DEFAULT_MODEL": "fake/vision",
            "CLIPYARD_DEVICE": "cpu",
            "CLIPYARD_SLOTS": str(SLOTS),
            "CLIPYARD_PRECISION": "float32",
            "CLIPYARD_DECODE": "exact",
            "CLIPYARD_DECODE_THREADS": "2",
            "CLIPYARD_OFFLINE": "true",
            "CLIPYARD_CACHE_DIR": str(self.folder / "cache"),
            "CLIPYARD_IMAGE_ROOTS": json.dumps(roots),
            "CLIPYARD_IMAGE_URLS": "true",
            "CLIPYARD_IMAGE_URL_TIMEOUT_S": "2",
            "CLIPYARD_SINK_ROOTS": json.dumps(roots),
            "CLIPYARD_JOB_LEASE_S": "10",
            "CLIPYARD_TEND_INTERVAL_S": "1",
            "CLIPYARD_SWEEP_INTERVAL_S": "2",
            "CHAOS_NAME": name,
            "CHAOS_ORDERS": str(self.orders),
            "CHAOS_HOST_PORT": str(self.host.port),
            "CHAOS_VISIBILITY_S": str(self.visibility_s),
            "OMP_NUM_THREADS": "1",
            SHOWN: str(self.folder),
            **self.clocks.env(name),
            **self._env,
        }
        argv = (sys.executable, "-m", *command.split())
        return Child(name=name, argv=argv, cwd=ROOT, env=env, **more)


def replace(file: Path, content: Path) -> None:
    """Put a file in another's place in one step."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    shutil.copy(content, temporary)
    os.utime(temporary)
    os.replace(temporary, file)
