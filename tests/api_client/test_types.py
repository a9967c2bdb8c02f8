"""What those are told who check their types."""

from pathlib import Path

from mypy import api as mypy

import api_client


def test_of_the_package_there_are_its_names_and_no_others(tmp_path):
    (program := tmp_path / "program.py").write_text("from api_client import Client, Cleint\n")
    ours = str(Path(api_client.__file__))
    alone = "--config-file=", "--follow-imports=skip", f"--cache-dir={tmp_path}"
    told, _, _ = mypy.run([*alone, ours, str(program)])
    assert 'Module "api_client" has no attribute "Cleint"' in told
    assert "Found 1 error" in told
