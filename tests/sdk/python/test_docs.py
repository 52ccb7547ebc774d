"""The programs in docs/ run as they are, against the demo model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[3] / "docs"


def program(name: str) -> str:
    found = re.findall(r"^```python\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{name} has {len(found)} programs"
    return found[0]


def run(server, source: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    environment |= {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": server.key}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.docker
def test_outcomes(server) -> None:
    said = run(server, program("outcomes.md"))
    assert "evaluation 1: satisfied\n" in said and "\nresult: satisfied\n" in said, said
    file = said.split("--- primes.txt\n")[1].split()
    assert file[:4] == ["2", "3", "5", "7"] and file[-1] == "97" and len(file) == 25


@pytest.mark.docker
def test_multiagent(server) -> None:
    said = run(server, program("multiagent.md"))
    assert "started: coder\nstarted: editor\n" in said, said
    report = said.split("coder reports: ")[1]
    assert "97" in report and "editor reports: " in said and "\nidle: end_turn\n" in said, said
    assert "\ncoder: idle, " in said and "\n  called bash\n" in said, said
