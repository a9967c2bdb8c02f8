"""What worker processes of the tests find in the place of transformers, unless they need it.

open_clip imports it where it is installed, for text towers that no model of the tests' stacks has,
and every process would pay over a second for that.
"""

raise ImportError("left out by tests/conftest.py")
