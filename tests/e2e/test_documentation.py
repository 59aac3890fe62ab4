"""Every code block of the README and of docs/ runs as it stands, one after the other.

They run twice in one directory, as by someone who tries the same again.
"""

from __future__ import annotations

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.processes import run_python

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
GUIDE = ROOT / "docs/guide.md"

# In docs/recipes.md, each for a package of its own, which few have.
RECIPES = {"tf2onnx": "## LiteRT, ONNX", "mlflow": "## MLflow", "wandb": "## Weights & Biases"}


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# All in one process, because importing TensorFlow takes as long as all the rest, and with one
# seed, so that the second run finds nothing better than the first. A page knows the names of the
# first one in the list, and not those of other pages.
TWICE = """
import json
import sys
import keras
first, *others = json.loads(sys.argv[1])
for heading in ("", sys.argv[2]):
    print(heading, flush=True)
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    names = {"__name__": "__main__"}
    exec(first, names)
    for other in others:
        exec(other, dict(names))
"""
AGAIN = "-------- again --------\n"


def run_twice(first: str, *others: str) -> tuple[str, str]:
    """What the code of pages prints when it runs, and when it runs again."""
    code = json.dumps([first, *others])
    printed, _, again = run_python(TWICE, code, AGAIN.strip()).partition(AGAIN)
    return printed, again


# What the reader of the README has: data, and a compiled model.
READER = """
import keras
from sklearn.datasets import load_iris
from sklearn.utils import shuffle

x, y = shuffle(*load_iris(return_X_y=True), random_state=0)
model = keras.Sequential(
    [
        keras.Input((4,)),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(3, activation="softmax"),
    ]
)
adam = keras.optimizers.Adam(0.01)
model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
"""

# What the reader sees at the end.
SERVED = """
newest = ExportDirectory(labels.base_dir).latest()
loaded = tf.saved_model.load(str(newest.path))
print(loaded.classify(x[:2].astype("float32"))["species"].numpy())
print(record)
"""


@pytest.mark.slow
def test_the_readme() -> None:
    text = README.read_text()
    assert text.count("\n") <= 150
    found = blocks(text)
    assert len(found) >= 3
    importing = "from keras_export_callbacks import ExportDirectory"
    first, again = run_twice("\n".join([READER, *found, importing, SERVED]))
    assert re.search(r"Epoch \d: exported version \d \(improved, val_accuracy=\S+\) to", first)
    # Nothing in the first fit was better than in the first run.
    assert not re.search(r"Epoch [1-5]: exported version", again)
    for printed in (first, again):
        assert re.search(r"^\[b'(setosa|versicolor|virginica)' b'", printed, re.MULTILINE)
        assert re.search(r"^ExportRecord\('.*/served/iris/\d+', 'improved'", printed, re.MULTILINE)


@pytest.mark.slow
def test_pages() -> None:
    """Every page after the first block of the guide, which makes a model, data and versions."""
    start, *guide = blocks(GUIDE.read_text())
    pages = [page for page in PAGES if page.name not in {"guide.md", "recipes.md"}]
    others = ["\n".join(blocks(page.read_text())) for page in pages]
    assert len(guide) >= 5
    assert len([other for other in others if other]) >= 3
    first, again = run_twice(start, "\n".join(guide), *others)
    assert "served/classifier/" in first
    # Nothing was better than in the first run.
    assert "served/classifier/" not in again
    for printed in (first, again):
        # The versions, and the step of the best one.
        assert re.search(r"^\[\d.*\] \d+$", printed, re.MULTILINE)
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
    run_twice(blocks(GUIDE.read_text())[0], recipe)
    if package == "mlflow":
        logged = {path.parent.name for path in Path("mlruns").rglob("exports/*/saved_model.pb")}
        assert logged == {path.name for path in Path("served/mlflow").iterdir()} - {".staging"}
        assert logged


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs both make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    spaced = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]", "-", heading) for heading in spaced} | set(
        re.findall(r"^::: ([\w.]+)", text, re.MULTILINE)
    )


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [README, *ROOT.glob("[A-Z]*.md"), ROOT / "archive/README.md", *PAGES]
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match("https?://|mailto:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = page.parent / name if name else page
            assert target.exists(), (page, link)
            assert not anchor or anchor in anchors(target), (page, link)


def test_tests_that_the_pages_name_are_there() -> None:
    guarantees = (ROOT / "docs/guarantees.md").read_text()
    assert len(re.findall(r"`(tests/[\w/]+\.py)`", guarantees)) > 10
    for page in [README, *PAGES]:
        named = re.findall(r"`(tests/[\w/]+\.(?:py|txt))`", page.read_text())
        assert [name for name in named if not (ROOT / name).exists()] == []


def public_names(module: Path) -> list[str]:
    listed = re.search(r"^__all__ = (\[.*?\])", module.read_text(), re.DOTALL | re.MULTILINE)
    assert listed, module
    return list(ast.literal_eval(listed[1]))


def test_the_reference_has_every_public_name() -> None:
    described = set(re.findall(r"^::: (.+)", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    public = {
        f"keras_export_callbacks.{module}.{name}".replace(".__init__", "")
        for module in ("__init__", "formats", "tuner")
        for name in public_names(ROOT / f"keras_export_callbacks/{module}.py")
    }
    assert described == public
