"""Jobs: begun at once, waited for, reported one by one; and what a person at a terminal sees meanwhile."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from cortexctl.output import ACTIVE
from cortexd.names import model_path
from tests.cli.canned import model
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.service import Asked, Refusal

VERBS = [("start", "Start"), ("stop", "Stop"), ("restart", "Restart")]


@pytest.fixture
def two(fake: FakeDaemon) -> FakeDaemon:
    fake.add(model("a"), model("b"))
    return fake


@pytest.mark.parametrize(("verb", "member"), VERBS)
def test_all_are_begun_before_one_is_waited_for(cli: Cli, two: FakeDaemon, verb: str, member: str) -> None:
    cli.ok(verb, "*")
    members = [asked.member for asked in two.asked if asked.member in (member, "Wait")]
    assert members == [member, member, "Wait", "Wait"]
    assert {asked.path for asked in two.calls(member)} == {model_path("a"), model_path("b")}
    assert two.calls("Wait")[0].body == ({},), "no time-out: a model may load for an hour"


def test_what_is_said_when_it_is_done(cli: Cli, two: FakeDaemon) -> None:
    for verb, text in (("start", "is ready at"), ("restart", "is ready again at")):
        assert cli.ok(verb, "a").startswith(f"a {text} http://127.0.0.1:8080 (")
    assert cli.ok("stop", "a") == "a is stopped\n"
    assert cli.ok("unregister", "a") == "a is no longer registered\n"
    assert cli.ok("start", "a", "--quiet") == ""


def test_options_of_jobs(cli: Cli, two: FakeDaemon) -> None:
    cli.ok("start", "--enable", "a")
    assert two.calls("Start")[-1].body == ({"enable": ("b", True)},)
    cli.ok("start", "a")
    assert two.calls("Start")[-1].body == ({},)
    cli.ok("unregister", "--force", "a")
    assert two.calls("Unregister")[-1].body == ("a", {"force": ("b", True)})
    cli.ok("unregister", "a")
    assert two.calls("Unregister")[-1].body == ("a", {})


def test_a_job_in_json(cli: Cli, two: FakeDaemon) -> None:
    two.answers["Wait"] = ("done", ["it had to be killed"])
    job = two.answers["Stop"] = ("/org/cortexlinux/Cortex1/job/7",)
    assert cli.json("stop", "a") == [
        {"Name": "a", "Job": job[0], "Result": "done", "Warnings": ["it had to be killed"]}
    ]
    assert cli.run("stop", "a").stderr == "Warning: a: it had to be killed\n"


def test_enable_now_in_json_has_both_warnings(cli: Cli, two: FakeDaemon) -> None:
    two.answers["Enable"] = (["no linger"],)
    two.answers["Wait"] = ("done", ["slow"])
    assert cli.json("enable", "--now", "a")[0]["Warnings"] == ["no linger", "slow"]


def test_no_block(cli: Cli, two: FakeDaemon) -> None:
    assert cli.ok("start", "--no-block", "a", "b") == "Starting a\nStarting b\n"
    assert not two.calls("Wait")
    assert [set(record) for record in cli.json("start", "--no-block", "a")] == [{"Name", "Job", "Warnings"}]


def failing(kind: str, text: str, *, only: str = "a") -> Any:
    """An answer to Wait that refuses for one model; jobs are told apart by their number."""

    def answer(asked: Asked) -> Any:
        if asked.path.endswith(only):
            raise Refusal(kind, text)
        return "done", []

    return answer


def jobs_named(fake: FakeDaemon, member: str = "Start") -> None:
    """Give each model's job a path that ends like the model's."""
    fake.answers[member] = lambda asked: ("/org/cortexlinux/Cortex1/job/" + asked.path.rpartition("/")[2],)


@pytest.mark.parametrize("kind", ["JobFailed", "JobTimeout"])
def test_a_failed_job_names_the_cause_and_the_next_command(cli: Cli, two: FakeDaemon, kind: str) -> None:
    jobs_named(two)
    two.answers["Wait"] = failing(kind, "the server exited with status 1.")
    done = cli.run("start", "a", "b")
    assert done.returncode == 1
    assert done.stdout.startswith("b is ready"), "the other one is waited for and reported"
    sentence = "Job for a failed because the server exited with status 1."
    assert done.stderr == f"cortexctl: {sentence} See 'cortexctl why a' and 'cortexctl logs a'.\n"
    cli.program = "cortex-model"
    assert "See 'cortex-model why a' and 'cortex-model logs a'." in cli.run("start", "a").stderr


def test_a_failed_job_in_json(cli: Cli, two: FakeDaemon) -> None:
    jobs_named(two)
    two.answers["Wait"] = failing("JobFailed", "the port is gone")
    done = cli.run("start", "a", "b", "--json")
    assert done.returncode == 1
    records = {record["Name"]: record for record in json.loads(done.stdout)}
    assert records["b"]["Result"] == "done"
    assert (records["a"]["error"], json.loads(done.stderr)["error"]) == ("JobFailed", "JobFailed")
    assert records["a"]["message"] == json.loads(done.stderr)["message"]


def test_a_start_that_is_refused(cli: Cli, two: FakeDaemon) -> None:
    two.answers["Start"] = Refusal("PortInUse", "port 8080 is held by model b")
    assert cli.fails("start", "a") == "a: port 8080 is held by model b"
    assert not two.calls("Wait")


def test_a_superseded_job_says_what_the_daemon_says(cli: Cli, two: FakeDaemon) -> None:
    two.answers["Wait"] = Refusal("JobCanceled", "the start of a was superseded by a stop")
    assert cli.fails("start", "a") == "the start of a was superseded by a stop"


def test_interrupted(cli: Cli, two: FakeDaemon) -> None:
    two.held = {"Wait"}
    with cli.started("start", "a", "b") as process:
        two.wait_for("Wait", 2)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert process.returncode == 130
    assert (out, errors) == ("", "cortexctl: interrupted; starting a b goes on, see 'cortexctl status a b'\n")


@pytest.mark.parametrize(
    ("verb", "goes_on"),
    [
        ("start", "starting a b goes on, 'cortexctl wait a b' waits for it"),
        ("restart", "restarting a b goes on, 'cortexctl wait a b' waits for it"),
        ("stop", "stopping a b goes on, 'cortexctl status a b' shows how it is"),
    ],
)
def test_a_daemon_that_ends_meanwhile(cli: Cli, two: FakeDaemon, verb: str, goes_on: str) -> None:
    two.held = {"Wait"}
    with cli.started(verb, "a", "b") as process:
        two.wait_for("Wait", 2)
        two.vanish()
        _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith(f"cortexctl: cortexd ended meanwhile; {goes_on}, ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("later", ["ready", "failed", None])
def test_a_start_outlives_a_restart_of_the_daemon(cli: Cli, private_bus: str, later: str | None) -> None:
    """What loads goes on; the next daemon says what becomes of it."""
    with FakeDaemon(private_bus) as first:
        first.add(model("a"))
        first.held = {"Wait"}
        with cli.started("start", "a") as process:
            first.wait_for("Wait")
            with FakeDaemon(private_bus) as second:  # it is queued for the name
                if later:
                    second.add(model("a", State="starting"))
                first.vanish()
                second.wait_for("ListModels")
                if later:
                    second.change("a", State=later, StateReason="for a reason")
                out, errors = process.communicate()
    if later == "ready":
        assert (process.returncode, errors) == (0, "")
        assert out.startswith("a is ready at http://127.0.0.1:8080 (")
    else:
        why = "Job for a failed because for a reason." if later else "no model 'a' is registered;"
        assert (process.returncode, out) == (1 if later else 4, "")
        assert errors.startswith(f"cortexctl: {why}")
    assert not second.calls("Start"), "nothing is asked for once more"


@pytest.mark.parametrize("state", ACTIVE)
def test_wait_is_over_at_once_when_the_model_is_ready(cli: Cli, fake: FakeDaemon, state: str) -> None:
    fake.add(model("a", State=state))
    assert cli.ok("wait", "a") == f"a is {state} at http://127.0.0.1:8080\n"


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_wait_fails_at_once_when_it_cannot_be(cli: Cli, fake: FakeDaemon, state: str) -> None:
    fake.add(model("a", State=state, StateReason="for a reason"))
    verb = "start" if state == "stopped" else "why"
    assert cli.fails("wait", "a") == f"a is {state}: for a reason; see 'cortexctl {verb} a'"


def test_wait_follows_changes(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="starting"), model("b", State="starting"), model("other", State="ready"))
    with cli.started("wait", "a", "b", "--json") as process:
        fake.wait_for("ListModels")
        fake.change("other", State="failed")
        fake.change("a", State="busy", URL="http://127.0.0.1:9")
        fake.change("b", StateReason="nearly")
        fake.change("b", State="ready")
        out, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert json.loads(out) == [
        {"Name": "a", "State": "busy", "URL": "http://127.0.0.1:9"},
        {"Name": "b", "State": "ready", "URL": "http://127.0.0.1:8080"},
    ]
    assert len(fake.calls("ListModels")) == 1, "nothing is polled"


def test_wait_ends_when_one_fails(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="starting"))
    with cli.started("wait", "a") as process:
        fake.wait_for("ListModels")
        fake.change("a", State="failed", StateReason="exited with status 1")
        _, errors = process.communicate()
    assert (process.returncode, errors) == (
        1,
        "cortexctl: a is failed: exited with status 1; see 'cortexctl why a'\n",
    )


def test_wait_misses_no_change_before_its_first_look(cli: Cli, fake: FakeDaemon) -> None:
    """The change comes while ListModels is answered with the state before it."""
    fake.add(model("a", State="starting"))

    def answer(asked: Asked) -> Any:
        reply = fake._do_ListModels(asked)
        fake.change("a", State="ready")
        return reply

    fake.answers["ListModels"] = answer
    assert cli.ok("wait", "a").startswith("a is ready")


def test_wait_gives_up(cli: Cli, fake: FakeDaemon) -> None:
    fake.add(model("a", State="starting"))
    assert cli.fails("wait", "a", "--timeout", "0.1") == "a was not ready after 0.1 s; it is starting"


def test_wait_outlives_a_restart_of_the_daemon(cli: Cli, private_bus: str) -> None:
    with FakeDaemon(private_bus) as first:
        first.add(model("a", State="starting"))
        with cli.started("wait", "a") as process:
            first.wait_for("ListModels")
            # The successor is queued for the name, so that no look meets a bus without a daemon.
            with FakeDaemon(private_bus) as second:
                second.add(model("a", State="ready"))
                first.vanish()
                out, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert out == "a is ready at http://127.0.0.1:8080\n"
