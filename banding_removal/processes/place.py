"""Which of several processes this one is, from what torchrun, Slurm or MPI set in its environment.

Slurm: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES. Open MPI:
https://docs.open-mpi.org/en/main/tuning-apps/environment-var.html. PMI variables are those of
MPICH and Intel MPI.
"""

import errno
import logging
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from banding_removal.errors import ConfigError
from banding_removal.processes.nodelist import hostnames

log = logging.getLogger(__name__)

OWN = {
    "rank": "RANK",
    "size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_size": "LOCAL_WORLD_SIZE",
    "address": "MASTER_ADDR",
    "port": "MASTER_PORT",
}
# Ranks among processes of launchers that are not read, and of Slurm and torchrun by themselves.
OTHER_RANKS = (
    *("SLURM_PROCID", "LOCAL_RANK", "PMIX_RANK", "PALS_RANKID", "JSM_NAMESPACE_RANK"),
    *("FLUX_TASK_RANK", "ALPS_APP_PE"),
)
# Step ids from here on are not steps of srun: interactive shells of salloc, batch scripts.
NO_STEP = 0xFFFFFFF0
# Below the ports that Linux gives to outgoing connections.
FIRST_PORT, PORTS = 15000, 15000


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of this process among those that run together."""

    rank: int
    size: int
    local_rank: int  # among those on this machine
    local_size: int  # number of those on this machine; 1 where it is not known
    address: str  # host of rank 0
    port: int  # where rank 0 serves the key-value store
    job: str = ""  # what launcher or scheduler call the job; empty: it has no name


@dataclass(frozen=True, kw_only=True)
class _Scheduler:
    """What started several processes, and the values it sets in place of torchrun's variables."""

    name: str
    values: dict[str, str | None]  # keys as in OWN
    variables: dict[str, str]  # their names, for messages
    job: str


def place_in(environment: Mapping[str, str]) -> Place | None:
    """The place of this process; None: it is on its own.

    RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT come first, as
    torchrun sets them. For each that is not set, the value of Open MPI, MPICH or Slurm counts.
    WORLD_SIZE=1 without RANK separates the tasks of a scheduler.

    Raises:
        ConfigError: variables are missing or contradict each other; the message names all of them.
    """
    scheduler = _scheduler(environment)
    if "RANK" not in environment:
        if environment.get("WORLD_SIZE") == "1":
            if scheduler is not None:
                log.warning("WORLD_SIZE=1: every task of %s runs on its own", scheduler.name)
            return None
        if scheduler is None and "WORLD_SIZE" not in environment:
            _check_alone(environment)
            return None
    return _checked(environment, scheduler)


def _check_alone(environment: Mapping[str, str]) -> None:
    """Refuse a process that is not the first of several, of which nothing else is known.

    Raises:
        ConfigError: each of them would run on its own.
    """
    if environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS"):
        return  # Slurm says that it is one of one
    for name in OTHER_RANKS:
        if environment.get(name, "0").strip() not in ("", "0"):
            raise ConfigError(
                f"{name}={environment[name]}: this is one of several processes, but RANK and "
                "WORLD_SIZE are not set. Set them, MASTER_ADDR and MASTER_PORT as well, or "
                "WORLD_SIZE=1 for a process on its own"
            )


def _checked(environment: Mapping[str, str], scheduler: _Scheduler | None) -> Place:
    own_place = [environment.get("RANK"), environment.get("WORLD_SIZE")]
    if (
        scheduler is not None
        and None not in own_place
        and own_place != [scheduler.values["rank"], scheduler.values["size"]]
    ):
        scheduler = None  # torchrun in a task of Slurm's, for instance
    theirs = {} if scheduler is None else scheduler.values
    variables = {} if scheduler is None else scheduler.variables
    found = {key: environment.get(name, theirs.get(key)) for key, name in OWN.items()}
    names = {
        key: name if name in environment else variables.get(key, name) for key, name in OWN.items()
    }
    numbers, problems = _numbers_of(found, names)
    for key in ("rank", "size"):
        own, other = environment.get(OWN[key]), theirs.get(key)
        if None not in (own, other) and own != other:
            problems.append(f"{OWN[key]}={own} contradicts {variables[key]}={other}")
    address = (found["address"] or "").strip()
    if not address:
        missing = "not set" if found["address"] is None else "empty"
        problems.append(f"{names['address']} is {missing}")
    elif not problems:
        problems = _unknown_host(address, numbers["port"], names["address"])
    problems += _unknown_interfaces(environment.get("GLOO_SOCKET_IFNAME", ""))
    if problems:
        started = f"by {scheduler.name}" if scheduler else "as RANK or WORLD_SIZE is set"
        raise ConfigError(
            f"this is one of several processes ({started}), but {'; '.join(problems)}. "
            "Set what is missing, or WORLD_SIZE=1 without RANK for a process on its own"
        )
    local_size = numbers.get("local_size", 1)
    default = numbers["rank"] % local_size if local_size > 1 else numbers["rank"]
    return Place(
        rank=numbers["rank"],
        size=numbers["size"],
        local_rank=numbers.get("local_rank", default),
        local_size=local_size,
        address=address,
        port=numbers["port"],
        job=environment.get("TORCHELASTIC_RUN_ID", scheduler.job if scheduler else ""),
    )


def _numbers_of(
    found: Mapping[str, str | None], names: Mapping[str, str]
) -> tuple[dict[str, int], list[str]]:
    """The numbers among the values found, and what is wrong with them."""
    numbers: dict[str, int] = {}
    problems = []
    for key in ("rank", "size", "port", "local_rank", "local_size"):
        text = found[key]
        if text is None:
            if not key.startswith("local"):
                problems.append(f"{names[key]} is not set")
        elif re.fullmatch(r"\s*\d{1,18}\s*", text, re.ASCII):
            numbers[key] = int(text)
        else:
            problems.append(f"{names[key]} must be a whole number, not {text!r}")
    for key, limit in (("rank", "size"), ("local_rank", "local_size"), ("local_size", "size")):
        if key in numbers and limit in numbers:
            largest = numbers[limit] - (key != "local_size")
            if numbers[key] > largest:
                problems.append(
                    f"{names[key]}={numbers[key]} does not fit {names[limit]}={numbers[limit]}"
                )
    if not 0 < numbers.get("port", 1) < 2**16:
        problems.append(f"{names['port']}={numbers['port']} is not a port (1 to 65535)")
    return numbers, problems


def _unknown_host(address: str, port: int, name: str) -> list[str]:
    try:
        socket.getaddrinfo(address, port)
    except UnicodeError:  # an empty part, or one of more than 63 characters
        return [f"{name}={address[:100]} is not the name of a host"]
    except OSError as error:
        if error.errno in (socket.EAI_NONAME, errno.ENOENT):
            return [f"{name}={address} is a host that is not known here"]
    return []  # a name server that does not answer now may answer later


def _unknown_interfaces(names: str) -> list[str]:
    """Problems of the list from which Gloo takes its network interface."""
    if not names:
        return []
    try:
        known = {name for _, name in socket.if_nameindex()}
    except OSError:  # some containers do not say
        return []
    unknown = [name for name in names.split(",") if name and name not in known]
    if not unknown:
        return []
    return [
        f"GLOO_SOCKET_IFNAME names {', '.join(unknown)}, but the network interfaces of this "
        f"machine are {', '.join(sorted(known))}"
    ]


def _scheduler(environment: Mapping[str, str]) -> _Scheduler | None:
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


def _mpi(environment: Mapping[str, str], name: str, prefix: str) -> _Scheduler | None:
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
    return _Scheduler(name=name, values=values, variables=variables, job=job)


def _slurm(environment: Mapping[str, str]) -> _Scheduler | None:
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
    return _Scheduler(name="Slurm", values=values, variables=variables, job=job)


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
