"""The models of `keras.applications` and keras-hub: fitted, compared, loaded and restored.

They take minutes; `make zoo` installs keras-hub and runs them all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import state

from keras_export_callbacks import (
    ExportArchive,
    Exporter,
    ExportOnImprove,
    restore,
    standard_endpoints,
)

# What Keras and keras-hub say of their own models.
pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
    pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state"),
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),
]

RANDOM = np.random.default_rng(0)

APPLICATIONS = [
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "DenseNet121",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "InceptionV3",
    "Xception",
    "VGG16",
    "ConvNeXtTiny",
]


def application(name: str) -> Any:
    size = (75, 75, 3) if name in ("InceptionV3", "Xception") else (32, 32, 3)
    build = getattr(keras.applications, name)
    base = build(weights=None, include_top=False, input_shape=size, pooling="avg")
    return keras.Sequential([base, keras.layers.Dense(3)])


def through_the_gate(build: Callable[[], Any], x: Any, **options: Any) -> None:
    """Fit, export with a comparison, load in Python, restore into another model."""
    keras.utils.set_random_seed(1)
    model = build()
    outputs = model(x)
    y = tf.nest.map_structure(lambda item: np.zeros(item.shape, "float32"), outputs)
    model.compile(keras.optimizers.Adam(1e-4), "mse", **options)
    callback = ExportOnImprove("base", "loss", mode="min", log_dir=None, sample_inputs=x)
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=[callback])
    record = callback.last_export
    assert record is not None
    assert record.parity is not None
    assert any(name.startswith("serve/") for name in record.parity.differences)
    served = tf.saved_model.load(str(record.path)).signatures["serve"]
    assert set(served.structured_outputs) == set(record.endpoints["serve"].outputs)
    other = build()
    other(x)
    other.compile(keras.optimizers.Adam(1e-4), "mse", **options)
    restore(other, record.path)
    for ours, theirs in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(name: str) -> None:
    shape = (2, 75, 75, 3) if name in ("InceptionV3", "Xception") else (2, 32, 32, 3)
    through_the_gate(lambda: application(name), RANDOM.random(shape, "float32"))


@pytest.fixture(scope="module")
def hub() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras_hub", reason="keras-hub is not installed")


TOKENS = RANDOM.integers(1, 20, (2, 6)).astype("int32")
PADDED = {"token_ids": TOKENS, "padding_mask": np.array([[1] * 6, [1, 1, 1, 1, 0, 0]], "int32")}
SEGMENTED = PADDED | {"segment_ids": np.zeros((2, 6), "int32")}
SMALL = {
    "vocabulary_size": 20,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
DECODER = {
    "vocabulary_size": 20, "num_layers": 2, "num_query_heads": 2, "num_key_value_heads": 1,
    "hidden_dim": 8, "intermediate_dim": 16,
}  # fmt: skip
IMAGES = RANDOM.random((2, 32, 32, 3), "float32")

BACKBONES: dict[str, tuple[dict[str, Any], Any]] = {
    "BertBackbone": (SMALL | {"max_sequence_length": 6}, SEGMENTED),
    "RobertaBackbone": (SMALL | {"max_sequence_length": 6}, PADDED),
    "DistilBertBackbone": (SMALL | {"max_sequence_length": 6}, PADDED),
    "ElectraBackbone": (
        {"vocab_size": 20, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "embedding_dim": 8,
         "intermediate_dim": 16, "max_sequence_length": 6},
        SEGMENTED,
    ),
    "AlbertBackbone": (
        SMALL | {"embedding_dim": 4, "max_sequence_length": 6}, SEGMENTED,
    ),
    "GPT2Backbone": (SMALL | {"max_sequence_length": 6}, PADDED),
    "GPTNeoXBackbone": (SMALL | {"hidden_dim": 32, "max_sequence_length": 6}, PADDED),
    "BloomBackbone": (SMALL, PADDED),
    "OPTBackbone": (SMALL | {"max_sequence_length": 6}, PADDED),
    "LlamaBackbone": (DECODER, PADDED),
    "MistralBackbone": (DECODER, PADDED),
    "GemmaBackbone": (DECODER | {"head_dim": 4}, PADDED),
    "T5Backbone": (
        SMALL,
        {f"encoder_{name}": value for name, value in PADDED.items()}
        | {f"decoder_{name}": value for name, value in PADDED.items()},
    ),
    "ViTBackbone": (
        {"image_shape": (32, 32, 3), "patch_size": 8, "num_layers": 2, "num_heads": 2,
         "hidden_dim": 8, "mlp_dim": 16},
        IMAGES,
    ),
    "ResNetBackbone": (
        {"input_conv_filters": [64], "input_conv_kernel_sizes": [3],
         "stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 1],
         "stackwise_num_strides": [1, 2], "block_type": "basic_block", "image_shape": (32, 32, 3)},
        IMAGES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(hub: Any, name: str) -> None:
    options, x = BACKBONES[name]
    through_the_gate(lambda: getattr(hub.models, name)(**options), x)


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertTextClassifier": ("BertBackbone", {"num_classes": 2}),
    "RobertaTextClassifier": ("RobertaBackbone", {"num_classes": 2}),
    "GPT2CausalLM": ("GPT2Backbone", {}),
    "LlamaCausalLM": ("LlamaBackbone", {}),
    "ViTImageClassifier": ("ViTBackbone", {"num_classes": 2}),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks(hub: Any, name: str) -> None:
    backbone, options = TASKS[name]
    settings, x = BACKBONES[backbone]

    def build() -> Any:
        made = getattr(hub.models, backbone)(**settings)
        return getattr(hub.models, name)(backbone=made, preprocessor=None, **options)

    through_the_gate(build, x, weighted_metrics=[])


def test_text_goes_in_through_a_tokenizer(hub: Any) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "fox"]
    tokenize = hub.models.BertTokenizer(vocabulary=words, sequence_length=6)
    bytes_ = hub.tokenizers.BytePairTokenizer(
        vocabulary={"a": 0, "b": 1, "ab": 2}, merges=["a b"], sequence_length=3, dtype="int32"
    )
    model = hub.models.BertBackbone(**BACKBONES["BertBackbone"][0])

    def endpoints(archive: ExportArchive, model: Any) -> None:
        standard_endpoints(archive, model)
        archive.add_endpoint("tokens", tokenize, [tf.TensorSpec((None,), tf.string)])
        archive.add_endpoint(
            "pairs", lambda text: bytes_(text), [tf.TensorSpec((None,), tf.string)]
        )

    text = np.array(["the quick fox", "ab"])
    with Exporter("base", model, endpoints=endpoints, sample_inputs=text, log_dir=None) as exporter:
        record = exporter.export().result()
    assert record.parity is not None
    assert record.parity.differences["tokens/output_0"] == 0.0
    assert "pairs" in record.parity.skipped  # It keeps what it has looked up.
