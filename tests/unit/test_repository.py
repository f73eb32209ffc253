"""What a clone holds: no large files, no paths of anyone's machine, tables that match their records."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LARGEST_BYTES = 8 * 1024 * 1024
# Written in pieces, so that this file does not find itself.
FOLDERS = (
    "ho" + "me/[a-z]",
    "Us" + "ers/[A-Za-z]",
    "ro" + "ot/",
    "wo" + "rk/",
    "tm" + "p/[a-z]",
    "op" + "t/",
)
MACHINE_PATH = re.compile(rf"(?<![\w./~-])/(?:{'|'.join(FOLDERS)})")
INDEX_LINE = re.compile(r"^\s*(--?(extra-)?index-url|-i |--find-links|--hash|-f )", re.MULTILINE)


def tracked_files() -> list[Path]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    except OSError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def machine_paths_in(text: str) -> list[str]:
    return [match.group() for match in MACHINE_PATH.finditer(text)]


def test_no_tracked_file_is_larger_than_8_mib() -> None:
    large = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked_files()}

    assert {name: size for name, size in large.items() if size > LARGEST_BYTES} == {}


def test_no_tracked_text_names_a_path_of_a_machine() -> None:
    found = {}
    for path in tracked_files():
        if path.suffix in {".gz", ".png", ".safetensors"}:
            continue
        paths = machine_paths_in(path.read_text(encoding="utf-8"))
        if paths:
            found[path.relative_to(ROOT).as_posix()] = paths

    assert found == {}


@pytest.mark.parametrize("planted", ["/ho" + "me/anna/data", 'open("/tm' + 'p/x")', "cd /ro" + "ot/a"])
def test_a_planted_machine_path_is_found(planted: str) -> None:
    assert len(machine_paths_in(planted)) == 1


def test_relative_paths_and_addresses_are_not_machine_paths() -> None:
    assert machine_paths_in("runs/work/a ~/work/b https://example.org/home/x ./tmp/y") == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_hold_plain_pins_only(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]

    assert not INDEX_LINE.search(text)
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)] == []
    assert [pin for pin in pins if re.match(r"nvidia-|cuda-|triton", pin)] == []


def test_the_lock_pins_the_torch_that_the_design_names() -> None:
    assert "\ntorch==2.13.0\n" in (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_measured_tables_match_their_records() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_tables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
