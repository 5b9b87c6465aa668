"""The place of a process among others, from the environments of launchers and schedulers."""

import logging

import pytest

from banding_removal.errors import ConfigError
from banding_removal.processes.nodelist import hostnames
from banding_removal.processes.place import place_in
from banding_removal.processes.schedulers import FIRST_PORT, PORTS

TORCHRUN = {
    **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "abc"},
}
# As srun sets them for the last of 16 tasks on two nodes.
SRUN = {
    **{"SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16"},
    **{"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "15", "SLURM_LOCALID": "7"},
    **{"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
    **{"SLURM_STEP_NODELIST": "localhost,node[07,09]", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"},
}
OPEN_MPI = {
    **{"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prterun-1@1"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def test_torchruns_variables_say_all() -> None:
    place = place_in({**TORCHRUN, **SRUN})  # torchrun may run within Slurm
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (3, 4, 1, 2)
    assert (place.address, place.port, place.job) == ("localhost", 29500, "abc")


def test_a_task_of_srun_needs_no_exports() -> None:
    place = place_in(SRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (15, 16, 7, 8)
    assert place.address == "localhost"  # the first node of the step
    assert FIRST_PORT <= place.port < FIRST_PORT + PORTS
    other = place_in({**SRUN, "SLURM_STEP_ID": "1"})
    assert other is not None and other.port != place.port and other.job != place.job
    own = place_in({**SRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4711"})
    assert own is not None and (own.address, own.port) == ("127.0.0.1", 4711)
    # The recipe that exports what torchrun would set.
    old = place_in({**SRUN, **without(TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "RANK": "2"})
    assert old is not None and (old.rank, old.size) == (2, 4)


def test_open_mpi_and_pmi_are_read_and_come_before_the_step_that_started_mpiruns_helpers() -> None:
    place = place_in({**OPEN_MPI, **SRUN, "SLURM_STEP_NUM_TASKS": "2"})
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (1, 2, 1, 2)
    assert place.address == "localhost"
    pmi = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
    place = place_in({**pmi, "MASTER_PORT": "29500"})
    assert place is not None and (place.rank, place.size, place.address) == (0, 2, "localhost")
    # Slurm's own PMI.
    slurm = place_in({**SRUN, "PMI_RANK": "15", "PMI_SIZE": "16"})
    assert slurm == place_in(SRUN)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "PMIX_RANK": "1"},
        {"PMIX_RANK": "0", "SLURM_PROCID": ""},
        {**SRUN, "WORLD_SIZE": "1"},  # the tasks are runs of their own
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16"},  # a shell of salloc
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},  # an older one
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_ID": str(0xFFFFFFFB)},
        {"SLURM_NTASKS": "", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "", "OMPI_COMM_WORLD_RANK": ""},
    ],
)
def test_a_process_on_its_own_waits_for_nobody(environment: dict[str, str]) -> None:
    assert place_in(environment) is None


def test_a_job_of_several_tasks_without_srun_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert place_in({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None
    assert "srun has not started this process" in caplog.text


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "0"}, ["WORLD_SIZE is not set", "MASTER_PORT is not set", "MASTER_ADDR is not"]),
        ({"WORLD_SIZE": "2"}, ["RANK is not set", "MASTER_ADDR is not set"]),
        (without(TORCHRUN, "MASTER_ADDR"), ["MASTER_ADDR is not set"]),
        ({**TORCHRUN, "MASTER_ADDR": ""}, ["MASTER_ADDR is empty"]),
        ({**TORCHRUN, "MASTER_ADDR": "node.invalid"}, ["MASTER_ADDR=node.invalid is a host that"]),
        (
            {**TORCHRUN, "MASTER_ADDR": "node..cluster"},
            ["=node..cluster is not the name of a host"],
        ),
        ({**TORCHRUN, "MASTER_PORT": "http"}, ["MASTER_PORT must be a whole number, not 'http'"]),
        ({**TORCHRUN, "MASTER_PORT": "0"}, ["MASTER_PORT=0 is not a port"]),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, ["MASTER_PORT=70000 is not a port"]),
        (
            {**TORCHRUN, "GLOO_SOCKET_IFNAME": "nix0"},
            ["_IFNAME names nix0, but the network"],
        ),
        ({**TORCHRUN, "RANK": "4"}, ["RANK=4 does not fit WORLD_SIZE=4"]),
        ({**TORCHRUN, "RANK": "-1"}, ["RANK must be a whole number, not '-1'"]),
        ({**TORCHRUN, "RANK": ""}, ["RANK must be a whole number, not ''"]),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, ["RANK=3 does not fit WORLD_SIZE=0"]),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, ["LOCAL_RANK=2 does not fit LOCAL_WORLD_SIZE=2"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, ["LOCAL_WORLD_SIZE=9 does not fit WORLD_SIZE=4"]),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, ["task 1 of 2 of Slurm", "with srun"]),
        ({**SRUN, "SLURM_PTY_PORT": "4711"}, ["one of 16 tasks", "--ntasks=1"]),
        (without(SRUN, "SLURM_PROCID"), ["SLURM_PROCID is not set"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["Open MPI", "OMPI_COMM_WORLD_RANK is not set"]),
        ({**OPEN_MPI, "WORLD_SIZE": "4"}, ["WORLD_SIZE=4 contradicts OMPI_COMM_WORLD_SIZE=2"]),
        ({**SRUN, "RANK": "0"}, ["RANK=0 contradicts SLURM_PROCID=15"]),
        ({"SLURM_PROCID": "1"}, ["SLURM_PROCID=1: this is one of several"]),
        ({"SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, ["SLURM_PROCID=1: this is one of several"]),
        ({"LOCAL_RANK": "1"}, ["LOCAL_RANK=1: this is one of several"]),
        ({"PALS_RANKID": "3"}, ["PALS_RANKID=3: this is one of several"]),
        ({"OMPI_COMM_WORLD_RANK": "1"}, ["Open MPI", "OMPI_COMM_WORLD_SIZE is not set"]),
        ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"}, ["MVAPICH", "MASTER_ADDR is"]),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, ["MASTER_ADDR is not set", "MASTER_PORT is not set"]),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_named_in_one_line(
    environment: dict[str, str], says: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        place_in(environment)
    assert all(part in str(caught.value) for part in says), str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranks_on_one_machine_follow_from_the_rank_where_nothing_else_is_known() -> None:
    place = place_in(without(TORCHRUN, "LOCAL_RANK"))
    assert place is not None and place.local_rank == 1
    place = place_in(without(TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    assert place is not None and (place.local_rank, place.local_size) == (3, 1)


def test_tasks_of_a_node_that_has_fewer_than_others() -> None:
    last = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "6(x2),4", "SLURM_NODEID": "2"}
    place = place_in({**last, "SLURM_LOCALID": "3"})
    assert place is not None and place.local_size == 4


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("", []),
        ("gpu1", ["gpu1"]),
        ("node[03-05,9],gpu1", ["node03", "node04", "node05", "node9", "gpu1"]),
        ("a-b[098-101]", ["a-b098", "a-b099", "a-b100", "a-b101"]),
        ("node[a-b],c[", ["nodea-b", "c"]),
        ("r[1-2]n[7,8].x,z", ["r1n7.x", "r1n8.x", "r2n7.x", "r2n8.x", "z"]),
    ],
)
def test_node_lists_of_slurm_are_expanded(nodes: str, hosts: list[str]) -> None:
    assert hostnames(nodes) == hosts
