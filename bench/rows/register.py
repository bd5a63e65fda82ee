"""Registering models, one call each and all in one."""

from __future__ import annotations

from functools import partial
from itertools import count

from bench.measure import Result, in_turns, run, timed
from bench.world import World, name


def measure(world: World) -> Result:
    """Each time into an empty cortexd."""
    result = Result("Registering 1, 100 and 1,000 models")
    for size, values in in_turns(
        world.runs, {size: partial(_all_at_once, world, size) for size in world.sizes}
    ).items():
        result.add(
            f"cortexd: {size} in one call, a model", "ms", values, f"cortexd: {world.sizes[0]} in one call, a model"
        )
    few, many = world.sizes[-2:]
    result.ratio(
        f"in one call, time per model: of {many} ÷ of {few}",
        f"cortexd: {many} in one call, a model", f"cortexd: {few} in one call, a model", 1.2,
    )  # fmt: skip
    _one_by_one(world, result)
    return result


def _all_at_once(world: World, size: int) -> float:
    world.reset()
    names = [name(i) for i in range(size)]
    return timed(lambda: world.register_all(names)) / size


def _one_by_one(world: World, result: Result) -> None:
    """Each call has systemd read all its units once; what that takes alone is measured beside it."""
    few, many = world.sizes[-2:]
    for there in (0, few, many):
        world.models(there)
        world.settle()
        ours, reload = (
            f"cortexd: one call each, beside {there} others",
            f"systemctl daemon-reload alone, beside {there}",
        )
        bare = f"python -c 'import argparse' ({there})"
        numbers = count(there)
        found = in_turns(
            2 * world.runs,
            {
                ours: lambda numbers=numbers: _register(world, next(numbers)),  # type: ignore[misc]
                reload: lambda: timed(lambda: run(["systemctl", "--user", "daemon-reload"])),
                bare: lambda: timed(lambda: run([world.venv / "python", "-c", "import argparse"])),
            },
        )
        for what, values in found.items():
            result.add(what, "ms", values, reload)
    beside = {
        size: (f"cortexd: one call each, beside {size} others", f"python -c 'import argparse' ({size})")
        for size in (few, many)
    }
    result.growth(
        f"in one call each, time for a model: beside {many} ÷ beside {few}, each in bare Pythons of its own phase",
        beside[many], beside[few], 1.2,
    )  # fmt: skip


def _register(world: World, number: int) -> float:
    return timed(lambda: world.register(name(number), number))
