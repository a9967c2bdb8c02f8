"""The whole stack, for as long as a block or a person wants it."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from rich.console import Console, RenderableType
from rich.table import Column, Table

from ..wire.address import masked, netloc
from ..wire.settings import files
from .child import Child
from .errors import NoCheckout
from .home import announce, private_directory, stack_file
from .supervisor import Patience, Supervisor
from .valkey import PrivateValkey

_WORKER_GRACE_S = 30.0  # a batch of large pictures on a CPU


@dataclass(frozen=True, kw_only=True)
class Extra(Child):
    """One more process of the stack, such as a dashboard, and the address to show for it."""

    cwd: Path = Path()  # the checkout, once it is found
    address: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """What belongs to a stack.

    Attributes:
        home: the directory for its data, its logs and the file that announces it.
        devices: one worker each, such as ("cpu",) or ("cuda:0", "cuda:1").
        redis_url: a Redis to use instead of a private one.
        env: settings for the workers, as environment variables.
        metrics_host: where the workers' metrics are said to be.
        metrics_port: of the first worker; the others count upwards. 0 is no metrics.
    """

    home: Path
    devices: tuple[str, ...]
    redis_url: str | None = field(default=None, repr=False)
    env: Mapping[str, str] = field(default_factory=dict)
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    extras: tuple[Extra, ...] = ()
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack that runs.

    Attributes:
        url: of its Redis, with the password; never log it.
        logs: the directory of its children's logs.
    """

    url: str = field(repr=False)
    logs: Path
    supervisor: Supervisor


def run(options: Options, *, console: Console) -> None:
    """Keep a stack up until Ctrl-C or SIGTERM, whether anybody listens or not.

    Raises:
        StackError: it cannot be started, or kept running.
    """

    def tell(what: RenderableType) -> None:
        try:
            console.print(what)
        except _Terminated:
            raise
        except (OSError, SystemExit):
            pass  # the terminal may be closed meanwhile; of a closed pipe rich makes a SystemExit

    try:
        with temporary_stack(options, tell=tell) as stack:
            tell(_listening(stack, options))
            try:
                stack.supervisor.wait()
            except (KeyboardInterrupt, _Terminated):
                tell("stopping: what was begun is finished first; Ctrl-C: at once")
    except (KeyboardInterrupt, _Terminated):  # while it started, or a second time
        tell("stopped at once")


@contextmanager
def temporary_stack(options: Options, *, tell: Callable[[str], None]) -> Iterator[Stack]:
    """A stack for as long as the block lasts, also when SIGTERM or SIGHUP ends it.

    The block begins as soon as Redis answers; `stack.supervisor.wait_ready` waits for the workers.

    Args:
        tell: gets one line per change of state, from another thread.

    Raises:
        StackError: it cannot be started, or, after the block, could not be kept running.
    """
    checkout = find_checkout()
    logs = options.home / "logs"
    with ExitStack() as parts:
        parts.enter_context(_unwinding_on(signal.SIGTERM, signal.SIGHUP))
        announcement = parts.enter_context(stack_file(options.home))
        private_directory(logs)
        foundation, url = None, options.redis_url
        if url is None:
            server = PrivateValkey(options.home / "valkey", log=logs / "valkey.log")
            foundation, url = parts.enter_context(server).running, server.url
        supervisor = Supervisor(
            _children(options, url=url, checkout=checkout),
            logs=logs,
            tell=tell,
            foundation=foundation,
            patience=options.patience,
        )
        parts.enter_context(supervisor)
        announce(announcement, url)
        yield Stack(url=url, logs=logs, supervisor=supervisor)


def find_checkout() -> Path:
    """Where the worker's code lies: here, or beside this package.

    Raises:
        NoCheckout: it is in neither place; the wheel holds the client only.
    """
    for place in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (place / "worker" / "app.py").is_file() and (place / "beat_schedule").is_dir():
            return place
    raise NoCheckout("the worker is not here: run from a checkout of Clipyard")


def node_names(devices: Sequence[str]) -> list[str]:
    """A stable name per device: the same device's worker finds its own queue again.

    "cuda:1" is gpu1, its second worker gpu1-1; others are numbered among their kind: "cpu" is cpu0.
    """
    names: list[str] = []
    for device in devices:
        kind, _, number = device.partition(":")
        kind = "gpu" if kind == "cuda" else kind
        name = kind + (number or str(sum(name.startswith(kind) for name in names)))
        before = sum(one.partition("-")[0] == name for one in names)
        names.append(f"{name}-{before}" if before else name)
    return names


def _children(options: Options, *, url: str, checkout: Path) -> list[Child]:
    schedule = private_directory(options.home / "beat").resolve() / "schedule"
    celery = (sys.executable, "-m", "celery", "-A")
    quiet = ("--without-gossip", "--without-mingle")
    worker = (*celery, "worker.app", "worker", "-P", "threads", "-l", "INFO", *quiet)
    beat = (*celery, "beat_schedule", "beat", "--schedule", str(schedule))
    here = {"CLIPYARD_REDIS_URL": url, **files()}
    workers = [
        Child(
            name=name,
            argv=(*worker, "-n", f"{name}@%h"),
            cwd=checkout,
            env={
                **options.env,
                **here,
                "CLIPYARD_DEVICE": device,
                "CLIPYARD_METRICS_PORT": str(_metrics_port(options, n)),
            },
            grace_s=_WORKER_GRACE_S,
            ready=lambda said: " ready." in said,
        )
        for n, (name, device) in enumerate(
            zip(node_names(options.devices), options.devices, strict=True)
        )
    ]
    others = (Extra(name="beat", argv=beat, address=""), *options.extras)
    return [*workers, *(replace(one, cwd=checkout, env={**one.env, **here}) for one in others)]


def _metrics_port(options: Options, worker: int) -> int:
    return options.metrics_port and options.metrics_port + worker


def _listening(stack: Stack, options: Options) -> Table:
    # An address or a path that is cut is none.
    table = Table("what", Column("where", overflow="fold"), title="Clipyard")
    table.add_row("redis", masked(stack.url))
    names = node_names(options.devices)
    for n, (name, device) in enumerate(zip(names, options.devices, strict=True)):
        table.add_row(f"worker {name}", device)
        if port := _metrics_port(options, n):
            table.add_row("  metrics", f"http://{netloc(options.metrics_host, port)}/metrics")
    for extra in options.extras:
        table.add_row(extra.name, extra.address)
    table.add_row("logs", str(stack.logs))
    return table


class _Terminated(SystemExit):
    """A signal asks the process to end; raised so that every `with` block gets its turn."""


@contextmanager
def _unwinding_on(*signals: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever owns it decides
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # of a terminal that closes, the kernel and the shell tell
            signal.signal(number, signal.SIG_IGN)
        raise _Terminated(128 + number)

    # One that is ignored stays so: that is how nohup works.
    before = {one: signal.getsignal(one) for one in signals}
    before = {one: handler for one, handler in before.items() if handler is not signal.SIG_IGN}
    for one in before:
        signal.signal(one, unwind)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
