"""The user's message bus restarted, and killed and away for half a minute: cortexd returns with it, and models have noticed nothing."""

from __future__ import annotations

import json

import pytest

from tests.faults.test_systemd import in_a_session_of_its_own

STORY = """
    export PATH=~/.local/bin:$PATH
    cortexctl register tiny --backend llamacpp --path "$GGUF" --exec "$SERVER" --gpus none --port auto --memory 2G --max-model-len 256
    cortexctl start tiny
    run() { systemctl --user show cortex-tiny.service -p ActiveState,InvocationID,MainPID,NRestarts; }
    before=$(run)
    url=$(cortexctl url tiny)
    if ((AWAY)); then systemctl --user mask --runtime --quiet dbus.socket dbus.service; fi
    # A SIGKILL with the socket there has systemd's manager itself connect to a bus that it has to start first, and stand still.
    if ((!AWAY)); then
      systemctl --user restart dbus.service
    else
      systemctl --user kill --signal=KILL dbus.service
      systemctl --user stop dbus.socket dbus.service
      for ((second = 0; second < AWAY; second++)); do
        [[ $(run) == "$before" ]]
        sleep 1
      done
      ! cortexctl list 2>/tmp/said
      grep -q "cannot reach your message bus" /tmp/said
      systemctl --user unmask --runtime --quiet dbus.socket dbus.service
      systemctl --user start dbus.socket
    fi
    began=$(date +%s%N)
    until cortexctl is-active tiny >/dev/null 2>&1; do
      (($(date +%s%N) - began < 20000000000)) || { journalctl --user -u cortexd -n 50 --no-pager; exit 1; }
      sleep 0.1
    done
    echo "{\\"milliseconds\\": $((($(date +%s%N) - began) / 1000000)), \\"restarts\\": $(systemctl --user show cortexd -p NRestarts --value)}"
    [[ $(run) == "$before" ]]
    [[ $(cortexctl events tiny --json | grep -c '"Kind": "run"') == 1 ]]
    cortexctl restart tiny >/dev/null
    cortexctl stop tiny >/dev/null
"""


@pytest.mark.parametrize("away", [0, 30])
def test_restarted_and_away(away: int) -> None:
    told = in_a_session_of_its_own(STORY, AWAY=str(away))
    figures = json.loads(told.splitlines()[-1])
    print(f"bus away {away} s: {figures}")
    assert figures["milliseconds"] < 20_000 and figures["restarts"] >= 1
