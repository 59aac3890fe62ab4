"""Training that leaves its versions in a bucket, from the first step to the command line."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from support import object_stores
from support.models import assert_equal_state, classifier, data, state
from support.object_stores import Relay
from support.places import patched
from support.processes import run_together
from support.searches import build, random_search, search

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    publisher,
    restore,
)
from keras_export_callbacks.archive.errors import DamagedVersionError, StorageError
from keras_export_callbacks.archive.savedmodel import bundles
from keras_export_callbacks.archive.store.buckets import objects
from keras_export_callbacks.cli import main
from keras_export_callbacks.tuner import ExportTrials, publish_best


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> str:
    """A base directory in an empty bucket of S3."""
    server = object_stores.s3()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return f"{server.bucket()}/served/digits"


def fit(*callbacks: Any, model: Any = None, **options: Any) -> Any:
    model = classifier() if model is None else model
    model.fit(*data(), verbose=0, callbacks=[*callbacks], **options)
    return model


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def test_a_training_exports_every_few_batches_and_keeps_three(base: str) -> None:
    callback = ExportEveryN(base, 2, unit="batch", keep=3, log_dir="logs")
    model = fit(callback, epochs=3, batch_size=8)  # 12 batches.
    directory = ExportDirectory(base)
    assert [record.version for record in callback.exports] == [1, 2, 3, 4, 5, 6]
    assert directory.versions() == [4, 5, 6]
    assert [record.step for record in directory.records()] == [8, 10, 12]
    assert directory.records() == callback.exports[3:]
    assert [str(record.path) for record in callback.exports[3:]] == [
        f"{base}/{version}" for version in (4, 5, 6)
    ]
    assert [directory.verify(version) for version in (4, 5, 6)] == [[], [], []]
    assert [path.name for path in Path("logs/exports").iterdir()] == ["digits"]

    x, _ = data()
    revived = tf.saved_model.load(str(directory.download(6, "copy")))
    np.testing.assert_array_equal(revived.serve(x), model(x))

    fresh = classifier()
    restore(fresh, f"{base}/6")
    assert_equal_state(state(fresh), state(model))


def test_best_belongs_to_the_bucket(base: str) -> None:
    better = ExportOnImprove(base, "loss", log_dir=None)
    fit(better)
    held = ExportDirectory(base).versions()
    assert held == [1]
    same = ExportOnImprove(base, "loss", log_dir=None)
    fit(same)  # As bad as the first was at first.
    assert same.exports == []
    assert ExportDirectory(base).versions() == held
    best = ExportDirectory(base).best("loss", "min")
    assert best is not None
    assert best.version == 1


def test_a_frozen_part_is_sent_once(base: str) -> None:
    model = classifier()
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    server = object_stores.s3()
    callback = ExportEveryN(base, log_dir=None)
    x = data()[0]
    y = np.zeros((len(x), 3), "float32")
    copies: list[str] = []
    server.before = lambda environ: (
        copies.append(environ["PATH_INFO"])  # type: ignore[func-returns-value]
        if "/served/digits/1/" in environ.get("HTTP_X_AMZ_COPY_SOURCE", "")
        else None
    )
    try:
        model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    finally:
        server.reset()
    one, other = (record.files for record in callback.exports)
    shared = set(one.values()) & set(other.values())
    assert any(path.endswith("saved_model.pb") for path in one)
    assert len(shared) > 0
    assert len(copies) > 0
    assert ExportDirectory(base).verify(2) == []


def fit_frozen(*callbacks: Any, epochs: int = 3) -> None:
    """Train a model whose first layer is frozen."""
    frozen = keras.layers.Dense(8, trainable=False)
    model = keras.Sequential([keras.Input((4,)), frozen, keras.layers.Dense(3)])
    model.compile("adam", "mse")
    x, y = np.ones((8, 4)), np.ones((8, 3))
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=list(callbacks))


def test_a_frozen_part_is_written_once(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last version stays in a temporary directory, where the next one links its files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    written: list[set[str]] = []
    write_shard = bundles.write_shard

    def noted(prefix: Path, tensors: Any) -> Any:
        written.append(set(tensors))
        return write_shard(prefix, tensors)

    monkeypatch.setattr(bundles, "write_shard", noted)
    kept: list[int] = []

    def wait(epoch: int, logs: Any) -> None:
        callback.exports  # noqa: B018
        kept.append(len(list(temporary.glob("*/.staging/*/*"))))

    callback = ExportEveryN(base, log_dir=None)
    waiting = keras.callbacks.LambdaCallback(on_epoch_end=wait)
    fit_frozen(callback, waiting)
    assert [ExportDirectory(base).verify(version) for version in (1, 2, 3)] == [[], [], []]
    numbers = [keys for keys in written if not any("OBJECT_GRAPH" in key for key in keys)]
    first, rest = numbers[:2]
    assert first == {f"variables/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i in (0, 1)}
    assert numbers == [first, rest, rest, rest]
    assert kept == [1, 1, 1]
    assert list(temporary.glob("keras-export-*")) == []  # AutoGraph writes there, too.


def test_without_room_for_the_last_version_everything_is_written(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, linking = publisher.write, []

    def full(snapshot: Any, directory: Path, reuse: Any) -> Any:
        if reuse.has_variables():
            linking.append(directory)
            raise OSError(errno.ENOSPC, "No space left on device")
        assert not any(other.exists() for other in linking)
        return write(snapshot, directory, reuse)

    monkeypatch.setattr(publisher, "write", full)
    callback = ExportEveryN(base, log_dir=None)
    fit_frozen(callback, epochs=4)
    assert [record.version for record in callback.exports] == [1, 2, 3, 4]
    assert len(linking) == 1
    assert all(ExportDirectory(base).verify(version) == [] for version in (1, 2, 3, 4))


def test_what_cannot_be_restored_is_told_with_its_url(base: str) -> None:
    fit(ExportEveryN(base, log_dir=None))
    found, key = objects.bucket_at(base)
    with pytest.raises(ExportError, match=rf"There is no version at '{base}/2'. .* holds 1"):
        restore(classifier(), f"{base}/2")
    assert restore(classifier(), base).version == 1
    found.put(f"{key}/1/variables/variables.index", b"damaged")
    with pytest.raises(DamagedVersionError, match=rf"'{base}/1' cannot be downloaded: .*index"):
        restore(classifier(), f"{base}/1")


def test_the_command_line_works_there(base: str) -> None:
    fit(ExportEveryN(base, log_dir=None), epochs=3)
    assert [line.split()[0] for line in run("list", base).splitlines()[:-1]] == [
        "version", "1", "2", "3",
    ]  # fmt: skip
    assert f"{base}/2\n" in run("show", base, "2")
    assert run("verify", base).splitlines() == ["1: ok", "2: ok", "3: ok"]
    assert run("best", base, "--monitor", "loss", "--mode", "min") in ("1\n", "2\n", "3\n")
    assert run("rollback", base) == f"Published version 2 again as '{base}/4'. Withdrew 3.\n"
    assert run("publish", f"{base}/1", "elsewhere") == f"{Path('elsewhere/1').absolute()}\n"
    assert run("publish", "elsewhere/1", base) == f"{base}/5\n"
    assert run("prune", base, "--keep-latest", "2") == "Removed 1, 2, 3.\n"
    assert run("download", base, "5", "copy") == f"{Path('copy').absolute()}\n"
    assert ExportDirectory(base).record(5).files == ExportDirectory("elsewhere").record(1).files
    assert "base_path" in run("serving-config", base)
    assert "There is no directory" in run("list", f"{base}-other", code=2)
    assert "no version 9" in run("download", base, "9", "other", code=1)


def test_an_outage_is_reported_once_and_training_goes_on(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(object_stores.s3().port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
    steps = itertools.count()

    def on_epoch_begin(epoch: int, logs: Any) -> None:
        assert len(callback.exports) == min(epoch, 1)  # Waits until what was begun is done.
        if epoch == 1:
            relay.cut()
        if epoch == 2:
            relay.mend()
        next(steps)

    callback = ExportEveryN(base, log_dir=None, on_error="warn")
    cutting = keras.callbacks.LambdaCallback(on_epoch_begin=on_epoch_begin)
    with (
        patched(objects, RETRY_SECONDS=0.3),
        pytest.warns(UserWarning, match="nobody answers") as told,
    ):
        fit(cutting, callback, epochs=3)
    relay.cut()
    assert len([each for each in told if "nobody answers" in str(each.message)]) == 1
    assert next(steps) == 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_stores.s3().address)
    assert len(ExportDirectory(base).versions()) == 2


def test_an_outage_while_the_best_is_looked_up_is_reported_and_training_goes_on(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(object_stores.s3().port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")

    def on_epoch_end(epoch: int, logs: Any) -> None:
        relay.cut()

    callback = ExportOnImprove(base, "loss", log_dir=None, on_error="warn")
    cutting = keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
    with patched(objects, RETRY_SECONDS=0.3), pytest.warns(UserWarning, match="nobody answers"):
        model = fit(cutting, callback, epochs=2)
    assert model.optimizer.iterations == 2
    assert callback.exports == []


def test_a_wrong_bucket_is_told_before_the_first_step(base: str) -> None:
    for make in (ExportEveryN, lambda url: ExportOnImprove(url, "loss")):
        with pytest.raises(StorageError, match="There is no bucket 's3://nobucket'"):
            make("s3://nobucket/base")  # type: ignore[operator]
    with pytest.raises(StorageError, match="There is no bucket 's3://nobucket'"):
        Exporter("s3://nobucket/base", classifier(), log_dir=None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_search_and_its_winner(base: str) -> None:
    tuner = random_search(ExportTrials(build), max_trials=2)
    search(tuner, ExportOnImprove(f"{base}/trials", "val_accuracy", log_dir=None))
    record = publish_best(tuner, f"{base}/trials", f"{base}/winner")
    assert record.trial == tuner.oracle.get_best_trials(1)[0].trial_id
    assert ExportDirectory(f"{base}/winner").versions() == [1]
    assert ExportDirectory(f"{base}/winner").verify(1) == []
    assert publish_best(tuner, f"{base}/trials", f"{base}/winner") == record


TRAIN = """
import sys
from support.models import classifier, data
from keras_export_callbacks import ExportEveryN, ExportOnImprove
base, seed = sys.argv[1], int(sys.argv[2])
model = classifier()
print("ready", flush=True)
sys.stdin.readline()
callbacks = [
    ExportEveryN(f"{base}/every", 2, unit="batch", keep=3, log_dir=None),
    ExportOnImprove(f"{base}/best", "loss", log_dir=None),
]
model.fit(*data(seed=seed), epochs=4, batch_size=8, verbose=0, callbacks=callbacks)
for callback in callbacks:
    print(*[record.version for record in callback.exports])
"""


@pytest.mark.slow
def test_three_trainings_at_once(base: str) -> None:
    printed = run_together(TRAIN, *[[base, str(seed)] for seed in range(3)])
    every, best = zip(
        *[[[*map(int, line.split())] for line in each.splitlines()] for each in printed],
        strict=True,
    )
    assert sorted(itertools.chain(*every)) == list(range(1, 25))
    assert sorted(itertools.chain(*best)) == list(range(1, sum(map(len, best)) + 1))
    directory = ExportDirectory(f"{base}/every")
    assert directory.versions()[-1] == 24
    assert all(directory.verify(version) == [] for version in directory.versions())
    records = ExportDirectory(f"{base}/best").records()
    values = [record.value for record in records]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    assert len(set(values)) == len(values)


def test_extra_files_and_metadata_are_in_the_bucket(base: str) -> None:
    files = {"a/labels.txt": b"cat\ndog", "seen": lambda path: str(path.is_dir()).encode()}
    fit(ExportEveryN(base, extra_files=files, metadata={"fold": 3}, log_dir=None), epochs=2)
    directory = ExportDirectory(base)
    assert directory.record(2).metadata == {"fold": 3}
    assert list(directory.record(2).extra_files) == ["a/labels.txt", "seen"]
    assert directory.verify(2) == []
    copied = directory.download(2, "copy") / "assets.extra"
    assert (copied / "a/labels.txt").read_bytes() == b"cat\ndog"
    assert (copied / "seen").read_bytes() == b"True"
