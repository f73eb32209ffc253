import re
from pathlib import Path

import pytest

from velodrome.data.sources import fetch, known_names, registry
from velodrome.errors import ArgumentError, DataError

PIMA = Path(__file__).parents[5] / "shared" / "data" / "diabetes" / "pima-indians-diabetes.csv"


@pytest.fixture
def pima():
    if not PIMA.is_file():
        pytest.skip("the Pima table is not at hand")
    return PIMA.read_text()


def test_known_names_are_those_that_fetch_takes(alone):
    assert known_names() == ["diabetes", "fashion-mnist", "mnist"]
    with pytest.raises(ArgumentError, match="data set 'diabets' is unknown. Did you mean \"diabetes\""):
        fetch("diabets")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.split("\n", 1)[1],
        lambda text: text.replace("\r\n", "\n").replace("\n", "\r\n"),
        lambda text: text.replace(",0,", ",0.0,"),
        lambda text: "\ufeff" + text,
    ],
    ids=["as it is", "no header", "CRLF", "0.0", "BOM"],
)
def test_local_table_is_recognised_by_its_numbers(alone, pima, change):
    (alone / "data" / "diabetes").mkdir(parents=True)
    (alone / "data" / "diabetes" / "mine.csv").write_bytes(change(pima).encode())
    said = []
    assert fetch("diabetes", say=said.append) == Path("data/diabetes/mine.csv")
    assert said == ["Pima diabetes table: data/diabetes/mine.csv"]


def test_table_with_one_other_number_or_row_is_refused(alone, pima, tmp_path):
    lines = pima.splitlines()
    for changed in (
        [*lines[:5], lines[5].replace(",", "1,", 1), *lines[6:]],
        lines[:-1],
        [*lines[:1], lines[2], lines[1], *lines[3:]],
    ):
        (tmp_path / "pima.csv").write_text("\n".join(changed))
        with pytest.raises(DataError, match=r"numbers that are not the Pima diabetes table \(768 x 9, .*data.path="):
            fetch("diabetes", tmp_path, source="local", say=str)


def test_right_table_is_found_beside_another(alone, pima, tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.csv").write_text(pima)
    assert fetch("diabetes", tmp_path, say=str) == tmp_path / "b.csv"


def test_without_a_network_the_message_says_how_to_give_ones_own_table(alone):
    with pytest.raises(
        DataError, match=r"could not be downloaded.*Put the table into data/diabetes, or train on .*data.path=my.csv"
    ):
        fetch("diabetes", say=str)
    assert list(alone.iterdir()) == []


def test_forced_local_without_a_table_names_the_command(alone):
    with pytest.raises(
        DataError, match=re.escape("data/diabetes holds no .csv file. Put the Pima diabetes table there")
    ):
        fetch("diabetes", source="local", say=str)


@pytest.mark.parametrize("source", ["system", "embedded", "web"])
def test_source_that_does_not_have_the_table_is_refused(alone, source):
    with pytest.raises(
        ArgumentError, match=f'source=\'{source}\' does not have the diabetes table. Use "auto", "local"'
    ):
        fetch("diabetes", source=source, say=str)


def test_table_is_downloaded_checked_and_found_by_the_next_call(alone, website, pima, monkeypatch):
    folder, address = website
    (folder / "pima.csv").write_text(pima.split("\n", 1)[1])
    monkeypatch.setattr(registry, "_DIABETES_URLS", (f"{address}pima.csv",))
    path = fetch("diabetes", say=str)
    assert path == Path("data/diabetes/pima-indians-diabetes.csv")
    monkeypatch.setattr(registry, "_DIABETES_URLS", ())
    assert fetch("diabetes", say=str) == path
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "<html>captive portal</html>", ""])
def test_downloaded_file_that_is_not_the_table_is_thrown_away(alone, website, monkeypatch, content):
    folder, address = website
    (folder / "pima.csv").write_text(content)
    monkeypatch.setattr(registry, "_DIABETES_URLS", (f"{address}pima.csv",))
    with pytest.raises(DataError, match="could not be downloaded.*thrown away.*data.path=my.csv") as caught:
        fetch("diabetes", say=str)
    assert ".partial" not in str(caught.value)
    assert list(alone.iterdir()) == []
