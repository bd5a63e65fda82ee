"""Registering models, one call each and all in one."""

from __future__ import annotations

from functools import partial

from bench.measure import Result, timed
from bench.world import World, name


def measure(world: World) -> Result:
    """Each time into an empty cortexd."""
    result = Result("Registering 1, 100 and 1,000 models")
    for size in world.sizes:
        values = []
        for _ in range(world.runs):
            world.reset()
            names = [name(i) for i in range(size)]
            values.append(timed(partial(world.register_all, names)) / size)
        result.add(
            f"cortexd: {size} in one call, a model", "ms", values, f"cortexd: {world.sizes[0]} in one call, a model"
        )
    few, many = world.sizes[-2:]
    result.ratio(
        f"in one call, time per model: of {many} ÷ of {few}",
        f"cortexd: {many} in one call, a model", f"cortexd: {few} in one call, a model", 1.2,
    )  # fmt: skip
    count = min(world.sizes[-2], 30)
    for there in (0, world.sizes[-1]):
        world.models(there)
        values = [timed(partial(world.register, name(i), i)) for i in range(there, there + count)]
        result.add(f"cortexd: one call each, beside {there} others", "ms", values)
    return result
