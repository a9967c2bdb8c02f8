"""The registry: who is found by which name, and what a bad plug-in costs."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from api_client.wire.errors import BackendFailed, BadSettings, LoadFailed, OutOfMemory
from api_client.wire.messages import Kind, Priority
from worker.backends.base import About, Placement, PreparedText
from worker.backends.fake import Fake
from worker.backends.registry import Families
from worker.backends.simple import SimpleModel
from worker.catalogue import Entry
from worker.datapath.batcher import Batcher


class Lengths(SimpleModel):
    about = About(description="the length of a text", auto_start=True, priority=5)
    models = (Entry("lengths/one"), Entry("lengths/two"))
    dimension = 2

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([(1, len(text)) for text in texts], np.float32)


class Earlier(Lengths):
    about = About(auto_start=True, priority=1)
    models = (Entry("earlier/one"),)


class Needy(Lengths):
    about = About(packages=("no-such-package-at-all",))


HERE = f"lengths={__name__}:Lengths"
CLASS = """from worker.backends.base import About
from worker.backends.simple import SimpleModel
from worker.catalogue import Entry
class Mine(SimpleModel):
    """
OF_ONE_MODEL = CLASS + "models = (Entry('x/one'))"
OF_A_NAME = CLASS + "models = ('x/one',)"
OF_TWO_EDGES = CLASS + "models = (Entry('x/one', input_size=(224, 224)),)"
OF_LETTERS = CLASS + "about = About(packages=('numpy'))"
OF_A_RANK = CLASS + "about = About(priority='high', auto_start=True)"
SAYS_A_WORD = """class Mine:
    about = 'mine'
    def __init__(self, placement): pass
    """


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Lengths.__module__])


def module(folder: Path, name: str, source: str) -> str:
    (folder / f"{name}.py").write_text(source)
    return f"{name}={name}:Mine"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_plug_in_serves_by_its_dotted_name():
    families = Families(Placement(), [HERE])
    (one, _) = families.discover()
    assert (one.backend, one.kinds) == ("lengths", (Kind.TEXT,))
    model = families.load(one)
    assert model.run(Kind.TEXT, [model.prepare_text("four")]).tolist() == [[1, 4]]


def test_what_the_setting_does_not_name_is_not_to_be_had():
    with pytest.raises(BackendFailed, match=r"no model family 'lengths'; there are open_clip"):
        Families(Placement())["lengths"]


@pytest.mark.parametrize("name", ["fake", "fake=x:Y"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(BadSettings, match="there is a model family 'fake' already"):
        Families(Placement(), [name])
    with pytest.raises(BadSettings, match="unregister it first"):
        Families(Placement()).register("fake", Fake)


def test_a_plug_in_that_is_not_installed_is_named_at_the_start():
    with pytest.raises(BadSettings, match="no plug-in 'nonesuch' is installed"):
        Families(Placement(), ["nonesuch"])


@pytest.mark.parametrize("named", ["mine=", "mine=module", "mine=module:", "mine=:Class"])
def test_a_class_is_allowed_by_its_whole_name(named):
    with pytest.raises(BadSettings, match=f"'{named}' is not written as name=module:Class"):
        Families(Placement(), [named])


def test_a_family_is_registered_and_forgotten():
    families = Families(Placement())
    families.register("mine", Lengths)
    assert "mine" in [family.name for family in families.status()]
    assert families["mine"].check(Entry("x")) == 0
    families.unregister("mine")
    for step in (families.unregister, families.__getitem__):
        with pytest.raises(BackendFailed, match="no model family 'mine'"):
            step("mine")


def test_status_tells_who_is_ready_and_imports_nobody():
    families = Families(Placement(), [HERE])
    assert {family.state for family in families.status()} == {"not imported"}
    families.discover()
    found = {family.name: family for family in families.status()}
    assert (found["lengths"].state, found["lengths"].origin) == ("ready", HERE)
    assert found["lengths"].about.description == "the length of a text"
    assert (found["timm"].state, found["timm"].origin) == ("not imported", "built in")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise RuntimeError('on strike')", "broken.*RuntimeError.*on strike"),
        ("raise SystemExit(3)", "broken.*SystemExit"),
        ("import torhc", "broken.*needs torhc, which is not installed and in no folder of PY"),
        ("Mine = 3", "broken.*is no class"),
        ("", "broken.*has no attribute 'Mine'"),
        ("def Mine(placement): raise ValueError('no')", "broken.*cannot be made.*no"),
        (OF_ONE_MODEL, r"broken.*models is Entry\(.*; make it a tuple of Entry"),
        (OF_A_NAME, r"broken.*models is \('x/one',\); make it a tuple of Entry"),
        (OF_TWO_EDGES, "broken.*its model x/one: input_size: Input should be a valid integer"),
        (OF_LETTERS, "broken.*packages is 'numpy'; make it a tuple"),
        (OF_A_RANK, "broken.*priority is 'high'; make it a number"),
        (SAYS_A_WORD, "broken.*about is 'mine'; make it an About"),
    ],
)
def test_a_plug_in_that_breaks_costs_its_own_requests_only(folder, source, sentence):
    name = f"broken_{abs(hash(source))}"
    families = Families(Placement(), [module(folder, name, source), HERE])
    assert [entry.backend for entry in families.discover()] == ["lengths", "lengths"]
    for ask in (families.check, families.load):
        with pytest.raises(BackendFailed, match=sentence):
            ask(Entry("x/y", backend=name))
    with pytest.raises(BackendFailed, match=sentence):
        families.describe(f"{name}/whatever")
    assert name in families.trouble()
    assert {f.name for f in families.status() if f.state == "failed"} == {name}


class Confused(Lengths):
    @classmethod
    def describe(cls, model_id):
        raise KeyError(model_id)

    def check(self):
        raise ZeroDivisionError

    def load(self):
        raise self.entry.options.get("error", OSError("no tape"))


def test_whatever_else_a_plug_in_raises_is_one_sentence_with_its_name():
    families, entry = Families(Placement()), Entry("odd/one", backend="odd")
    families.register("odd", Confused)
    for ask, sentence in (
        (lambda: families.describe("odd/one"), r"odd: describe raised KeyError\('odd/one'\)"),
        (lambda: families.check(entry), r"odd: check of odd/one raised ZeroDivisionError\(\)"),
        (lambda: families.load(entry), r"odd: load of odd/one raised OSError\('no tape'\)"),
    ):
        with pytest.raises(BackendFailed, match=sentence):
            ask()


def test_an_entry_that_a_plug_in_wrote_with_other_types_is_as_one_of_a_file():
    class Loose(Lengths):
        models = (Entry("loose/one", aliases=["one"], checkpoint="/a/b", memory_gb="2"),)

        @classmethod
        def describe(cls, model_id):
            return replace(cls.models[0], id=model_id)

    families = Families(Placement())
    families.register("loose", Loose)
    for entry in (*families.discover(), families.describe("loose/two")):
        told = entry.aliases, entry.checkpoint, entry.memory_bytes
        assert told == (("one",), Path("/a/b"), 2e9)


def test_a_check_that_answers_no_number_is_one_sentence(monkeypatch):
    families = Families(Placement())
    families.register("odd", Lengths)
    monkeypatch.setattr(Lengths, "check", lambda model: None)
    with pytest.raises(BackendFailed, match=r"odd: check of odd/one raised TypeError\(.*NoneType"):
        families.check(Entry("odd/one", backend="odd"))


@pytest.mark.parametrize("said", [{"length": None}, {"truncated": np.array([True, False])}])
def test_what_is_said_of_a_text_costs_it_alone_where_it_cannot_be_compared(said):
    with pytest.raises(TypeError, match=r"^truncated has to be a bool, and length a number$"):
        PreparedText("a cat", **said)


def test_a_check_that_runs_out_of_memory_is_no_internal_error(monkeypatch):
    def check(model):
        raise MemoryError("2 GB of 1")

    families = Families(Placement())
    families.register("odd", Lengths)
    monkeypatch.setattr(Lengths, "check", check)
    with pytest.raises(OutOfMemory, match=r"^odd/one does not fit: 2 GB of 1$"):
        families.check(Entry("odd/one", backend="odd"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        LoadFailed("half of it is missing"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_what_others_act_on_comes_as_a_plug_in_raised_it(error):
    families = Families(Placement())
    families.register("odd", Confused)
    with pytest.raises(type(error)) as caught:
        families.load(Entry("odd/one", backend="odd", options={"error": error}))
    assert caught.value is error


def test_a_plug_in_that_hangs_at_import_holds_nobody_up(folder, monkeypatch):
    hanging = module(folder, "hangs", "import builtins; builtins.clipyard_test_gate.wait()")
    gate = threading.Event()
    monkeypatch.setattr("builtins.clipyard_test_gate", gate, raising=False)
    families = Families(Placement(), [hanging, HERE], import_within_s=1.0)
    assert len(families.discover()) == 2
    assert "the model family hangs hangs: its import took over 1 s" in families.trouble()
    gate.set()


class Narrow(Lengths):
    def embed_texts(self, texts):
        return super().embed_texts(texts)[:, :1]


class Nan(Lengths):
    def embed_texts(self, texts):
        return super().embed_texts(texts) * np.nan


class Ragged(Lengths):
    def embed_texts(self, texts):
        return [[1], [2, 3]]


class Raises(Lengths):
    def embed_texts(self, texts):
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", [Narrow, Nan, Ragged, Raises])
def test_a_plug_in_that_answers_wrongly_is_named_and_the_next_one_is_served(kind):
    families = Families(Placement())
    families.register("bad", kind)
    families.register("good", Lengths)
    batcher = Batcher(batch_size=4, decode_threads=1)

    def embed(name):
        entry = Entry(f"{name}/one", backend=name, kinds=(Kind.TEXT,))
        model = families.load(entry)
        return batcher.embed(
            model,
            Kind.TEXT,
            ["a", "bb"],
            model.prepare_text,
            model_id=entry.id,
            priority=Priority.BULK,
        ).vectors

    assert all("bad/one" in str(outcome) for outcome in embed("bad"))
    assert all(isinstance(outcome, np.ndarray) for outcome in embed("good"))
    batcher.close()


@pytest.mark.parametrize("rows", [0, 2.5, "8", None])
def test_a_plug_in_that_takes_no_number_of_rows_is_not_loaded(monkeypatch, rows):
    families = Families(Placement())
    families.register("odd", Lengths)
    monkeypatch.setattr(Lengths, "max_batch", rows)
    with pytest.raises(BackendFailed, match=rf"odd/one raised .*max_batch is {rows!r}; make it a"):
        families.load(Entry("odd/one", backend="odd"))


@pytest.mark.parametrize("family", ["built in", "plugged in"])
def test_vectors_of_another_length_than_the_entry_says_are_refused(family):
    families = Families(Placement(), [HERE])
    families.register("built in", Lengths)
    backend = "lengths" if family == "plugged in" else family
    entry = Entry("one", backend=backend, dimension=512, kinds=(Kind.TEXT,))
    with pytest.raises(LoadFailed, match="one has 2 dimensions, its entry says 512"):
        families.load(entry)
    assert families.load(replace(entry, dimension=2)).traits.dimension == 2


def test_a_package_that_a_family_declares_and_lacks_is_one_line():
    families = Families(Placement())
    families.register("needy", Needy)
    with pytest.raises(BackendFailed) as caught:
        families["needy"]
    assert str(caught.value) == (
        "the model family needy: it needs no-such-package-at-all, which is not installed: "
        "pip install no-such-package-at-all"
    )


def test_a_model_id_that_two_families_bring_is_the_first_ones():
    families = Families(Placement())
    families.register("first", Lengths)
    families.register("second", Lengths)
    assert {entry.backend for entry in families.discover()} == {"first"}
    assert "the family first has a model lengths/one too" in families.trouble()


def test_families_start_by_themselves_in_the_order_of_their_priority():
    families = Families(Placement())
    families.register("late", Lengths)
    families.register("early", Earlier)
    assert families.auto_started() == ()
    families.discover()
    assert families.auto_started() == ("earlier/one", "lengths/one", "lengths/two")


@pytest.mark.parametrize(
    ("family", "there_are"),
    [
        ("open_clip", "none"),
        ("ollama", "host, timeout_s, held_s"),
    ],
)
def test_an_option_that_a_family_does_not_have_is_refused(family, there_are):
    families = Families(Placement(offline=True))
    entry = Entry("x/y", backend=family, options={"prompt_name": "query", "host": "a"})
    for step in (families.check, families.load):
        with pytest.raises(BackendFailed, match=f"prompt_name for x/y; it has: {there_are}"):
            step(entry)
