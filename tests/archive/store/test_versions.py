"""Version numbers: what is ours, and what a server may take for one."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.properties import untimed

from keras_export_callbacks import ExportError
from keras_export_callbacks.archive.store.versions import (
    MAX_VERSION,
    Numbers,
    is_marker,
    is_version,
    parse,
)

# Names of files, mostly of those that look like numbers.
NUMBERS = st.integers(min_value=0, max_value=2**70)
NAMES = st.one_of(
    NUMBERS.map(str),
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["", " ", "\n\t", "\v\f\r", "\xa0"]),
            st.sampled_from(["", "+", "-", "++", "+ "]),
            st.sampled_from(["", "0", "000", "0" * 200]),
            NUMBERS.map(str),
            st.sampled_from(["", " ", "\n", ".5", "e3", "_0", "abc", "٣"]),
        ),
    ),
    st.binary(max_size=20).map(os.fsdecode),
    st.text(max_size=20),
)


def taken_by_a_server(name: str) -> int | None:
    """What `absl::SimpleAtoi` reads from a name, which TensorFlow Serving uses."""
    digits = name.strip(" \t\n\v\f\r")
    if digits[:1] in ("+", "-"):
        digits = digits[1:]
    if not digits or not set(digits) <= set("0123456789"):
        return None
    number = -int(digits) if "-" in name else int(digits)
    return number if -(2**63) <= number < 2**63 else None


@untimed
@given(st.integers(min_value=1, max_value=MAX_VERSION))
def test_every_version_is_read_back_from_its_name(version: int) -> None:
    assert parse(str(version)) == version


@untimed
@given(NAMES)
@example(os.fsdecode(b"\xff"))
@example("٣")
def test_only_the_canonical_spelling_is_ours(name: str) -> None:
    version = parse(name)
    assert version is None or (str(version) == name and 1 <= version <= MAX_VERSION)


@pytest.mark.parametrize(
    "name",
    [
        "", "0", "-1", "007", "+5", " 8", "8 ", "8\n", "1_0", "1.0", "1e3", "0x9", "٣", "²",
        ".staging", str(MAX_VERSION + 1), "9" * 5000, os.fsdecode(b"\xff"), os.fsdecode(b"7\xff"),
    ],
)  # fmt: skip
def test_other_names_are_no_versions(name: str) -> None:
    assert parse(name) is None


@untimed
@given(st.lists(NAMES))
def test_the_next_version_is_one_above_all_that_a_server_takes(names: list[str]) -> None:
    taken = [number for name in names if (number := taken_by_a_server(name)) is not None]
    highest = max([0, *taken])
    if highest == MAX_VERSION:
        with pytest.raises(ExportError, match=f"{MAX_VERSION} is taken"):
            Numbers().next(names)
    else:
        assert Numbers().next(names) == highest + 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], 1),
        ([".staging", "notes.txt", "-9", "9.bak"], 1),
        (["1", "2", "10"], 11),
        (["3", "007"], 8),
        (["3", "+5"], 6),
        (["3", " 8"], 9),
        (["0" * 250 + "8"], 9),
        ([str(MAX_VERSION + 1), "9" * 5000], 1),
        ([str(MAX_VERSION - 1)], MAX_VERSION),
        ([os.fsdecode(b"\xff"), "4"], 5),
    ],
)
def test_next_version(names: list[str], expected: int) -> None:
    assert Numbers().next(names) == expected


@pytest.mark.parametrize("name", [str(MAX_VERSION), f"+{MAX_VERSION}"])
def test_there_is_no_version_above_the_highest_int64(name: str) -> None:
    with pytest.raises(ExportError, match=r"no version can be higher. Rename or remove"):
        Numbers().next(["3", name])


def test_what_a_writer_has_seen_it_never_gives_out_again() -> None:
    numbers = Numbers()
    assert numbers.next([]) == 1
    assert numbers.next([]) == 1  # It was given out, and not used.
    numbers.see(["1"])
    assert numbers.next([]) == 2
    assert numbers.next(["7"]) == 8
    assert numbers.next(["3", "007"]) == 8
    numbers.see(["3", "+9"])
    assert numbers.next([]) == 10


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], False),
        (["saved_model.pb", "variables"], True),
        (["assets.extra"], True),  # Of another program, or damaged.
        (["saved_model.pb", ".unfinished-1"], True),  # Copied last, so all is there.
        (["variables", ".unfinished-1"], False),
        (["saved_model.pb", ".removed-1"], False),
    ],
)
def test_what_is_in_a_directory_says_whether_it_is_a_version(
    names: list[str], expected: bool
) -> None:
    assert is_version(names) == expected


def test_markers_are_directly_in_a_version() -> None:
    assert is_marker(".unfinished-1")
    assert is_marker(".removed-1")
    assert not is_marker("saved_model.pb")
    assert not is_marker("assets.extra/.removed-1")
    assert not is_marker(".removed-1/file")
