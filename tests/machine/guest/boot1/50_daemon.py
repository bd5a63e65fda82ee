"""kill -9 of cortexd while its models serve: no request is lost, no run changes, and whoever calls it has it back."""

from machine import check, ctl, daemon, kill_daemon, lives, need, properties, register_puppet, requests, until, user

register_puppet("beside", "--set", "health.interval_seconds=2", "--set", "health.timeout_seconds=2")
need("start", user("cortexctl", "start", "beside").returncode, 0)
before = lives("tiny", "beside")
with requests(ctl("url", "tiny").strip()) as answers:
    for _ in range(3):
        kill_daemon()
        asked = len(answers)
        check("daemon says", until(lambda: ctl("is-active", "tiny").strip(), "ready"), "ready")
        check("the model answers meanwhile", until(lambda: len(answers) > asked), True)  # noqa: B023
check(f"all of {len(answers)} requests were answered", {status for status, _ in answers}, {200})
check("models are the same runs", lives("tiny", "beside"), before)

# What the bus activates: a client's call is what starts it.
user("systemctl", "--user", "stop", "cortexd.service")
check("cortexd is stopped", (properties("cortexd.service")["ActiveState"], daemon()), ("inactive", "0"))
done = user("cortexctl", "list", "--json")
check("a call brings it back", (done.returncode, "tiny" in done.stdout, daemon() != "0"), (0, True, True))
check("models are still the same runs", lives("tiny", "beside"), before)
user("cortexctl", "unregister", "--force", "beside")
