"""Every kind of model that JAX can train, in every reader: how far from the live model.

``make readers`` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import keras
import pytest
import tensorflow as tf
from support.kinds import KINDS
from support.readers import BATCHES, OTHERS, READERS, Table, difference, named, printed

from keras_export_callbacks import Exporter

# LiteRT does not convert these. OpenVINO converts none.
UNREAD = {"LSTM", "GRU", "mixed_float16", "mixed_bfloat16", "int8"}

NEEDED = {name: package for name, (package, _) in OTHERS.items()}


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    with printed() as rows:
        yield rows


@pytest.mark.skipif(
    not all(map(find_spec, NEEDED.values())), reason="`make readers` installs the readers"
)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"TextVectorization", "StringLookup"}))
def test_readers(kind: str, table: Table) -> None:
    keras.utils.set_random_seed(1)
    model, sample = KINDS[kind].build()
    with Exporter("base", model, log_dir=None) as exporter:
        record = exporter.export().result()
    batches = [tf.nest.map_structure(lambda item: item[:n], sample) for n in BATCHES]  # noqa: B023
    live = [model(batch, training=False) for batch in batches]
    inputs = [named(batch, list(record.endpoints["serve"].inputs)) for batch in batches]
    with pytest.raises(Exception, match="XlaCallModule"):
        OTHERS["OpenVINO"][1](str(record.path), inputs)
    table[kind, "OpenVINO"] = "has no XlaCallModule"
    for reader, run in {**READERS, "LiteRT": OTHERS["LiteRT"][1]}.items():
        if reader == "LiteRT" and kind in UNREAD:
            with pytest.raises(Exception, match=r"error"):
                run(str(record.path), inputs)
            table[kind, reader] = "does not convert it"
            continue
        served = run(str(record.path), inputs)
        found = [difference(*pair) for pair in zip(live, served, strict=True)]
        table[kind, reader] = f"{found[0]:<11.3g}{found[1]:.3g}"
        assert max(found) <= max(KINDS[kind].rounding, 1e-6)
