"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    """What an example prints."""
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_quickstart() -> None:
    printed = run("quickstart.py")
    accuracy = re.search(r"accuracy on 450 images that training never saw: ([\d.]+)%", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert "served prediction" in printed


@pytest.mark.slow
def test_own_endpoints() -> None:
    answers = run("own_endpoints.py").splitlines()[-3:]
    # The truth, then three guesses with their scores.
    found = [
        re.fullmatch(r" *(\w+): (\w+) [\d.]+, \w+ [\d.]+, \w+ [\d.]+", line) for line in answers
    ]
    assert sum(match[1] == match[2] for match in found if match) >= 2
    assert all(found)


@pytest.mark.slow
def test_custom_loop() -> None:
    by_exporter, by_callback = run("custom_loop.py").split("driven by hand:")
    assert re.findall(r"epoch (\d), step (\d+)", by_exporter) == [("3", "176"), ("4", "220")]
    accuracies = [float(text) for text in re.findall(r"'val_accuracy': ([\d.]+)", by_callback)]
    assert accuracies == sorted(set(accuracies))
    assert accuracies


@pytest.mark.slow
def test_multi_device() -> None:
    told = r"2 replicas; .* model's accuracy is ([\d.]+), the artifact's ([\d.]+)"
    said = re.search(told, run("multi_device.py"))
    assert said is not None
    assert float(said[1]) > 0.9
    assert abs(float(said[1]) - float(said[2])) < 0.02  # Statistics by replica, and their mean.


@pytest.mark.slow
def test_fine_tuning() -> None:
    printed = run("fine_tuning.py")
    sizes = re.findall(r"^(\d)        (\d+) kB +(\d+) kB$", printed, re.MULTILINE)
    assert [version for version, _, _ in sizes] == ["1", "2", "3", "4", "5"]
    assert sizes[0][1] == sizes[0][2]
    assert all(10 * int(new) < int(size) for _, size, new in sizes[1:])
    assert "of 5 to 9 are right" in printed


@pytest.mark.slow
def test_serving_directory() -> None:
    said = re.findall(r"version (\d) answers ([\d.]+)%", run("serving_directory.py"))
    assert [version for version, _ in said] == ["1", "2", "3"]
    good, bad, again = (float(accuracy) for _, accuracy in said)
    assert good == again > 80 > 40 > bad


@pytest.mark.slow
def test_resume() -> None:
    printed = run("resume.py")
    # What was exported of epoch 4 in the background may not have been published.
    assert re.search(r"going on from version [45], after epoch [34]\n", printed)
    assert printed.endswith("the weights are the same, bit for bit\n")


@pytest.mark.slow
def test_tuner_search() -> None:
    printed = run("tuner_search.py")
    assert len(re.findall(r"^trial \d: [\d.]+ at epoch \d", printed, re.MULTILINE)) == 4
    said, truth = re.findall(r"\[(\d(?:, \d)*)\]", printed)
    right = sum(a == b for a, b in zip(said.split(", "), truth.split(", "), strict=True))
    assert right >= 6
