"""Every Python block of the README runs, and so does every velodrome command that it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LONGEST_LISTING = 20


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return the velodrome commands of the console blocks, without prompt and comment."""
    lines = "".join(blocks("console")).splitlines()
    return [line.removeprefix("$ ").partition("#")[0].strip() for line in lines if line.startswith("$ velodrome")]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_block_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[number]

    exec(compile(code, f"README.md, Python block {number + 1}", "exec"), {"__name__": "__main__"})

    shown = re.search(r"([\d.]+)% of the validation digits", capsys.readouterr().out)
    if shown:
        assert float(shown[1]) > 90.0


def test_python_blocks_are_short() -> None:
    assert len(blocks("python")) == 2
    assert [len(block.splitlines()) <= LONGEST_LISTING for block in blocks("python")] == [True, True]


def test_velodrome_commands_run_one_after_the_other(tmp_path: Path) -> None:
    """Run in one folder, as a reader would, but on the embedded digits, so that nothing is downloaded."""
    assert len(commands()) == 12
    for command in commands():
        words = shlex.split(command)[1:]
        if words[0] in ("train", "eject", "tune"):
            words += ["data.source=embedded"]
        if words[0] == "tune":
            words += ["--minutes", "0.1"]
        runs = sorted((tmp_path / "runs").glob("*")) if (tmp_path / "runs").is_dir() else []
        words = [str(runs[0]) if word in ("runs/<run>", "runs/<other>") else word for word in words]

        done = subprocess.run(
            [sys.executable, "-m", "velodrome", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "predictions.csv").is_file()


def test_links_into_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    inside = [link for link in links if "://" not in link]

    assert "src/velodrome/loop/fit.py" in inside
    assert [link for link in inside if not (ROOT / link).exists()] == []
