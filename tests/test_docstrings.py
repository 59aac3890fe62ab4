"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import keras_export_callbacks

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(
        keras_export_callbacks.__path__, f"{keras_export_callbacks.__name__}."
    )
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner")
@pytest.mark.parametrize("name", MODULES)
def test_examples_in(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "jax":
            raise
        pytest.skip("JAX is not installed")
    results = doctest.testmod(module)
    assert results.failed == 0


def test_every_public_name_has_an_example() -> None:
    finder = doctest.DocTestFinder()
    policies = {"KeepBest", "ExportRecord"}  # Shown with KeepLatest and ExportDirectory.
    for name in set(keras_export_callbacks.__all__) - policies:
        examples = [
            test.examples for test in finder.find(getattr(keras_export_callbacks, name), name)
        ]
        assert any(examples), name
