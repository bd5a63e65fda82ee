"""Every use-case in which a daemon may be killed: which state it needs, what is asked for, and which method that calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from cortexd.api.interfaces import FOLDER
from cortexd.names import BUS_NAME, JOB_INTERFACE, MANAGER_INTERFACE, MODEL_INTERFACE, ROOT_PATH
from tests.faults.picture import UNIT, VICTIM
from tests.faults.place import Place
from tests.support.wait import until

START = ("start", VICTIM)


def _registered(place: Place) -> None:
    place.do(*place.register())


def _running(place: Place) -> None:
    _registered(place)
    place.do(*START)


def _enabled(place: Place) -> None:
    _running(place)
    place.do("enable", VICTIM)
    _with_secret(place)


def _with_secret(place: Place) -> None:
    place.do("secret", "set", VICTIM, "HF_TOKEN", typed=b"canary")


def _secret(place: Place) -> None:
    _registered(place)
    _with_secret(place)


def _failed(place: Place) -> None:
    _running(place)
    place.crash()
    until(lambda: place.view.unit(UNIT)["ActiveState"] == "failed", "its failure")


def _failed_with_secret(place: Place) -> None:
    _failed(place)
    _with_secret(place)


def _loading(place: Place) -> None:
    _registered(place)
    place.hold(True)
    place.do(*START, "--no-block")
    until(lambda: place.view.unit(UNIT)["SubState"] == "start-post", "its loading")
    place.hold(False)


def _stubborn(place: Place) -> None:
    place.stubborn()
    _running(place)


def _edited(place: Place) -> None:
    _registered(place)
    place.edit_backend(2)


def _deleted(place: Place) -> None:
    _registered(place)
    place.delete_unit()


def _by_hand(place: Place) -> None:
    _registered(place)
    place.edit_unit()


def _nothing(place: Place) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """A use-case. `do`: the words of cortexctl, or for busctl; a function where they depend on the place."""

    member: str
    needs: Callable[[Place], None]
    do: tuple[str, ...] | Callable[[Place], tuple[str, ...]]
    typed: bytes = b""
    interface: str = MODEL_INTERFACE
    of_one_daemon: bool = False
    """What it needs is there as long as the daemon lives that has seen it come."""
    refused: str = ""
    """Which of systemd's methods is refused to it, once."""

    def words(self, place: Place) -> tuple[str, ...]:
        """The command."""
        return self.do if isinstance(self.do, tuple) else self.do(place)


def _plain(member: str) -> tuple[str, ...]:
    return ("busctl", BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, member, "s", VICTIM)


def _register_models(place: Place) -> tuple[str, ...]:
    settings = place.settings()
    values = [word for key, value in settings.items() for word in (key, "s", value)]
    head = ("busctl", BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "RegisterModels", "a(sa{sv})a{sv}")
    return (*head, "1", VICTIM, str(len(settings)), *values, "0")


def _unregister_only(place: Place) -> tuple[str, ...]:
    """Without waiting for its end."""
    return ("busctl", BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "Unregister", "sa{sv}", VICTIM, "1", "force", "b", "true")


def _cancel(place: Place) -> tuple[str, ...]:
    return ("busctl", BUS_NAME, place.job(), JOB_INTERFACE, "Cancel", "a{sv}", "0")


def _set(*items: str) -> tuple[str, ...]:
    return ("set", VICTIM, *items)


LENGTH = "max_model_len=77"
MANAGER = MANAGER_INTERFACE

CASES = {
    "register": Case("Register", _nothing, Place.register, interface=MANAGER),
    "register --api-key": Case(
        "Register", _nothing, lambda place: place.register("--api-key", "auto"), interface=MANAGER
    ),
    "RegisterModels": Case("RegisterModels", _nothing, _register_models, interface=MANAGER),
    "unregister": Case("Unregister", _secret, ("unregister", VICTIM), interface=MANAGER),
    "unregister, failed": Case("Unregister", _failed_with_secret, ("unregister", VICTIM), interface=MANAGER),
    "unregister --force": Case("Unregister", _enabled, ("unregister", "--force", VICTIM), interface=MANAGER),
    "unregister, not waited for": Case("Unregister", _running, _unregister_only, interface=MANAGER),
    "start": Case("Start", _registered, START),
    "start, failed": Case("Start", _failed, START),
    "start, unit deleted": Case("Start", _deleted, START, of_one_daemon=True),
    "start, backend edited": Case("Start", _edited, START, of_one_daemon=True),
    "start --enable": Case("Start", _registered, (*START, "--enable")),
    "stop": Case("Stop", _running, ("stop", VICTIM)),
    "stop, loading": Case("Stop", _loading, ("stop", VICTIM), of_one_daemon=True),
    "stop, stubborn": Case("Stop", _stubborn, ("stop", VICTIM)),
    "restart": Case("Restart", _running, ("restart", VICTIM)),
    "restart, loading": Case("Restart", _loading, ("restart", VICTIM), of_one_daemon=True),
    "restart, stopped": Case("Restart", _registered, ("restart", VICTIM)),
    "enable": Case("Enable", _running, ("enable", VICTIM)),
    "enable --linger": Case("Enable", _registered, ("enable", "--linger", VICTIM)),
    "disable": Case("Disable", _enabled, ("disable", VICTIM)),
    "set": Case("Set", _registered, _set(LENGTH)),
    "set, running": Case("Set", _running, _set(LENGTH)),
    "set limits, running": Case("Set", _running, _set("memory=2G", "TasksMax=99")),
    "secret set": Case("SetSecret", _running, ("secret", "set", VICTIM, "HF_TOKEN"), typed=b"canary"),
    "secret unset": Case("RemoveSecret", _secret, ("secret", "unset", VICTIM, "HF_TOKEN")),
    "cancel, loading": Case("Cancel", _loading, _cancel, interface=JOB_INTERFACE, of_one_daemon=True),
    "repair": Case("Repair", _by_hand, ("repair", "--yes", VICTIM)),
    "kill": Case("Kill", _running, ("kill", VICTIM)),
    "reset-failed": Case("ResetFailed", _failed, ("reset-failed", VICTIM)),
    "StartModel": Case("StartModel", _registered, _plain("StartModel"), interface=MANAGER),
    "StopModel": Case("StopModel", _running, _plain("StopModel"), interface=MANAGER),
    "RestartModel": Case("RestartModel", _running, _plain("RestartModel"), interface=MANAGER),
    "register, reload refused": Case("Register", _nothing, Place.register, interface=MANAGER, refused="Reload"),
    "start, refused": Case("Start", _registered, START, refused="StartUnit"),
    "stop, refused": Case("Stop", _running, ("stop", VICTIM), refused="StopUnit"),
    "unregister, stop refused": Case(
        "Unregister", _enabled, ("unregister", "--force", VICTIM), interface=MANAGER, refused="StopUnit"
    ),
    "set, reload refused": Case("Set", _registered, _set(LENGTH), refused="Reload"),
}

REFUSED = {case.refused for case in CASES.values() if case.refused}
"""Methods of systemd's."""

READING = {
    MANAGER_INTERFACE: ("GetModel", "ListModels", "ListEvents", "ListSettings", "ListBackends", "ListJobs"),
    MODEL_INTERFACE: ("Check", "GetSecurity", "CheckHealth", "Why", "GetUnitFiles"),
    JOB_INTERFACE: ("Wait",),
}
"""Methods that change nothing of a model's."""


def declared() -> Iterable[tuple[str, str]]:
    """Every method of the API, as the XML says it: interface and member."""
    for file in FOLDER.glob(f"{BUS_NAME}.*.xml"):
        for interface in ElementTree.parse(file).getroot().iter("interface"):
            for method in interface.iter("method"):
                yield interface.attrib["name"], method.attrib["name"]
