"""Which of several processes this one is: as torchrun, Slurm or MPI say in its environment."""

import errno
import logging
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from banding_removal.errors import ConfigError
from banding_removal.processes.schedulers import Scheduler, scheduler_of

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


def place_in(environment: Mapping[str, str]) -> Place | None:
    """The place of this process; None: it is on its own.

    RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT come first, as
    torchrun sets them. For each that is not set, the value of Open MPI, MPICH or Slurm counts.
    WORLD_SIZE=1 without RANK separates the tasks of a scheduler.

    Raises:
        ConfigError: variables are missing or contradict each other; the message names all of them.
    """
    scheduler = scheduler_of(environment)
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


def _checked(environment: Mapping[str, str], scheduler: Scheduler | None) -> Place:
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
