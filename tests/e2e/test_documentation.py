"""Every code block of the README and of docs/ runs as it stands, one after the other.

They run twice in one directory, as by someone who tries the same again.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.processes import run_python

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))

# In docs/recipes.md, each for a package of its own, which few have.
RECIPES = {"tf2onnx": "## LiteRT, ONNX", "mlflow": "## MLflow", "wandb": "## Weights & Biases"}


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# Both in one process, because importing TensorFlow takes as long as all the rest, and with
# one seed, so that the second run finds nothing better than the first.
TWICE = """
import sys
import keras
keras.utils.set_random_seed(0)
exec(sys.argv[1], {"__name__": "__main__"})
print(sys.argv[2], flush=True)
keras.utils.clear_session()
keras.utils.set_random_seed(0)
exec(sys.argv[1], {"__name__": "__main__"})
"""
AGAIN = "-------- again --------\n"


def run_twice(found: list[str]) -> tuple[str, str]:
    """What blocks print when they run, and when they run again."""
    first, _, again = run_python(TWICE, "\n".join(found), AGAIN.strip()).partition(AGAIN)
    return first, again


@pytest.mark.slow
def test_the_readme() -> None:
    found = blocks(README.read_text())
    assert len(found) >= 5
    first, again = run_twice(found)
    assert "served/classifier/" in first
    # Nothing was better than in the first run. The last block prints versions and a step.
    assert "served/classifier/" not in again
    assert re.search(r"^\[\d.*\] \d+$", again, re.MULTILINE)


@pytest.mark.slow
def test_pages() -> None:
    """After the README's first block, which makes a model, data and versions."""
    found = [
        block for page in PAGES if page.name != "recipes.md" for block in blocks(page.read_text())
    ]
    assert len(found) >= 3
    for printed in run_twice([blocks(README.read_text())[0], *found]):
        assert "['call_training', 'serve', 'serving_default']" in printed


@pytest.mark.slow
@pytest.mark.parametrize("package", RECIPES)
def test_recipes(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[recipes]'")
    page = (ROOT / "docs/recipes.md").read_text()
    (recipe,) = blocks(page.partition(RECIPES[package])[2].partition("\n## ")[0])
    # MLflow alone would use a database, which its small distribution cannot.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_twice([blocks(README.read_text())[0], recipe])
    if package == "mlflow":
        logged = {path.parent.name for path in Path("mlruns").rglob("exports/*/saved_model.pb")}
        assert logged == {path.name for path in Path("served/mlflow").iterdir()} - {".staging"}
        assert logged


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [README, ROOT / "CONTRIBUTING.md", *PAGES]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)


def test_tests_that_the_readme_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", README.read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
