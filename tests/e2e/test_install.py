"""A wheel built from the tree works in an empty environment, from another directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE = """
import keras_export_callbacks as kec, numpy as np, keras, tensorflow as tf
from pathlib import Path
assert Path(kec.__file__).is_relative_to(Path("empty").resolve()), kec.__file__
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[kec.ExportEveryN("base")])
assert kec.ExportDirectory("base").verify(1) == []
artifact = tf.saved_model.load("base/1")
print(artifact.serve(tf.ones((1, 2))).shape)
"""


@pytest.mark.slow
def test_a_wheel_installs_into_an_empty_environment() -> None:
    # Where there are no links, as in a zip file, there is a text in the place of each.
    shutil.copytree(ROOT, "tree", symlinks=True, ignore=shutil.ignore_patterns(".*", "tests"))
    link = Path("tree/keras_export_callbacks/archive")
    target = os.readlink(link)
    link.unlink()
    link.write_text(target)
    # The wheel is built from the sdist, as for a release.
    subprocess.run([sys.executable, "-m", "build", "-q", "-o", ".", "tree"], check=True)
    (wheel,), (sdist,) = Path().glob("*.whl"), Path().glob("*.tar.gz")
    twine = [sys.executable, "-m", "twine", "check", "--strict", wheel, sdist]
    subprocess.run(twine, check=True, stdout=subprocess.DEVNULL)
    packed = {Path(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in packed if not name.endswith(".dist-info")} == {
        "keras_export_callbacks"
    }
    assert "keras_export_callbacks/py.typed" in zipfile.ZipFile(wheel).namelist()
    # TensorFlow is taken from here: installing it anew would only test TensorFlow.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "empty"], check=True)
    packages = subprocess.check_output(
        ["empty/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        text=True,
    ).strip()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, wheel],
        check=True,
    )
    here = next(path for path in sys.path if path.endswith("site-packages"))
    Path(packages, "others.pth").write_text(here)
    ran = subprocess.run(
        ["empty/bin/python", "-E", "-c", USE], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "(1, 1)\n"
