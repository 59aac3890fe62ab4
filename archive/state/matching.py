"""Pairs the variables of a model with those of a version, in order.

Variables are paired by order, shape, dtype and the last part of their name. The
names of layers may differ. They count up with every layer, they may begin with the
model's name, and users change them. `restore` warns of such a pair. It refuses the
pair only if the model has the version's name at another place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from .variable_index import VariableInfo

# Backends count in integers of different widths. Steps have 64 or 32 bits, seeds may lack a sign.
_INTEGER = re.compile(r"u?int\d+")

# The number that Keras adds to a layer's name if the name was used before, in a variable's path.
_COUNT = re.compile(r"_\d+(?=[/_]|$)")


@dataclass
class Match:
    """The result of a comparison.

    Attributes:
        pairs: Each variable with the variable of the version that matches it.
        problems: All differences that prevent a restore.
        renamed: Names in the version, with the names in the model.
    """

    pairs: list[tuple[Any, VariableInfo]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def joined(self, other: Match) -> Match:
        """Return the result of both comparisons."""
        return Match(
            [*self.pairs, *other.pairs],
            [*self.problems, *other.problems],
            self.renamed | other.renamed,
        )


def in_places(
    theirs: Sequence[VariableInfo], their_places: Sequence[str], our_places: Sequence[str]
) -> Sequence[VariableInfo]:
    """Return the variables of a version in the order of the model's variables.

    The order differs if, for example, two lines of a constructor were exchanged since the
    export. If the version and the model have different addresses, the order is kept.

    Args:
        theirs: The variables in the version.
        their_places: The addresses of `theirs`, in the same order.
        our_places: The addresses of the model's variables, in the order of the model.
    """
    at = dict(zip(their_places, theirs, strict=False))
    if len(at) < len(theirs) or sorted(at) != sorted(our_places):
        return theirs
    return [at[place] for place in our_places]


def trained_by(
    theirs: Sequence[VariableInfo], model: Sequence[VariableInfo], variables: Sequence[Any]
) -> list[Any]:
    """Return the variables of a model for which the optimizer of a version had state.

    Args:
        theirs: The optimizer's variables in the version.
        model: The model's variables in the version.
        variables: The variables of the model, in the same order.
    """
    # An optimizer names its variables only by path, and several layers may share a path.
    paths = {model[place].path for _, place, *_ in _roles(theirs, model) if place is not None}
    return [variable for variable, info in zip(variables, model, strict=True) if info.path in paths]


def match_variables(
    variables: Sequence[Any], ours: Sequence[VariableInfo], theirs: Sequence[VariableInfo]
) -> Match:
    """Pair the variables of a model with those of a version.

    Args:
        variables: The model's variables.
        ours: The descriptions of the model's variables.
        theirs: The descriptions of the version's variables.
    """
    match = Match(list(zip(variables, theirs, strict=False)))
    others = [pair for pair in zip(ours, theirs, strict=False) if _differ(*pair)]
    elsewhere = {_uncounted(a.path) for a, _ in others}
    for place, (a, b) in enumerate(zip_longest(ours, theirs)):
        if (
            a is None
            or b is None
            or _kind(a) != _kind(b)
            or (_differ(a, b) and _uncounted(b.path) in elsewhere)
        ):
            match.problems.append(_difference("model", place, a, b))
        elif _differ(a, b):
            match.renamed[_parent(b.path)] = _parent(a.path)
    return match


def match_by_path(
    variables: Sequence[Any],
    ours: Sequence[VariableInfo],
    theirs: Sequence[VariableInfo],
    weights: Sequence[Any],
) -> Match:
    """Pair the variables of a model with those of a version that lists them in no order.

    If the paths differ only in the numbers that Keras adds to names, variables of one shape
    are paired in the order of these numbers.

    Args:
        variables: The model's variables.
        ours: The descriptions of the model's variables.
        theirs: The descriptions of the version's variables.
        weights: The variables in `variables` that need a pair.
    """
    needed = set(map(id, weights))
    by_path = {(info.path, *_kind(info)): info for info in theirs}
    found = [by_path.get((info.path, *_kind(info))) for info in ours]
    match = Match()
    if any(
        info is None and id(variable) in needed
        for variable, info in zip(variables, found, strict=True)
    ):
        found = _in_order_of_counts(ours, theirs)
        renamed = [(a, b) for a, b in zip(ours, found, strict=True) if b and a.path != b.path]
        match.renamed = {_parent(b.path): _parent(a.path) for a, b in renamed}
    for variable, a, b in zip(variables, ours, found, strict=True):
        if b is not None:
            match.pairs.append((variable, b))
        elif id(variable) in needed:
            match.problems.append(f"the version has no {_text(a)}")
    return match


def _in_order_of_counts(
    ours: Sequence[VariableInfo], theirs: Sequence[VariableInfo]
) -> list[VariableInfo | None]:
    """Return a variable of the version for each of ours, or None.

    The paths of the two may differ in the numbers that Keras adds to names.
    """
    found: dict[int, VariableInfo] = {}
    for group in {(_uncounted(info.path), *_kind(info)) for info in ours}:
        our_places, candidates = (
            [
                (_counts(info), place)
                for place, info in enumerate(infos)
                if (_uncounted(info.path), *_kind(info)) == group
            ]
            for infos in (ours, theirs)
        )
        if len(our_places) == len(candidates):
            pairs = zip(sorted(our_places), sorted(candidates), strict=True)
            found |= {place: theirs[other] for (_, place), (_, other) in pairs}
    return [found.get(place) for place in range(len(ours))]


def _counts(info: VariableInfo) -> list[int]:
    """Return the numbers that Keras added to the parts of a path, or 0 where it added none."""
    counts = [_COUNT.search(part) for part in info.path.split("/")]
    return [int(count[0][1:]) if count else 0 for count in counts]


def match_optimizer(
    variables: Sequence[Any],
    ours: tuple[Sequence[VariableInfo], Sequence[VariableInfo]],
    theirs: tuple[Sequence[VariableInfo], Sequence[VariableInfo]],
) -> Match:
    """Pair the variables of an optimizer with those of a version.

    Args:
        variables: The optimizer's variables.
        ours: The descriptions of the optimizer's variables, and those of the model's
            variables. The optimizer names its variables by the model's.
        theirs: The descriptions of the same two in the version.
    """
    our_roles, their_roles = _roles(*ours), _roles(*theirs)
    infos = dict(zip(their_roles, theirs[0], strict=True))
    if len(infos) == len(their_roles) and sorted(map(str, our_roles)) == sorted(
        map(str, their_roles)
    ):
        # They follow the order of the model's variables, which may have changed.
        their_roles = our_roles
        theirs = [infos[role] for role in our_roles], theirs[1]
    match = Match(list(zip(variables, theirs[0], strict=False)))
    roles = zip_longest(our_roles, their_roles)
    for place, ((a, b), (our_role, their_role)) in enumerate(
        zip(zip_longest(ours[0], theirs[0]), roles, strict=True)
    ):
        if our_role != their_role:
            match.problems.append(_difference("optimizer", place, a, b))
    return match


def _roles(infos: Sequence[VariableInfo], model: Sequence[VariableInfo]) -> list[tuple[Any, ...]]:
    """Return the purpose of each variable of an optimizer, and the model's variable it is for.

    Only a step count, the first variable of an optimizer, also has the optimizer's name
    in its role. In the paths of other variables, this name is not reliable: a variable
    that is made late has the name of an outer optimizer in front, or no name at all.
    """
    prefixes = {f"{info.path.replace('/', '_')}_": place for place, info in enumerate(model)}
    longest = sorted(prefixes, key=len, reverse=True)
    roles = []
    for info in infos:
        *owners, name = info.path.split("/")
        prefix = next((prefix for prefix in longest if name.startswith(prefix)), "")
        owner = _uncounted(owners[-1]) if owners and name == "iteration" else None
        role = _uncounted(name.removeprefix(prefix))
        roles.append((owner, prefixes.get(prefix), role, info.shape, _dtype(info)))
    return roles


def _differ(a: VariableInfo, b: VariableInfo) -> bool:
    return _uncounted(a.path) != _uncounted(b.path)


def _kind(info: VariableInfo) -> tuple[Any, ...]:
    return _uncounted(info.path.split("/")[-1]), info.shape, _dtype(info)


def _dtype(info: VariableInfo) -> str:
    return _INTEGER.sub("integer", info.dtype)


def _uncounted(path: str) -> str:
    return _COUNT.sub("", path)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or path


def _difference(owner: str, place: int, a: VariableInfo | None, b: VariableInfo | None) -> str:
    return f"{owner} variable {place}: the version has {_text(b)}, the model has {_text(a)}"


def _text(info: VariableInfo | None) -> str:
    return "nothing" if info is None else f"{info.path} {info.dtype}{list(info.shape)}"
