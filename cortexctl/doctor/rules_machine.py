"""What is said of the kernel, GPUs, ports and the programs that serve models. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from cortexctl.doctor.evidence import Gpus, Kernel, Model, Namespaces, Node, Program, Unseen
from cortexctl.doctor.line import Line, error, note, ok, warning

_KILLS = {
    "systemd-oomd": "may kill a whole model when the machine is short of memory or under pressure: 'oomctl' shows when",
    "earlyoom": "may kill a model when the machine is short of memory: --avoid in /etc/default/earlyoom spares programs",
}


def control_groups(kernel: Kernel) -> Iterator[Line]:
    """cgroup v2."""
    if kernel.cgroup2:
        yield ok("cgroup", "control groups are version 2")
    else:
        yield error(
            "cgroup",
            "there is no cgroup v2 here: no limit is enforced",
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
        )


def namespaces(kernel: Kernel) -> Iterator[Line]:
    """User namespaces, on which the sandbox rests."""
    found = kernel.namespaces
    if isinstance(found, Unseen):
        yield note("namespaces", f"whether users may make namespaces is not known: {found.reason}")
        return
    if not found.obstacle:
        yield ok("namespaces", "sandboxes work: users may make namespaces and mount in them")
        return
    reason, remedy = _obstacle(found)
    text = (
        f"users cannot make namespaces ({found.obstacle}): {reason}; models run with less of a sandbox than asked for"
    )
    yield error("namespaces", text, remedy)


def _obstacle(found: Namespaces) -> tuple[str, str]:
    settings = found.settings
    if settings.get("user.max_user_namespaces") == 0:
        return "user.max_user_namespaces is 0", _sysctl("user.max_user_namespaces", 15000)
    if settings.get("kernel.unprivileged_userns_clone") == 0:
        return "kernel.unprivileged_userns_clone is 0", _sysctl("kernel.unprivileged_userns_clone", 1)
    name = "kernel.apparmor_restrict_unprivileged_userns"
    if settings.get(name) == 1:
        return (
            f"AppArmor forbids it, as Ubuntu does since 24.04 ({name} is 1)",
            f"{_sysctl(name, 0)}; it is a protection of the kernel's that is given up for all programs",
        )
    return (
        "neither a kernel setting nor AppArmor is the cause",
        "a container, a seccomp filter or a security module forbids it: give the container more rights, "
        "or run cortexd outside of it",
    )


def _sysctl(name: str, value: int) -> str:
    return f"echo '{name}={value}' | sudo tee /etc/sysctl.d/60-cortex.conf && sudo sysctl --system"


def killers(kernel: Kernel) -> Iterator[Line]:
    """Who else ends models."""
    for name in kernel.killers:
        yield note("oom", f"{name} runs: it {_KILLS.get(name, 'may kill models when memory is short')}")


def gpus(found: Gpus, user: str) -> Iterator[Line]:
    """Devices, and who may open them."""
    nvidia = [node for node in found.nodes if node.path.startswith("/dev/nvidia")]
    numbered = [node for node in nvidia if node.path.removeprefix("/dev/nvidia").isdecimal()]
    computing = [node for node in found.nodes if node.path in ("/dev/kfd", "/dev/dxg")]
    render = [node for node in found.nodes if node.path.startswith("/dev/dri/")]
    made = "'sudo nvidia-modprobe -c 0 -u' makes them; nvidia-persistenced does so at every boot"
    if found.nvidia_driver and not numbered:
        yield warning("gpu", "NVIDIA's driver is loaded, but there is no node /dev/nvidia0", made)
    elif numbered and not any(node.path == "/dev/nvidia-uvm" for node in nvidia):
        yield warning("gpu", "/dev/nvidia-uvm is missing, without which CUDA finds no GPU", made)
    elif found.nvidia_cards and not found.nvidia_driver and not numbered:
        cards = "a card" if found.nvidia_cards == 1 else f"{found.nvidia_cards} cards"
        yield note("gpu", f"there is {cards} of NVIDIA's, but its driver is not loaded", "install it (nvidia-driver)")
    essential = [*numbered, *(n for n in nvidia if n.path in ("/dev/nvidiactl", "/dev/nvidia-uvm")), *computing]
    # ROCm opens render nodes, too; without it they are for graphics, and for Vulkan at the most.
    closed = [n for n in [*essential, *(render if computing else ())] if not n.usable]
    if closed:
        yield warning("gpu", f"you may not open {', '.join(n.path for n in closed[:8])}", _join(closed, found, user))
    elif essential:
        many = "GPUs" if found.count is None else "1 GPU" if found.count == 1 else f"{found.count} GPUs"
        yield ok("gpu", f"{many}, which you may use")
    elif render and not all(node.usable for node in render):
        shut = [node for node in render if not node.usable]
        yield note("gpu", f"you may not open {shut[0].path}, which Vulkan would need", _join(shut, found, user))
    elif not found.nvidia_driver:
        yield note("gpu", "no GPU for CUDA or ROCm: models need --gpus none here")


def _join(closed: Sequence[Node], found: Gpus, user: str) -> str:
    groups = sorted({node.group for node in closed if node.group and node.group != "root"})
    if not groups or any(node.group in ("", "root") for node in closed):
        return "their owner or a udev rule has to allow it: 'ls -l' shows their rights"
    if set(groups) <= found.groups:
        return f"you are in {_and(groups)} since your sessions began: reboot, or end all of them and your manager"
    return f"sudo usermod -aG {','.join(groups)} {user}, then reboot: your manager keeps its groups while it runs"


def _and(groups: Sequence[str]) -> str:
    return f"the group{'s' if len(groups) > 1 else ''} {' and '.join(groups)}"


def ports(models: Iterable[Model] | None, kernel: Kernel) -> Iterator[Line]:
    """Where models listen, against what the kernel does with ports."""
    if models is None:
        return  # no daemon told of them
    shared: defaultdict[int, list[str]] = defaultdict(list)
    faults: list[Line] = []
    first, last = kernel.ephemeral
    for model in models:
        shared[model.port].append(model.name)
        kept = any(low <= model.port <= high for low, high in kernel.reserved)
        if first <= model.port <= last and not kept:
            text = f"port {model.port} of {model.name} lies in the kernel's own range {first}-{last}, and may be taken"
            faults.append(warning("port", text, f"'cortexctl set {model.name} port=auto' gives it another one"))
        if 0 < model.port < kernel.first_unprivileged:
            text = (
                f"port {model.port} of {model.name} is only for programs of root's (below {kernel.first_unprivileged})"
            )
            faults.append(error("port", text, f"'cortexctl set {model.name} port=auto' gives it another one"))
    for port, names in sorted(shared.items()):
        if len(names) > 1:
            text = f"port {port} is that of {' and '.join(names[:3])}{' and others' if names[3:] else ''}"
            faults.append(
                warning("port", f"{text}: one of them can run at a time", f"'cortexctl set {names[1]} port=auto'")
            )
    yield from faults
    if shared and not faults:
        yield ok("port", "every model has a port of its own that nothing else is given")


def programs(found: Sequence[Program], models: Iterable[Model] | None) -> Iterator[Line]:
    """The backends. Models that are registered name their programs themselves, wherever those are."""
    for program in found:
        if program.problem:
            yield warning("backend", f"backend {program.name}: {program.problem}", "'cortexctl backends' shows all")
        elif program.obstacle:
            text = f"{program.name}: {program.executable} {program.obstacle}"
            yield warning("backend", text, "repair its installation")
        elif program.executable:
            yield ok("backend", " ".join(filter(None, (program.name, program.version, f"({program.executable})"))))
    if not any(program.executable for program in found):
        make = note if models else warning
        yield make(
            "backend",
            "no program that serves models is on your PATH",
            "install vLLM, llama.cpp (llama-server), Ollama or TGI, or name one with --exec FILE",
        )
