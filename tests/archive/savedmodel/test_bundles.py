"""An export costs what changed: bytes shared between versions, graphs traced once."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import data

from keras_export_callbacks import ExportArchive, ExportDirectory, ExportEveryN, standard_endpoints


def fine_tuned() -> tuple[Any, Any]:
    """A frozen base of 256 KB under a head of 12 KB in three tensors."""
    keras.utils.set_random_seed(3)
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(256), keras.layers.Dense(256)])
    base.trainable = False
    model = keras.Sequential([keras.Input((4,)), base, keras.layers.Dense(3)])
    compile_again(model)
    return model, base


def compile_again(model: Any) -> None:
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def inodes(path: Path) -> dict[int, int]:
    """Size by inode of a version's weights."""
    stats = [file.stat() for file in path.glob("variables/*.data-*")]
    return {stat.st_ino: stat.st_size for stat in stats}


def newly_written(one: Path, after: Path) -> int:
    new = inodes(after).keys() - inodes(one).keys()
    return sum(inodes(after)[inode] for inode in new)


def assert_serves(path: Path, model: Any) -> None:
    """What is at `path` computes what `model` does now."""
    x, _ = data()
    revived = tf.saved_model.load(str(path))
    np.testing.assert_array_equal(revived.serve(x), model(x))


def test_a_frozen_base_is_written_once_and_a_trained_head_each_time() -> None:
    model, _ = fine_tuned()
    callback = ExportEveryN("base", log_dir=None)
    model.fit(*data(), epochs=5, verbose=0, callbacks=[callback])
    paths = [record.path for record in callback.exports]
    changed = [*model.trainable_variables, *model.optimizer.variables]
    bytes_changed = sum(np.asarray(variable.numpy()).nbytes for variable in changed)
    for one, after in itertools.pairwise(paths):
        assert newly_written(one, after) <= 1.2 * bytes_changed
    assert newly_written(paths[3], paths[4]) < callback.exports[4].bytes / 10


def test_sharing_goes_by_values_not_by_flags() -> None:
    model, base = fine_tuned()
    callback = ExportEveryN("base", log_dir=None)
    kernel = base.layers[1].kernel

    def disturb(epoch: int, logs: Any) -> None:
        if epoch == 3:
            value = kernel.numpy()
            value[-1, -1] += 1
            kernel.assign(value)

    hooks = [keras.callbacks.LambdaCallback(on_epoch_begin=disturb), callback]
    model.fit(*data(), epochs=5, verbose=0, callbacks=hooks)
    paths = [record.path for record in callback.exports]
    assert newly_written(paths[1], paths[2]) < 100_000 < newly_written(paths[2], paths[3])
    revived = tf.saved_model.load(str(paths[4]))
    assert any(np.array_equal(v.numpy(), kernel.numpy()) for v in revived.variables)


def test_every_version_is_complete_by_itself() -> None:
    model, _ = fine_tuned()
    callback = ExportEveryN("base", log_dir=None)
    model.fit(*data(), epochs=4, verbose=0, callbacks=[callback])
    shutil.move("base/4", "elsewhere")
    shutil.rmtree("base")
    assert_serves(Path("elsewhere"), model)


def test_versions_removed_or_damaged_in_between_are_not_linked_to() -> None:
    model, _ = fine_tuned()
    callback = ExportEveryN("base", log_dir=None)

    def interfere(epoch: int, logs: Any) -> None:
        if epoch == 2:
            callback._running.settle()
            shutil.rmtree("base/2")
            Path("base/2").mkdir()
        if epoch == 4:
            callback._running.settle()
            for file in Path("base/4").glob("variables/*.data-*"):
                content = bytearray(file.read_bytes())
                content[len(content) // 2] ^= 1
                file.write_bytes(content)

    hooks = [callback, keras.callbacks.LambdaCallback(on_epoch_begin=interfere)]
    model.fit(*data(), epochs=6, verbose=0, callbacks=hooks)
    directory = ExportDirectory("base")
    assert directory.versions() == [1, 3, 4, 5, 6]  # An empty directory is none.
    assert directory.verify(5) == directory.verify(6) == []
    assert directory.verify(4) != []
    assert [record.graph_reused for record in callback.exports] == [False, *[True] * 5]


def test_traced_again_exactly_when_it_must_be() -> None:
    traced: list[bool] = []

    def endpoints(archive: ExportArchive, model: Any) -> None:
        standard_endpoints(archive, model)
        archive.add_endpoint("counted", lambda x: traced.append(True) or model(x), model.inputs)

    model, base = fine_tuned()
    callback = ExportEveryN("base", log_dir=None, endpoints=endpoints)

    def fit() -> bool:
        """Whether exporting in another `fit` reused the graph."""
        model.fit(*data(), verbose=0, callbacks=[callback])
        return callback.exports[-1].graph_reused

    assert not fit()
    assert fit()
    assert len(traced) == 1
    base.trainable = True
    compile_again(model)
    assert not fit()
    assert len(traced) == 2
    compile_again(model)
    assert not fit()
    assert fit()
    assert len(traced) == 3
    revived = tf.saved_model.load(str(callback.exports[-1].path))
    assert len(revived.trainable_variables) == len(model.trainable_variables) == 6
    assert len(revived.optimizer_variables) == len(model.optimizer.variables)


def fit_anew() -> tuple[Any, Path]:
    """What another process does that starts from the same weights: model and version."""
    keras.backend.clear_session()
    model, _ = fine_tuned()
    callback = ExportEveryN("base", log_dir=None)
    model.fit(*data(), verbose=0, callbacks=[callback])
    return model, callback.exports[0].path


def test_another_run_shares_with_the_versions_it_finds() -> None:
    model, _ = fine_tuned()
    first = ExportEveryN("base", log_dir=None)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[first])
    model, path = fit_anew()
    assert newly_written(first.exports[-1].path, path) < first.exports[-1].bytes / 10
    assert ExportDirectory("base").verify(4) == []
    shutil.rmtree("base/3")
    assert_serves(path, model)


@pytest.mark.parametrize("name", ["variables/variables.data-*", "assets.extra/shards/*"])
def test_a_run_shares_nothing_with_a_damaged_version(name: str) -> None:
    model, _ = fine_tuned()
    first = ExportEveryN("base", log_dir=None)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[first])
    for file in Path("base/3").glob(name):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    model, path = fit_anew()
    assert not inodes(first.exports[-1].path).keys() & inodes(path).keys()
    assert ExportDirectory("base").verify(4) == []
    assert_serves(path, model)


def test_a_version_removed_while_it_is_linked_from_is_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = fine_tuned()
    callback = ExportEveryN("base", log_dir=None, background=False)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    link = os.link

    def remove_first(source: Any, target: Any, **options: Any) -> None:
        shutil.rmtree("base/3", ignore_errors=True)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", remove_first)
    model.fit(*data(), verbose=0, callbacks=[callback])
    assert ExportDirectory("base").versions() == [1, 2, 4]
    assert ExportDirectory("base").verify(4) == []
    assert_serves(Path("base/4"), model)
