"""Which objects are on the bus: the manager, a model each, a job each, as they come and go."""

from __future__ import annotations

from cortexd.api.job import JobObject
from cortexd.api.manager import ManagerObject
from cortexd.api.model import ModelObject
from cortexd.api.server import Server
from cortexd.bus import Bus
from cortexd.errors import CortexError, NoSuchJob, NoSuchModel
from cortexd.jobs import KEEP_SECONDS, Job
from cortexd.manager import Manager
from cortexd.names import JOB_PREFIX, MODEL_PREFIX, ROOT_PATH, job_path, model_of_path, model_path


def _missing(path: str) -> CortexError | None:
    if path.startswith(JOB_PREFIX):
        return NoSuchJob(f"job {path.removeprefix(JOB_PREFIX)} is unknown, or ended more than {KEEP_SECONDS:g} s ago")
    if path.startswith(MODEL_PREFIX):
        return NoSuchModel(model_of_path(path))
    return None


def export(bus: Bus, server: Server, manager: Manager) -> None:
    """Put every object on the bus, and keep them so as models and jobs come and go."""
    root = ManagerObject(bus, manager)
    server.missing = _missing
    server.add(ROOT_PATH, root)

    def add(name: str) -> None:
        server.add(model_path(name), ModelObject(bus, manager, name), managed=True)
        server.update(ROOT_PATH)

    def remove(name: str) -> None:
        server.remove(model_path(name))
        server.update(ROOT_PATH)

    def job_new(job: Job) -> None:
        server.add(job_path(job.id), JobObject(bus, job))
        server.signal(ROOT_PATH, root.interface, "JobNew", job_path(job.id), job.model, job.kind)

    def job_end(job: Job) -> None:
        server.update(job_path(job.id))
        server.signal(ROOT_PATH, root.interface, "JobRemoved", job_path(job.id), job.model, job.kind, job.state.value)

    for name in manager.catalog.models:
        server.add(model_path(name), ModelObject(bus, manager, name), managed=True, announced=False)
    manager.on_add, manager.on_remove = add, remove
    manager.on_change = lambda name: server.update(model_path(name))
    manager.catalog.on_warnings = lambda: server.update(ROOT_PATH)
    manager.on_event = lambda event: server.signal(ROOT_PATH, root.interface, "EventAdded", event.model, event.kind)
    jobs = manager.life.jobs
    jobs.on_new, jobs.on_end, jobs.on_forget = job_new, job_end, lambda job: server.remove(job_path(job.id))
