from __future__ import annotations

import gzip
import hashlib
import math
import os

import pytest
import torch

from velodrome.data.sources import Splits, bigram_loss, load_text
from velodrome.data.sources.places import embedded_folder
from velodrome.errors import ArgumentError, DataError

SHA256 = "8061549557aebd2fd6e353d18d9197cb707029112bd52d4d8b174583a925848a"  # as the README beside the file says


@pytest.fixture
def write(tmp_path):
    def call(text, name="mine.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return call


def read(splits, ids):
    return ["".join(splits.class_names[i] for i in row) for row in ids.tolist()]


def test_windows_hold_each_character_once_and_targets_are_the_next_ones(write):
    said = []
    # 20 characters: 14 to train (one whole window of 4 after another: 3 x 4 + 1 <= 14), 6 to validate (1 window).
    splits = load_text(write("abcdefghijklmnabcdef"), window=4, train_fraction=0.7, say=said.append)
    assert read(splits, splits.train[0]) == ["abcd", "efgh", "ijkl"]
    assert read(splits, splits.train[1]) == ["bcde", "fghi", "jklm"]
    assert read(splits, splits.val[0]) == ["abcd"]
    assert read(splits, splits.val[1]) == ["bcde"]
    assert splits.class_names == tuple("abcdefghijklmn")
    assert splits.train[0].dtype == splits.train[1].dtype == torch.int64
    assert said == [splits.origin]
    assert said[0].endswith("mine.txt: 14 + 6 characters, 14 different ones; 3 + 1 windows of 4")
    assert splits.preprocessing == {"kind": "text", "vocabulary": list("abcdefghijklmn"), "window": 4}


def test_stride_makes_training_windows_overlap_and_validation_windows_not(write):
    splits = load_text(write("abcdefgh" + "abcdefgh" + "abcd"), window=4, stride=2, train_fraction=0.5, say=str)
    assert read(splits, splits.train[0]) == ["abcd", "cdef", "efgh"]  # starts 0, 2, 4; at 6 the tenth is the last
    assert read(splits, splits.val[0]) == ["cdef", "ghab"]
    splits.train[0][0, 2] = 0  # windows share no memory
    assert read(splits, splits.train[0])[1] == "cdef"


def test_window_that_ends_with_the_text_is_the_last_one(write):
    splits = load_text(write("abcde" * 2), window=4, train_fraction=0.5, say=str)
    assert read(splits, splits.train[1]) == read(splits, splits.val[1]) == ["bcde"]


def test_windows_line_ends_and_byte_order_mark_change_nothing(write):
    plain = load_text(write("über\nalles\n" * 4), window=4, say=str, train_fraction=0.5)
    dressed = load_text(write("\ufeff" + "über\r\nalles\r\n" * 4, "dos.txt"), window=4, say=str, train_fraction=0.5)
    assert torch.equal(plain.train[0], dressed.train[0])
    assert plain.class_names == dressed.class_names == tuple("\nabelrsü")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"mine\.txt is empty \(0 bytes\)"),
        (b"\xef\xbb\xbf", r"holds 0 characters, of which the training part gets 0"),
        (b"good \xff bad", r"is not UTF-8 text: byte 5 of 10 is 0xff\. Save it as UTF-8"),
        ("abcd", r"holds 4 characters, of which the training part gets 3\. Each part needs at least 5, a window of 4"),
        ("abcd" * 5, r"the validation part gets 2\. Each part needs at least 5.* smaller window or train_fraction"),
    ],
)
def test_text_that_cannot_be_used_is_refused_with_the_numbers(write, text, message):
    with pytest.raises(DataError, match=message):
        load_text(write(text), window=4, say=str)


def test_characters_that_only_the_validation_part_has_are_refused_or_numbered(write):
    path = write("abab" * 5 + "abéxé" * 4)  # 20 + 20 characters; é and x: 12 of the last 20, the first at 22
    message = r"12 of the 20 validation characters are of 2 kinds .* \('x', 'é'; the first is character 22\).*vocabulary=\"text\""
    with pytest.raises(DataError, match=message):
        load_text(path, window=4, train_fraction=0.5, say=str)
    splits = load_text(path, window=4, train_fraction=0.5, vocabulary="text", say=str)
    assert splits.class_names == ("a", "b", "x", "é")
    assert splits.train[0].max() == 1


def test_paths_that_are_no_text_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no\.txt does not exist\. Give the path .* or none for the embedded text"):
        load_text(tmp_path / "no.txt")
    with pytest.raises(DataError, match="is a folder. Give the path of a UTF-8 text file"):
        load_text(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_text(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no regular file"):
        load_text(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window=0 must be a positive number"),
        ({"stride": 0}, "stride=0 must be a positive number"),
        ({"window": 4, "stride": 6}, "so 2 characters after each window would never be seen. It must be at most 4"),
        ({"train_fraction": 1.0}, "between 0 and 1"),
        ({"vocabulary": "trian"}, 'Did you mean "train"'),
    ],
)
def test_argument_out_of_range_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        load_text(**arguments)


def test_embedded_text_is_the_published_one():
    raw = gzip.decompress((embedded_folder("text") / "persuasion.txt.gz").read_bytes())
    assert hashlib.sha256(raw).hexdigest() == SHA256
    assert SHA256 in (embedded_folder("text").parent / "README.md").read_text()
    splits = load_text(say=str)
    assert splits.origin.startswith("Persuasion, by Jane Austen (embedded): 420,168 + 46,686 characters, 75 different")
    # 420,167 / 128 = 3282.5, 46,685 / 128 = 364.7: the last character of a part is only ever a target.
    assert [len(part[0]) for part in (splits.train, splits.val)] == [3282, 364]
    assert "".join(splits.class_names[i] for i in splits.train[0][0, :10]) == "Persuasion"


def test_bigram_loss_by_hand():
    # Training pairs: ab, ba, ab, ba. With one added to each: p(b|a) = 3/4, p(a|b) = 3/4, p(a|a) = p(b|b) = 1/4.
    train = (torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1, 0], [1, 0]]))
    val = (torch.tensor([[0, 0]]), torch.tensor([[1, 0]]))  # ab, aa
    splits = Splits(train=train, val=val, origin="", class_names=("a", "b"))
    assert bigram_loss(splits) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)


def test_bigram_loss_of_characters_that_say_nothing_about_the_next_is_that_of_chance():
    ids = torch.randint(0, 8, (400, 101), generator=torch.Generator().manual_seed(0))
    part = (ids[:, :-1], ids[:, 1:])
    splits = Splits(train=part, val=part, origin="", class_names=tuple("abcdefgh"))
    assert bigram_loss(splits) == pytest.approx(math.log(8), abs=2e-3)
