"""TensorBoard: the events of each export, read back by TensorBoard itself."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import pytest
from playwright.sync_api import expect, sync_playwright
from support.models import classifier, data
from support.processes import free_port
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    ExportRecord,
)
from keras_export_callbacks.tuner import ExportTrials

RUN = Path("logs/exports/base")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def events(tag: str, run: Path = RUN) -> list[tuple[int, Any]]:
    """Step and value of each event of a tag."""
    accumulator = EventAccumulator(str(run), {"tensors": 0})
    accumulator.Reload()
    found = [(e.step, make_ndarray(e.tensor_proto)) for e in accumulator.Tensors(tag)]
    return [(step, _text(value.item())) for step, value in found]


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def tags(run: Path = RUN) -> set[str]:
    accumulator = EventAccumulator(str(run), {"tensors": 0})
    accumulator.Reload()
    return set(accumulator.Tags()["tensors"])


def export(**options: Any) -> list[ExportRecord]:
    callback = ExportOnImprove("base", "val_loss", **options)
    classifier().fit(
        *data(), epochs=2, verbose=0, validation_data=data(seed=1), callbacks=[callback]
    )
    return callback.exports


def test_scalars_and_summary_at_the_training_step() -> None:
    records = export()
    assert tags() == {
        "export/version",
        "export/val_loss",
        "export/stall_seconds",
        "export/write_seconds",
        "export/size_bytes",
        "export/summary",
    }
    steps = [record.step for record in records]
    assert events("export/version") == [(step, i + 1) for i, step in enumerate(steps)]
    for tag, name in [("val_loss", "value"), ("size_bytes", "bytes"), ("stall_seconds",) * 2]:
        assert events(f"export/{tag}") == [
            (record.step, pytest.approx(getattr(record, name), rel=1e-6)) for record in records
        ]
    summary = events("export/summary")[0][1]
    value = f"{records[0].value:.6g}"
    assert summary.startswith(f"### Version 1: improved, val_loss={value}\n\n| ")
    assert "Earlier exports" not in summary
    assert f"| path | `{Path.cwd()}/base/1` |" in summary
    assert (
        "| endpoint `serve` | `inputs`: float32 (any, 4) → `output_0`: float32 (any, 3) |"
        in summary
    )
    assert f"| metric `val_loss` | {value} |" in summary
    later = events("export/summary")[1][1]
    before = later.partition("#### Earlier exports\n\n")[2].splitlines()
    assert before[0] == "| version | epoch | step | reason | training waited | size |"
    assert before[2].startswith(f"| 1 | 1 | {steps[0]} | improved, val_loss={value} | ")


@pytest.mark.parametrize("is_first", [True, False])
def test_exports_are_on_the_charts_of_keras_if_there_are_any(is_first: bool) -> None:
    callbacks = [ExportOnImprove("base", "val_loss"), keras.callbacks.TensorBoard("logs")]
    validation = data(seed=1)
    classifier().fit(
        *data(),
        epochs=2,
        verbose=0,
        validation_data=validation,
        callbacks=callbacks if is_first else callbacks[::-1],
    )
    assert events("epoch_loss") == [
        (record.epoch, pytest.approx(record.value)) for record in callbacks[0].exports
    ]


def test_no_log_dir_writes_no_events() -> None:
    assert len(export(log_dir=None)) > 0
    assert not Path("logs").exists()


def test_a_failed_export_leaves_no_success_events() -> None:
    callback = ExportEveryN("base")
    model = classifier()
    model.fit(*data(), verbose=0, callbacks=[callback])
    Path("base/1").rename("away")
    Path("base").rmdir()

    class BreakBaseDir(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types.
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            Path("base").touch()

    with pytest.raises(ExportError):
        model.fit(*data(), verbose=0, callbacks=[BreakBaseDir(), callback])
    assert [step for step, _ in events("export/version")] == [1]


def remove_events() -> None:
    for path in RUN.glob("events*"):
        path.unlink()


@pytest.mark.parametrize(
    "remove",
    [
        lambda: shutil.rmtree("logs"),
        lambda: shutil.rmtree(RUN),
        remove_events,
        lambda: Path("logs").rename("old"),
        lambda: next(RUN.glob("events*")).rename("old"),
    ],
    ids=["log_dir", "run", "events", "moved log_dir", "moved events"],
)
def test_events_go_on_when_they_are_removed_while_training(remove: Callable[[], object]) -> None:
    with Exporter("base", classifier()) as exporter:
        for step in (1, 2):
            exporter.export(step=step).result()
        exporter.wait()
        remove()
        for step in (3, 4):
            exporter.export(step=step).result()
        exporter.wait()
        assert events("export/version") == [(3, 3), (4, 4)]
        assert (RUN / "base_dir.txt").read_text() == str(Path("base").absolute())
    assert len(list(RUN.glob("events*"))) == 1


def test_events_that_cannot_be_written_any_more_are_told() -> None:
    with Exporter("base", classifier(), on_error="warn") as exporter:
        exporter.export(step=1).result()
        shutil.rmtree("logs")
        Path("logs").touch()
        assert exporter.export(step=2).result().version == 2
        with pytest.warns(UserWarning, match="was published, but a later step failed: .*logs"):
            exporter.wait()


@pytest.mark.slow
def test_a_real_tensorboard_shows_them() -> None:
    records = export()
    with tensorboard() as (server, url):
        plugin = f"{url}/data/plugin"
        shown = poll(server, f"{plugin}/scalars/tags")
        assert set(shown) == {"exports/base"}
        assert set(shown["exports/base"]) == tags() - {"export/summary"}
        points = poll(server, f"{plugin}/scalars/scalars?run=exports/base&tag=export/version")
        assert [point[1:] for point in points] == [
            [record.step, float(record.version)] for record in records
        ]
        texts = poll(server, f"{plugin}/text/text?run=exports/base&tag=export/summary")
        assert [text["step"] for text in texts] == [record.step for record in records]
        assert "<table>" in texts[0]["text"]


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # In Keras.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner")
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_what_people_see_in_a_browser() -> None:
    best, every = ExportOnImprove("served/best", "val_loss"), ExportEveryN("served/every", n=2)
    classifier().fit(
        *data(),
        epochs=4,
        verbose=0,
        validation_data=data(seed=1),
        callbacks=[best, every, keras.callbacks.TensorBoard("logs")],
    )
    newest = best.last_export
    assert newest is not None
    tuner = keras_tuner.RandomSearch(ExportTrials(trial), "val_loss", 2, directory="search")
    tuner.search(
        *data(),
        epochs=1,
        verbose=0,
        validation_data=data(seed=1),
        callbacks=[ExportOnImprove("trials", "val_loss")],
    )
    with tensorboard() as (server, url), sync_playwright() as playwright:
        poll(server, f"{url}/data/plugin/scalars/tags")
        expect.set_options(timeout=60_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 2500})
        page.goto(f"{url}/?smoothing=0&tagFilter=epoch_loss%7Cexport#timeseries")

        def card(tag: str) -> Any:
            return page.locator("scalar-card").filter(has=page.get_by_text(tag, exact=True))

        # The exported versions on the chart that Keras's callback makes.
        for run in ("exports/best", "validation"):
            expect(card("epoch_loss")).to_contain_text(run)
        for run, record in (("exports/best", newest), ("exports/every", every.exports[-1])):
            row = card("export/version").locator("tb-data-table-content-row", has_text=run)
            expect(row).to_contain_text(re.compile(rf"{run}\s*{record.version}\s*{record.step}"))
        for tag in ("val_loss", "stall_seconds", "write_seconds", "size_bytes"):
            expect(card(f"export/{tag}")).to_contain_text("exports/best")
        expect(page.locator(".scalars-smoothing input[type=number]")).to_have_value("0")

        page.goto(f"{url}/#text")
        page.reload()
        heading = f"Version {newest.version}: improved, val_loss={newest.value:.6g}"
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(page.get_by_role("heading", name="Version 2: every 2 epochs")).to_be_visible()
        expect(page.get_by_role("cell", name=str(newest.path), exact=True)).to_be_visible()

        page.goto(f"{url}/#hparams")
        page.reload()
        table = page.locator("tf-hparams-table-view")
        shown = ["rate", "export/val_loss", "export/version"]
        for index in range(2):
            record = ExportDirectory(f"trials/trial_{index}/execution_0").latest()
            assert record is not None
            assert record.value is not None
            shown += [f"trial_{index}/execution_0", f"{record.value:.5g}"]
        for text in shown:
            expect(table.get_by_text(text, exact=True).first).to_be_visible()
        browser.close()


def trial(hp: Any) -> Any:
    return classifier(keras.optimizers.Adam(hp.Choice("rate", [0.001, 0.1])))


@contextlib.contextmanager
def tensorboard() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A TensorBoard that shows `logs`, and its address."""
    port = str(free_port())
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "logs", "--port", port]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            yield server, f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def poll(server: subprocess.Popen[bytes], url: str) -> Any:
    """The JSON at `url`, once the server runs and has read the events."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "TensorBoard ended"
        try:
            with urllib.request.urlopen(url) as response:
                if content := json.load(response):
                    return content
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"Nothing at {url}")


def test_directories_of_one_name_have_runs_of_their_own() -> None:
    model = classifier()
    for base in ("one/best", "other/best", "best", "one/best"):
        model.fit(*data(), verbose=0, callbacks=[ExportEveryN(base)])
    runs = {"one/best": "best", "other/best": "other/best", "best": f"{Path.cwd().name}/best"}
    versions = {
        base: len(events("export/version", Path("logs/exports", run))) for base, run in runs.items()
    }
    assert versions == {"one/best": 2, "other/best": 1, "best": 1}
