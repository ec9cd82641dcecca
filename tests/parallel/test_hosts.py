import pytest

from qurating_jax.parallel.hosts import expand_nodes, expand_tasks, host_names


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("node1", ["node1"]),
        ("node1,login", ["node1", "login"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("gpu[1,3-4,010],big,rack[7]-a", ["gpu1", "gpu3", "gpu4", "gpu010", "big", "rack7-a"]),
        ("", []),
    ],
)
def test_node_lists(text, nodes):
    assert expand_nodes(text) == nodes


def test_tasks_per_node():
    assert expand_tasks("4(x2),2") == [4, 4, 2]
    assert expand_tasks("1") == [1]
    assert expand_tasks("") == []


def test_hosts_of_slurm_and_tpu():
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
    assert host_names(3, slurm) == ["n1", "n1", "n2"]
    assert host_names(4, slurm) == []  # it does not fit: better no name than a wrong one
    assert host_names(3, slurm | {"SLURM_DISTRIBUTION": "cyclic"}) == []
    assert host_names(2, {"TPU_WORKER_HOSTNAMES": "w0,w1"}) == ["w0", "w1"]
    assert host_names(4, {"TPU_WORKER_HOSTNAMES": "w0,w1"}) == []
    assert host_names(2, {}) == []
