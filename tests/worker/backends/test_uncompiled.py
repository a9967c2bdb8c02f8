"""Torch's compiler stays out of a worker, and comes in for whoever does want it."""

import subprocess
import sys
from importlib import import_module

from worker.backends import uncompiled

PROGRAM = """
import sys
from worker.backends.base import Placement
from worker.backends.registry import Families
from worker.catalogue import Entry

families = Families(Placement())
for name in ("open_clip", "timm"):
    families[name]
from torch import float32
from worker.backends.recipes import Recipe
for architecture in ("ViT-B-32", "ViT-B-16-SigLIP", "convnext_base"):
    Recipe.of(Entry("tiny", architecture=architecture)).build(float32)
assert "torch._dynamo" not in sys.modules
"""


def test_a_worker_builds_models_without_it():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


def test_who_asks_for_more_gets_the_compiler_itself(monkeypatch):
    """Another package in its place, as it takes seconds to import."""
    monkeypatch.setattr(uncompiled, "COMPILER", "wsgiref")
    monkeypatch.setattr(uncompiled, "UTILS", "wsgiref.util")
    for name in [name for name in sys.modules if name.partition(".")[0] == "wsgiref"]:
        monkeypatch.delitem(sys.modules, name)
    with uncompiled.uncompiled():
        stand_in = import_module("wsgiref")
        assert stand_in.disable(len, True, reason="none") is stand_in.disable()(len) is len
        assert not import_module("wsgiref.util").is_compile_supported("cpu")
        import_module("wsgiref.handlers")
        assert sys.modules["wsgiref"] is not stand_in
    assert import_module("wsgiref.util").FileWrapper
