"""Take `tensorboard.png`: exports beside the curves of Keras's `TensorBoard` callback.

It needs Chromium or Chrome.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from keras_export_callbacks import ExportDirectory

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EPOCHS = 30
RUN = "exports/digits"


def main() -> None:
    """Train, and take a picture of the chart of the accuracy."""
    path = HERE / "tensorboard.png"
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, HERE / "train.py", str(EPOCHS)], cwd=work, check=True)
        *_, export, _ = ExportDirectory(Path(work, "served", "digits")).records()
        assert export.epoch is not None
        with _tensorboard(Path(work, "logs")) as url:
            _take(url, export.epoch, path)
    print(path)


def _take(url: str, step: int, path: Path) -> None:
    """Take a picture while the mouse points at the export at a step."""
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900}, device_scale_factor=2)
        page.goto(f"{url}/?smoothing=0&tagFilter=epoch_accuracy#timeseries")
        card = page.locator("scalar-card")
        expect(card).to_contain_text(RUN)
        # The table of the last step would be below the one that the mouse opens.
        page.get_by_text("Enable step selection and data table").click()
        card.get_by_label("Toggle full size mode").click()
        expect(card.locator("tb-data-table")).to_have_count(0)
        page.wait_for_timeout(1000)  # The card grows.
        chart = card.locator("line-chart").bounding_box()
        tooltip = page.locator(".cdk-overlay-pane .tooltip")
        assert chart is not None
        at_step = [re.compile(rf"{run}\s+\S+\s+{step}\s") for run in (RUN, "validation")]
        for x in range(int(chart["x"]), int(chart["x"] + chart["width"])):
            page.mouse.move(x, chart["y"] + chart["height"] / 2)
            text = " ".join(tooltip.all_inner_texts())
            if all(pattern.search(text) for pattern in at_step):
                break
        page.wait_for_timeout(500)
        card_box, tooltip_box = card.bounding_box(), tooltip.bounding_box()
        assert card_box is not None
        assert tooltip_box is not None
        height = tooltip_box["y"] + tooltip_box["height"] - card_box["y"] + 12
        page.screenshot(path=path, clip={**card_box, "height": height})
        browser.close()


@contextlib.contextmanager
def _tensorboard(logs: Path) -> Iterator[str]:
    """Run TensorBoard, and yield its address once it has read the events."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", port]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.DEVNULL) as server:
        try:
            while not _has_run(url):
                if server.poll() is not None:
                    raise RuntimeError("TensorBoard ended")
                time.sleep(0.5)
            yield url
        finally:
            server.terminate()


def _has_run(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/data/plugin/scalars/tags") as response:
            return RUN in json.load(response)
    except (urllib.error.URLError, ConnectionError):
        return False


if __name__ == "__main__":
    main()
