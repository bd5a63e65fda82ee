"""Requested against effective: the table from what the attempts said, without a machine."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from cortexd.backends import BACKENDS
from cortexd.kinds import Value
from cortexd.model import SETTINGS, ModelSpec, build_spec
from cortexd.sandbox.attempts import ATTEMPTS
from cortexd.sandbox.judging import (
    _ATTEMPTS,
    _FENCES,
    MOOT,
    NEED_NAMESPACES,
    WORDS,
    Effect,
    LeftOut,
    Proof,
    Row,
    table,
)
from cortexd.sandbox.kept import results
from cortexd.sandbox.proving import REFUSED, problem
from cortexd.units.fences import machine, without

EPERM, EROFS = 1, 30
FREE = dict.fromkeys(ATTEMPTS, 0)
CLOSED = dict.fromkeys(ATTEMPTS, EPERM)
NO_NAMESPACES = dict.fromkeys(NEED_NAMESPACES, REFUSED)


def spec_of(**explicit: Value) -> ModelSpec:
    return build_spec("m", {"path": "org/name", **explicit}, BACKENDS["vllm"].defaults(0))


def row(proof: Proof, directive: str, left_out: LeftOut = MappingProxyType({}), **explicit: Value) -> Row:
    (found,) = [row for row in table(spec_of(**explicit), proof, left_out) if row.directive == directive]
    return found


def test_every_attempt_is_a_directives_and_has_words() -> None:
    used = {name for names in (*_ATTEMPTS.values(), *_FENCES.values()) for name in names} | {"see-home"}
    assert used == set(ATTEMPTS) == set(WORDS)
    assert set(_ATTEMPTS) <= set(SETTINGS)
    assert set(NEED_NAMESPACES) <= {*_ATTEMPTS, *_FENCES}


@pytest.mark.parametrize(
    ("sandbox", "control", "effect", "why"),
    [
        (EPERM, 0, Effect.IN_FORCE, "the server cannot make a set-user-ID file"),
        (EPERM, EPERM, Effect.MOOT, MOOT),
        (EPERM, EROFS, Effect.MOOT, MOOT),
        (0, 0, Effect.NOT_IN_FORCE, "the server could make a set-user-ID file"),
        (0, EPERM, Effect.NOT_IN_FORCE, "the server could make a set-user-ID file"),
    ],
)
def test_in_force_only_where_it_succeeds_outside_and_fails_inside(
    sandbox: int, control: int, effect: Effect, why: str
) -> None:
    proof = Proof({"setuid-file": sandbox}, {"setuid-file": control})
    assert row(proof, "RestrictSUIDSGID") == Row("RestrictSUIDSGID", "yes", effect, why)


def test_of_several_attempts_one_that_succeeds_is_too_many() -> None:
    proof = Proof({**CLOSED, "see-var-tmp": 0}, FREE)
    assert row(proof, "PrivateTmp") == Row(
        "PrivateTmp", "yes", Effect.NOT_IN_FORCE, "the server could see the machine's /var/tmp"
    )
    mixed = row(Proof(CLOSED, {**CLOSED, "see-tmp": 0}), "PrivateTmp")
    assert (mixed.effect, mixed.why) == (Effect.IN_FORCE, "the server cannot see the machine's /tmp")


def test_no_directive_gets_the_credit_for_what_another_one_prevents() -> None:
    proof = Proof(
        CLOSED,
        FREE,
        apart={"ProtectClock": {**CLOSED}, "PrivateUsers": {}, "LockPersonality": {**CLOSED, "personality": 0}},
    )
    covered = row(proof, "ProtectClock", security="strict")
    assert (covered.effect, covered.why) == (
        Effect.COVERED,
        "the server cannot reach the calls that set the clock; without it the others together prevent that",
    )
    alone = row(proof, "LockPersonality", security="strict")
    assert (alone.effect, alone.why) == (Effect.IN_FORCE, "the server cannot change its execution domain")
    needed = row(proof, "PrivateUsers")
    assert needed.effect is Effect.IN_FORCE and needed.why.endswith("without it systemd cannot set up the rest")


@pytest.mark.parametrize(
    ("covering", "said"),
    [
        (["SystemCallFilter"], "SystemCallFilter prevents that"),
        (["SystemCallFilter", "ProtectSystem"], "SystemCallFilter and ProtectSystem prevent that"),
        (["A", "B", "C", "D"], "A, B and 2 more prevent that"),
        ([], "the others together prevent that"),
    ],
)
def test_what_covers_a_directive_is_named(covering: list[str], said: str) -> None:
    alone = {
        "UMask": FREE,
        "PrivateTmp": {},
        "ProtectClock": CLOSED,
        **{name: {**FREE, "clock": EPERM} for name in covering},
    }
    found = row(Proof(CLOSED, FREE, apart={"ProtectClock": CLOSED}, alone=alone), "ProtectClock", security="strict")
    assert found.effect is Effect.COVERED and found.why.endswith(f"; without it {said}")


def test_the_lines_without_one_directive() -> None:
    lines = ["ProtectSystem=strict", "ProtectControlGroups=true", "RestrictNamespaces=~cgroup", "ReadWritePaths=/a"]
    assert without(lines, "ProtectSystem") == lines[1:]
    assert without(lines, "ProtectControlGroups") == ["ProtectSystem=strict", "ReadWritePaths=/a"]
    assert without(lines, "RestrictNamespaces") == [line for line in lines if "cgroup" not in line]
    kept = ["BindPaths=/a", 'InaccessiblePaths=-"/d"', 'BindReadOnlyPaths="/run/x"']
    *run, terminals = machine()
    fence = [*run, "TemporaryFileSystem=%t:ro", "BindReadOnlyPaths=%t/systemd/notify", "BindReadOnlyPaths=-%t/x"]
    assert without([*fence, *kept, terminals], "TemporaryFileSystem=/run") == [*kept, terminals]
    assert without([*kept, terminals], "InaccessiblePaths=/dev/pts") == kept
    assert without([*kept, terminals], "InaccessiblePaths=~/.cortex") == [kept[0], kept[2], terminals]


def test_where_there_is_no_folder_to_try_it_in_the_table_says_so() -> None:
    found = row(Proof({**CLOSED, "write-elsewhere": 2}, {**FREE, "write-elsewhere": 2}), "ProtectSystem")
    assert found.effect is Effect.IN_FORCE
    assert found.why.endswith("; no folder of yours outside of home and /tmp was found to try it in")
    assert row(Proof({**CLOSED, "write-elsewhere": 0}, FREE), "ProtectSystem").effect is Effect.NOT_IN_FORCE


def test_what_was_not_asked_for_is_off_and_what_was_not_tried_unknown() -> None:
    assert row(Proof(FREE, FREE), "PrivateDevices").effect is Effect.OFF
    assert row(Proof(CLOSED, FREE, ""), "PrivateTmp", PrivateTmp=False).effect is Effect.OFF
    assert row(Proof({}, {}), "PrivateTmp").effect is Effect.UNKNOWN
    assert row(Proof({}, {}, "no answer"), "PrivateTmp") == Row("PrivateTmp", "yes", Effect.UNKNOWN, "no answer")


def test_an_empty_home_must_not_be_seen() -> None:
    proof = Proof({**CLOSED, "see-home": 0}, FREE)
    assert row(proof, "ProtectHome").effect is Effect.IN_FORCE
    assert row(proof, "ProtectHome", ProtectHome="tmpfs").effect is Effect.NOT_IN_FORCE


def test_only_a_strict_system_is_read_only_elsewhere() -> None:
    proof = Proof({**CLOSED, "write-elsewhere": 0}, FREE)
    assert row(proof, "ProtectSystem").effect is Effect.NOT_IN_FORCE
    assert row(proof, "ProtectSystem", ProtectSystem="full").effect is Effect.IN_FORCE


def test_what_is_left_out_is_named_and_warned_of() -> None:
    rows = table(spec_of(), Proof(CLOSED, FREE), NO_NAMESPACES)
    out = {row.directive for row in rows if row.effect is Effect.NOT_IN_FORCE}
    assert out == {
        *_FENCES, "ProtectSystem", "ProtectHome", "PrivateTmp",
        "ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups",
    }  # fmt: skip
    assert row(Proof(CLOSED, FREE), "NoNewPrivileges", NO_NAMESPACES).effect is Effect.IN_FORCE
    said = problem(rows, NO_NAMESPACES)
    assert said.startswith("sandbox: PrivateUsers, ") and REFUSED in said and "sandbox_required=yes" in said


def test_the_warning() -> None:
    assert problem(table(spec_of(), Proof(CLOSED, FREE)), {}) == ""
    assert problem(table(spec_of(), Proof(CLOSED, CLOSED)), {}) == ""
    rows = table(spec_of(), Proof({**CLOSED, "see-tmp": 0, "realtime": 0}, FREE))
    assert problem(rows, {}) == "sandbox: PrivateTmp, RestrictRealtime: not in force on this machine"


def test_profiles() -> None:
    def requested(profile: str, **explicit: Value) -> dict[str, str]:
        rows = table(spec_of(security=profile, **explicit), Proof(CLOSED, FREE))
        return {row.directive: row.requested for row in rows if row.effect is not Effect.OFF}

    assert requested("none") == {}
    assert set(requested("baseline")) == {"NoNewPrivileges", "RestrictRealtime", "RestrictSUIDSGID"}
    assert set(requested("none", PrivateTmp=True)) == {*_FENCES, "PrivateTmp"}  # the one that is given wins
    default, strict = requested("default"), requested("strict")
    assert set(default) < set(strict) == {*_ATTEMPTS, *_FENCES} - {"PrivateDevices", "MemoryDenyWriteExecute"}
    assert "LockPersonality" not in requested("strict", LockPersonality=False)


@pytest.mark.parametrize("said", ["", "ok", "a:b", "a:0  b:1", "a:0\x1b[2J", "a:-1", "A:0", "a:99999"])
def test_what_the_attempts_never_say(said: str) -> None:
    assert results(said) is None


def test_what_they_say() -> None:
    assert results("a-b:0 c:13") == {"a-b": 0, "c": 13}
