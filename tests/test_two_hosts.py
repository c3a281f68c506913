"""Two hosts, which are two network namespaces of this machine joined by a cable: a run on both ends
with the numbers of two ranks on one host, also after a host was lost, and after the cable was cut.

    python -m pytest tests/test_two_hosts.py --two-hosts      # Linux, as root; some minutes
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, argv, log_of

HOSTS = {"iml-a": "10.77.0.1", "iml-b": "10.77.0.2"}


def ip(command):
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@pytest.fixture
def hosts(request):
    if not request.config.getoption("--two-hosts"):
        pytest.skip("needs root: --two-hosts")
    try:
        for name in HOSTS:
            ip(f"netns add {name}")
        ip("link add iml-a type veth peer name iml-b")
        for name, address in HOSTS.items():
            ip(f"link set {name} netns {name}")
            ip(f"-n {name} addr add {address}/24 dev {name}")
            ip(f"-n {name} link set {name} up")
            ip(f"-n {name} link set lo up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start(host, arguments, log):
    """docs/long-runs.md's command on one of the hosts, in a process group of its own."""
    first, address = next(iter(HOSTS.values())), HOSTS[host]
    command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"]
    command += f"--nnodes 2 --nproc-per-node 1 --max-restarts 5 --local-addr {address}".split()
    command += f"--rdzv-backend c10d --rdzv-endpoint {first}:29500".split()
    command += ["--rdzv-conf", f"is_host={int(address == first)}"]
    own = {"GLOO_SOCKET_IFNAME": host, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(log, "a") as file:
        return subprocess.Popen(
            [*command, str(ROOT / "run.py"), *arguments],
            stdout=file,
            stderr=file,
            env=os.environ | own,
            start_new_session=True,
        )


def metrics_of(out):
    return json.loads((out / "metrics-backbone.json").read_text())


@pytest.mark.parametrize("trouble", ["none", "a host is lost", "the cable is cut"])
def test_two_hosts_end_with_the_numbers_of_two_ranks_on_one(hosts, demo, tmp_path, trouble):
    def arguments(name):
        options = "--phase backbone eval --epochs 40 --save-every 0"
        return argv(demo, tmp_path / name, options)

    alone = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*alone, str(ROOT / "run.py"), *arguments("one")], check=True, timeout=300)
    runs = {h: start(h, arguments("two"), tmp_path / f"{h}.log") for h in HOSTS}
    try:
        if trouble != "none":
            while not (tmp_path / "two/log.jsonl").is_file() or len(log_of(tmp_path / "two")) < 2:
                time.sleep(0.05)
        if trouble == "a host is lost":
            os.killpg(runs["iml-b"].pid, signal.SIGKILL)
            runs["iml-b"].wait()
            time.sleep(3)
            runs["iml-b"] = start("iml-b", arguments("two"), tmp_path / "iml-b.log")
        if trouble == "the cable is cut":
            ip("-n iml-b link set iml-b down")
            time.sleep(10)
            ip("-n iml-b link set iml-b up")
        # At its end torchrun itself may wait 300 s for a host that was lost.
        assert [run.wait(timeout=500) for run in runs.values()] == [0, 0]
    finally:
        for run in runs.values():
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert metrics_of(tmp_path / "two") == metrics_of(tmp_path / "one")
    assert [entry["epoch"] for entry in log_of(tmp_path / "two")] == list(range(1, 41))
