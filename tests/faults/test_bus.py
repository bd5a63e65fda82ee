"""The user's message bus restarted, killed, and killed and away for half a minute: cortexd returns with it, and models have
noticed nothing."""

from __future__ import annotations

import json

import pytest

from tests.faults.test_systemd import in_a_session_of_its_own

STORY = """
    export PATH=~/.local/bin:$PATH
    cortexctl register tiny --backend llamacpp --path "$GGUF" --exec "$SERVER" --gpus none --port auto --memory 2G --max-model-len 256
    cortexctl start tiny
    run() { timeout 10 systemctl --user show cortex-tiny.service -p ActiveState,InvocationID,MainPID,NRestarts; }
    # Looks at the manager and at the bus at every moment of their absence, as a desktop's programs do.
    back() {
      local began=$(date +%s%N)
      until timeout 5 cortexctl is-active tiny >/dev/null 2>&1; do
        (($(date +%s%N) - began < 20000000000)) || { timeout 5 journalctl --user -n 50 --no-pager; exit 1; }
        sleep 0.1
      done
      took=$((($(date +%s%N) - began) / 1000000))
      [[ $(run) == "$before" ]]
    }
    before=$(run)
    case $FAULT in
      restarted) systemctl --user restart dbus.service; back ;;
      killed)
        # The socket stays with systemd, and whoever connects to it has the bus started. Often: it is a matter of milliseconds
        # who sees first that the bus is dead.
        for time in {1..6}; do systemctl --user kill --signal=KILL dbus.service; back; done ;;
      away)
        systemctl --user mask --runtime --quiet dbus.socket dbus.service
        systemctl --user kill --signal=KILL dbus.service
        systemctl --user stop dbus.socket dbus.service
        for second in {1..30}; do
          [[ $(run) == "$before" ]]
          sleep 1
        done
        ! cortexctl list 2>/tmp/said
        grep -q "cannot reach your message bus" /tmp/said
        systemctl --user unmask --runtime --quiet dbus.socket dbus.service
        systemctl --user start dbus.socket
        back ;;
    esac
    echo "{\\"milliseconds\\": $took, \\"restarts\\": $(systemctl --user show cortexd -p NRestarts --value)}"
    [[ $(cortexctl events tiny --json | grep -c '"Kind": "run"') == 1 ]]
    cortexctl restart tiny >/dev/null
    cortexctl stop tiny >/dev/null
"""


@pytest.mark.parametrize("fault", ["restarted", "killed", "away"])
def test_the_bus_is(fault: str) -> None:
    told = in_a_session_of_its_own(STORY, FAULT=fault)
    figures = json.loads(told.splitlines()[-1])
    print(f"bus {fault}: {figures}")
    assert figures["milliseconds"] < 20_000 and figures["restarts"] >= (6 if fault == "killed" else 1)
