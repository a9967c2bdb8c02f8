"""The version goes with the page about operations, and with what Kubernetes starts."""

import re
from pathlib import Path

from api_client.wire.version import VERSION

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_a_version_is_no_older_than_the_newest_row_under_upgrading():
    rows = re.findall(r"^\| (\d+)-(\d+)-(?:\d+ to )?(\d+) \|", PAGE, re.MULTILINE)
    newest = max(tuple(map(int, row)) for row in rows)
    assert tuple(map(int, VERSION.split("."))) >= newest


def test_kubernetes_asks_for_the_image_of_this_version():
    kustomization = (ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text()
    assert f'newTag: "{VERSION}"' in kustomization
