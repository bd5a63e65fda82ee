"""llama.cpp from end to end: the real daemon, systemd and llama-server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cortexd.backends.llamacpp_variables import VARIABLES
from tests.backends.client import Client
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import systemctl


@pytest.fixture
def cortex(shared_daemon: Daemon) -> Iterator[Cortex]:
    """The command line on a daemon that all tests here share."""
    client = Cortex()
    yield client
    client.run("unregister", "--force", "*", check=False)


@pytest.fixture
def strays() -> Iterator[None]:
    """Every variable of llama-server's in the manager's environment; most of them would end it at once."""
    names = (*VARIABLES, "LLAMA_API_KEY")
    systemctl("set-environment", *(f"{name}=nonsense" for name in names))
    yield
    systemctl("unset-environment", *names)


def test_no_variable_of_the_managers_reaches_it(cortex: Cortex, strays: None) -> None:
    cortex.register_tiny("clean", "--memory", "1G")
    cortex.run("start", "clean")
    client = Client(cortex.out("url", "clean").strip())
    status, (models,) = client.ask("/v1/models")  # where a stray key would have said 401
    assert status == 200 and [model["id"] for model in models["data"]] == ["clean"]
    (properties,) = client.ask("/props")[1]
    assert properties["default_generation_settings"]["n_ctx"] == 256


def test_what_it_is_told_for_several_gpus_it_understands(cortex: Cortex) -> None:
    """There is no GPU here; that it takes these arguments can be seen all the same."""
    cortex.register_tiny("split", "--set", "gpus=0,1", "--tensor-parallel", "2", "--set", "Restart=no")
    cortex.run("start", "split")
    assert Client(cortex.out("url", "split").strip()).ask("/health")[0] == 200
