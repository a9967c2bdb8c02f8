"""Torch's compiler stays out of a worker, and comes in for whoever does want it."""

import subprocess
import sys

PROGRAM = """
import sys
from worker.backends.base import Placement
from worker.backends.registry import Families
from worker.backends.uncompiled import uncompiled
from worker.catalogue import Entry

families = Families(Placement())
for name in ("open_clip", "timm"):
    families[name]
from torch import float32
from worker.backends.recipes import Recipe
Recipe.of(Entry("tiny", architecture="ViT-B-32")).build(float32)
assert "torch._dynamo" not in sys.modules

with uncompiled():
    import torch._dynamo.config
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.utils.is_compile_supported("cpu")
assert torch.compile(torch.sin, backend="eager")(torch.zeros(1)) == 0
"""


def test_the_compiler_is_there_for_those_who_want_it():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
