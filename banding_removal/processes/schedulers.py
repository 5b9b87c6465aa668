"""What Slurm and MPI say, in environment variables, of the processes that they have started.

Slurm: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES. Open MPI:
https://docs.open-mpi.org/en/main/tuning-apps/environment-var.html. PMI variables are those of
MPICH and Intel MPI.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from banding_removal.errors import ConfigError
from banding_removal.processes.nodelist import hostnames

log = logging.getLogger(__name__)

# Step ids from here on are not steps of srun: interactive shells of salloc, batch scripts.
NO_STEP = 0xFFFFFFF0
# Below the ports that Linux gives to outgoing connections.
FIRST_PORT, PORTS = 15000, 15000


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """What started several processes, and the values it sets in place of torchrun's variables."""

    name: str
    values: dict[str, str | None]  # keys as in `place.OWN`
    variables: dict[str, str]  # their names, for messages
    job: str


def scheduler_of(environment: Mapping[str, str]) -> Scheduler | None:
    """What has started this process as one of several, if it was not torchrun.

    mpirun can start its helpers through srun, whose variables their processes inherit: so MPI's
    come first. Slurm's own PMI sets PMI_RANK, too, but not MPI_LOCALRANKID.
    """
    mpi = _mpi(environment, "Open MPI", "OMPI_COMM_WORLD_")
    mvapich = _mpi(environment, "MVAPICH", "MV2_COMM_WORLD_")
    pmi = _mpi(environment, "MPI", "PMI_")
    found = (
        mpi,
        mvapich,
        pmi if "MPI_LOCALRANKID" in environment else None,
        _slurm(environment),
        pmi,
    )
    return next((scheduler for scheduler in found if scheduler is not None), None)


def _mpi(environment: Mapping[str, str], name: str, prefix: str) -> Scheduler | None:
    variables = {"rank": f"{prefix}RANK", "size": f"{prefix}SIZE"}
    if prefix == "PMI_":
        variables |= {"local_rank": "MPI_LOCALRANKID", "local_size": "MPI_LOCALNRANKS"}
    else:
        variables |= {"local_rank": f"{prefix}LOCAL_RANK", "local_size": f"{prefix}LOCAL_SIZE"}
    values = {key: environment.get(variable) for key, variable in variables.items()}
    if values["size"] in (None, "", "1") and values["rank"] in (None, "", "0"):
        return None
    job = environment.get("PMIX_NAMESPACE", environment.get("OMPI_MCA_ess_base_jobid"))
    job = job or environment.get("SLURM_JOB_ID", "")
    hosts = hostnames(environment.get("SLURM_JOB_NODELIST", ""))
    one_machine = values["local_size"] == values["size"] or len(hosts) == 1
    values["address"] = "localhost" if one_machine else next(iter(hosts), None)
    values["port"] = str(_port(job)) if job else None
    return Scheduler(name=name, values=values, variables=variables, job=job)


def _slurm(environment: Mapping[str, str]) -> Scheduler | None:
    """Slurm, if srun has started this process as one of several tasks.

    Raises:
        ConfigError: a task that does not know its step; a shell for one of several tasks.
    """
    get = environment.get
    step = get("SLURM_STEP_ID", get("SLURM_STEPID", ""))
    tasks = get("SLURM_NTASKS") or get("SLURM_NPROCS") or "1"
    if not step.isdecimal() or int(step) >= NO_STEP:
        if tasks != "1" and "RANK" not in environment:
            if get("SLURM_PROCID", "0") != "0":
                raise ConfigError(
                    f"this is task {get('SLURM_PROCID')} of {tasks} of Slurm, but SLURM_STEP_ID is "
                    "not set: start the script with srun"
                )
            log.warning(
                "Slurm's job has %s tasks, but srun has not started this process: it runs without "
                "the other tasks",
                tasks,
            )
        return None
    tasks = get("SLURM_STEP_NUM_TASKS") or tasks
    if tasks == "1":
        return None
    if "SLURM_PTY_PORT" in environment and not {"RANK", "WORLD_SIZE"} & environment.keys():
        raise ConfigError(
            f"this shell of srun --pty is only one of {tasks} tasks: start it with --ntasks=1, or "
            "set WORLD_SIZE=1 for a process on its own"
        )
    hosts = hostnames(get("SLURM_STEP_NODELIST", get("SLURM_JOB_NODELIST", "")))
    first = next(iter(hosts), get("SLURM_LAUNCH_NODE_IPADDR"))
    nodes = get("SLURM_STEP_NUM_NODES", get("SLURM_NNODES", str(len(hosts))))
    job = f"{get('SLURM_JOB_ID', get('SLURM_JOBID', ''))}.{step}"
    values = {
        "rank": get("SLURM_PROCID"),
        "size": tasks,
        "local_rank": get("SLURM_LOCALID"),
        "local_size": _tasks_here(environment),
        # Task 0 runs on the first node.
        "address": "localhost" if nodes == "1" else first,
        "port": str(_port(job)),
    }
    variables = {
        "rank": "SLURM_PROCID",
        "size": "SLURM_STEP_NUM_TASKS",
        "local_rank": "SLURM_LOCALID",
        "local_size": "SLURM_STEP_TASKS_PER_NODE",
    }
    return Scheduler(name="Slurm", values=values, variables=variables, job=job)


def _tasks_here(environment: Mapping[str, str]) -> str | None:
    """Slurm's tasks on this node, from a list such as `8(x3),2` and the node's number."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        counts += [count] * int(times or 1)
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _port(job: str) -> int:
    """A port that the processes of a job agree on, and two jobs most often do not."""
    return FIRST_PORT + crc32(job.encode()) % PORTS
