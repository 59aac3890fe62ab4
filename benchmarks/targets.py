"""The ratios that this library should reach, from the results of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from plan import EPOCHS, FLOOR, MODELS, Result, ratio

Results = Mapping[str, Result]


@dataclass(frozen=True)
class Target:
    """A ratio, and its target.

    Attributes:
        what: String. The name of the ratio.
        at_least: Bool. Whether the ratio should be at least `bound`. If False, it should
            be at most `bound`.
        bound: Float. The target.
        value: Float. The measured ratio, or None.
    """

    what: str
    at_least: bool
    bound: float
    value: float | None

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def targets(results: Results) -> list[Target]:
    """Return all targets. The faster of the two ways to use Keras's archive counts."""

    def later(job: str, what: str) -> float | None:
        return results[job].later(what) if job in results else None

    def first(job: str, what: str) -> float | None:
        return results[job].first(what) if job in results else None

    ours, references = "mobilenet/ours", ("mobilenet/reference", "mobilenet/reference-again")
    floor, frozen, epochs = f"wide/{FLOOR}", "frozen/ours", f"{EPOCHS}/ours"
    return [
        Target(
            "stall of Keras's archive ÷ ours, MobileNetV2, from the second export on",
            True,
            1000,
            ratio(_least(later(job, "stall") for job in references), later(ours, "stall")),
        ),
        Target(
            "stall of Keras's archive ÷ ours, MobileNetV2, first export",
            True,
            2,
            ratio(_least(first(job, "stall") for job in references), first(ours, "stall")),
        ),
        Target(
            "time until servable ÷ writing and fsyncing the same bytes, wide dense net",
            False,
            1.3,
            ratio(later(floor, "ours"), later(floor, "servable")),
        ),
        Target(
            "bytes of model.export ÷ ours with `serve` only, MobileNetV2",
            True,
            1.8,
            ratio(
                later("mobilenet/model-export", "bytes"), later("mobilenet/ours-inference", "bytes")
            ),
        ),
        Target(
            "bytes newly written ÷ bytes of variables that changed, frozen base, graph files aside",
            False,
            1.2,
            ratio(later(frozen, "new_variable_bytes"), later(frozen, "changed_bytes")),
        ),
        *(
            Target(
                f"{name} of exports 41–50 ÷ exports 2–11, {MODELS[model]}",
                False,
                1.1,
                _of(results, f"{model}/ours", lambda result, what=what: result.growth(what)),
            )
            for name, what in (("stall", "stall"), ("resident memory", "rss"))
            for model in MODELS
        ),
        *(
            Target(
                f"{name} with an export ÷ without, MobileNetV2",
                False,
                1.02,
                ratio(later(epochs, f"{clock}with"), later(epochs, f"{clock}without")),
            )
            for name, clock in (
                ("epoch of 50 steps", ""),
                ("processor time of an epoch of 50 steps", "cpu_"),
            )
        ),
    ]


def _of(results: Results, job: str, value: Callable[[Result], float | None]) -> float | None:
    return value(results[job]) if job in results else None


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
