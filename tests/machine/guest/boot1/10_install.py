"""A user who never logged in installs cortexd from a clone, and the daemon runs."""

from machine import CLONE, HOME, HOST, PUPPET, check, files_at_home, keep, need, properties, slices, user, user_manager

need("user manager runs", user_manager(), "active")
user("cp", "-a", str(HOST / "src"), str(CLONE))
user("cp", "-a", str(HOST / "llama"), str(HOST / "tiny.gguf"), str(HOME))
user("install", "-m", "755", str(HOST / "guest/puppet.py"), str(PUPPET))
keep("home", files_at_home())
keep("slices", slices())

need("make install", user("make", "install", folder=CLONE).returncode, 0)
for program in "cortexctl", "cortex-model":
    check(f"{program} --version", user(program, "--version").returncode, 0)
check("daemon runs", properties("cortexd.service")["ActiveState"], "active")
check("daemon is enabled", properties("cortexd.service")["UnitFileState"], "enabled")
