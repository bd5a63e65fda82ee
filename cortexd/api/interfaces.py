"""The interfaces as the XML files say them, which are the one place where members and their types are written down."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "interfaces"
_EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"


@dataclass(frozen=True, slots=True)
class Method:
    """A method's argument types, in and out, as D-Bus signatures."""

    takes: str
    gives: str


@dataclass(frozen=True, slots=True)
class Property:
    """A property: its type, whether it may be written, and what is sent when it changes ("true", "false", "const")."""

    signature: str
    writable: bool
    emits: str


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface; `text` is its XML element."""

    name: str
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, str]
    text: str


def _arguments(element: ET.Element, direction: str) -> str:
    return "".join(a.get("type", "") for a in element.findall("arg") if a.get("direction", "in") == direction)


def _property(element: ET.Element) -> Property:
    notes = {a.get("name"): a.get("value", "true") for a in element.findall("annotation")}
    return Property(element.get("type", ""), "write" in element.get("access", ""), notes.get(_EMITS, "true"))


@functools.cache
def load(name: str) -> Interface:
    """The interface of that name, from its installed file."""
    element = ET.parse(FOLDER / f"{name}.xml").getroot().find("interface")
    if element is None or element.get("name") != name:
        raise ValueError(f"{name}.xml does not describe {name}")
    return Interface(
        name,
        {m.get("name", ""): Method(_arguments(m, "in"), _arguments(m, "out")) for m in element.findall("method")},
        {p.get("name", ""): _property(p) for p in element.findall("property")},
        {s.get("name", ""): "".join(a.get("type", "") for a in s.findall("arg")) for s in element.findall("signal")},
        ET.tostring(element, encoding="unicode").strip(),
    )
