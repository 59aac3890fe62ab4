"""The examples run as they stand, any number of times in one directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.processes import run_python

EXAMPLES = Path(__file__).parents[2] / "examples"


# Both runs in one process, because importing TensorFlow takes as long as most examples, and
# with one seed, so that the second finds nothing better than the first.
TWICE = """
import runpy, sys
import keras
keras.utils.set_random_seed(0)
runpy.run_path(sys.argv[1], run_name="__main__")
print(sys.argv[2], flush=True)
keras.utils.clear_session()
keras.utils.set_random_seed(0)
runpy.run_path(sys.argv[1], run_name="__main__")
"""
AGAIN = "-------- again --------\n"


def run_twice(name: str) -> tuple[str, str]:
    """What an example prints when it runs, and when it runs again."""
    first, _, again = run_python(TWICE, str(EXAMPLES / name), AGAIN.strip()).partition(AGAIN)
    return first, again


@pytest.mark.slow
def test_quickstart() -> None:
    for printed in run_twice("quickstart.py"):
        accuracy = re.search(r"accuracy on 450 validation images: ([\d.]+)%", printed)
        assert accuracy is not None
        assert float(accuracy[1]) > 90
        assert "served prediction" in printed


@pytest.mark.slow
@pytest.mark.zoo
def test_own_endpoints() -> None:
    for printed in run_twice("own_endpoints.py"):
        # The truth, then three guesses with their scores.
        found = [
            re.fullmatch(r" *(\w+): (\w+) [\d.]+, \w+ [\d.]+, \w+ [\d.]+", line)
            for line in printed.splitlines()[-3:]
        ]
        assert sum(match[1] == match[2] for match in found if match) >= 2
        assert all(found)


@pytest.mark.slow
def test_custom_loop() -> None:
    for printed in run_twice("custom_loop.py"):
        by_exporter, by_callback = printed.split("driven by hand:")
        assert re.findall(r"epoch (\d), step (\d+)", by_exporter) == [("3", "176"), ("4", "220")]
        accuracies = [float(text) for text in re.findall(r"'val_accuracy': ([\d.]+)", by_callback)]
        assert accuracies == sorted(set(accuracies))
        assert accuracies


@pytest.mark.slow
@pytest.mark.zoo
def test_multi_device() -> None:
    path = EXAMPLES / "multi_device.py"
    told = r"2 replicas; .* model's accuracy is ([\d.]+), the artifact's ([\d.]+)"
    printed = run_python(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')")
    said = re.search(told, printed)
    assert said is not None
    assert float(said[1]) > 0.9
    assert abs(float(said[1]) - float(said[2])) < 0.02  # Statistics by replica, and their mean.


@pytest.mark.slow
@pytest.mark.zoo
def test_fine_tuning() -> None:
    printed, again = run_twice("fine_tuning.py")
    sizes = re.findall(r"^(\d)        (\d+) kB +(\d+) kB$", printed, re.MULTILINE)
    assert [version for version, _, _ in sizes] == ["1", "2", "3", "4", "5"]
    assert sizes[0][1] == sizes[0][2]
    assert all(10 * int(new) < int(size) for _, size, new in sizes[1:])
    assert "served by version 5: " in printed
    assert "served by version 10: " in again


@pytest.mark.slow
@pytest.mark.zoo
def test_serving_directory() -> None:
    # The same training, started again, publishes nothing that is the newest version already.
    for printed, versions in zip(run_twice("serving_directory.py"), ("123", "345"), strict=True):
        said = re.findall(r"version (\d) answers ([\d.]+)%", printed)
        assert [version for version, _ in said] == list(versions)
        good, bad, again = (float(accuracy) for _, accuracy in said)
        assert good == again > 80 > 40 > bad


@pytest.mark.slow
def test_resume() -> None:
    for printed in run_twice("resume.py"):
        assert "going on from version 5, after epoch 4\n" in printed
        assert printed.endswith("the weights are the same, bit for bit\n")


@pytest.mark.slow
@pytest.mark.zoo
def test_tuner_search() -> None:
    for printed in run_twice("tuner_search.py"):
        assert len(re.findall(r"^trial \d: [\d.]+ at epoch \d", printed, re.MULTILINE)) == 4
        said, truth = re.findall(r"\[(\d(?:, \d)*)\]", printed)
        right = sum(a == b for a, b in zip(said.split(", "), truth.split(", "), strict=True))
        assert right >= 6


@pytest.mark.slow
@pytest.mark.zoo
def test_edge() -> None:
    for printed in run_twice("edge.py"):
        said = re.search(
            r"accuracy of the version: ([\d.]+)%, of digits.tflite: ([\d.]+)%", printed
        )
        assert said is not None
        assert float(said[1]) > 80
        assert abs(float(said[1]) - float(said[2])) < 3
        assert "'labels.txt': 49" in printed
        assert "image is a two, and should be a two" in printed
