"""Every test runs under a private, real `systemd --user`: pytest starts itself again inside scripts/private-systemd.

In CI a test that does not run is a failure: CI=true turns every skip into one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support import lab

pytest_plugins = ["tests.support.fixtures"]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Enter the private manager, unless we are in it already (or only asked what tests there are)."""
    if os.environ.get("CORTEX_LAB") == "1" or config.option.collectonly or config.option.help or config.option.version:
        return
    # Inside, this folder cannot be written; what the tests need from outside is fetched here.
    lab.prepare()
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
    sys.stdout.flush()
    sys.stderr.flush()
    command = [str(lab.PROJECT / "scripts" / "private-systemd"), "--", sys.executable, "-m", "pytest"]
    os.execv(command[0], [*command, "-p", "no:cacheprovider", *config.invocation_params.args])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No skip that hides."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


def pytest_report_header() -> list[str]:
    """Which systemd the tests run on."""
    version = subprocess.run(
        ["systemctl", "--version"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return [f"systemd: {version[0] if version else 'none'}", f"project: {Path(lab.PROJECT)}"]
