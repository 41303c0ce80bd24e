"""A cluster of namespaces from one end to the other: up, train, trust, faults, down. Needs Linux and root.

What must hold of every kind of cluster is in the functions that test_cluster_docker.py takes from here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from checkout import make
from clusters import SAME_MODEL, Bench, cluster, ended

from draco.cluster import netns
from draco.errors import MissingError

# From the fault to the end of the run: 10 s and 35 s, and what two cores take that also run other tests.
KILLED_S, SILENT_S = 60, 120
# From a loss to the next launch, and to the first step of the launch that has the node back.
PACKED_S, REPLACED_S = 20, 120
PID = "/run/draco-sshd.pid"  # of the sshd that mpirun comes in by


def why_not() -> str:
    try:
        netns._require_tools()
    except MissingError as error:
        return str(error)
    return "" if shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) else "ansible is not installed"


pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with cluster(tmp_path_factory.mktemp("netns"), "netns", workers=3) as made:
        yield made


def test_a_second_cluster_up_changes_nothing(bench: Bench) -> None:
    made = bench.up()
    assert made.returncode == 0, made.stderr
    assert "nothing changed" in made.stderr
    assert "head and 3 workers" in made.stderr


def test_a_whole_node_may_be_byzantine_where_each_group_can_outvote_it(bench: Bench) -> None:
    """Six workers in two groups on three nodes. Ranks 2 and 5 are one node: in one group they would be the majority."""
    job = bench.job(steps=5, workers=6)
    job.write_text(job.read_text().replace("attack: reverse_gradient", "attack: {name: random, ranks: [2, 5]}"))
    trained = bench.draco("train", str(job))
    assert trained.returncode == 0, trained.stderr
    assert f"on {bench.name} ({bench.kind}: head and 3 workers)" in trained.stderr
    assert "tiny-experiment: succeeded" in trained.stdout
    assert "10 caught, 0 missed, 0 falsely accused" in trained.stdout


def test_eval_report_and_status_speak_of_the_run_on_the_cluster_that_is_up(bench: Bench) -> None:
    evaluated = bench.draco("eval")
    assert evaluated.returncode == 0, evaluated.stderr
    assert re.search(r"step 4: top-1 [\d.]+", evaluated.stdout)
    run = bench.status()["run"]
    assert (run["state"], run["step"], run["steps"], run["suspects"]) == ("succeeded", 5, 5, [2, 5])
    assert "10 caught, 0 missed, 0 falsely accused" in bench.draco("report", run["run"]).stdout
    assert not (bench.folder / "runs").exists()


def same_as_local(bench: Bench) -> None:
    """Train the newest run's job again on the head alone, by MPI, with the same secret, and compare the bits."""
    run, python = bench.status()["run"]["run"], bench.cluster.python
    options = f"--set transport=mpi --here --new --secret {run}/secret --runs runs/local"
    bench.sh("head", f"{python} -m draco train {run}/job.yaml {options}")
    bench.sh("head", f"{python} -c '{SAME_MODEL}' {run}/checkpoints/step-00000003.pt runs/local/*/checkpoints/*3.pt")
    bench.sh("head", "rm -r runs/local")


def test_ranks_that_talk_without_mpi_come_to_the_same_bits(bench: Bench) -> None:
    trained = bench.draco("train", str(bench.job(steps=3)), "--set", "transport=torch")
    assert trained.returncode == 0, trained.stderr
    same_as_local(bench)


def test_a_dry_run_prints_the_mpirun_command_and_starts_nothing(bench: Bench) -> None:
    before = bench.sh("head", "ls runs")
    made = bench.draco("train", str(bench.job()), "--dry-run")
    assert made.returncode == 0, made.stderr
    assert "mpirun" in made.stdout
    assert "plm_ssh_no_tree_spawn 1" in made.stdout
    assert f"hostfile\n# {bench.cluster.head.address}\n# {bench.cluster.workers[0].address}\n" in made.stdout
    assert bench.sh("head", "ls runs") == before


def test_a_detached_run_goes_on_and_is_stopped_and_resumed(bench: Bench) -> None:
    job = bench.job(steps=100_000)
    started = bench.draco("train", str(job), "--detach", "--new")
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 90
    while (run := bench.status()["run"])["state"] != "running" or run["step"] < 3:
        assert time.monotonic() < deadline, run
        time.sleep(0.5)
    assert run["supervised"]
    assert bench.draco("train", str(job)).returncode == 4  # it is running
    stopped = bench.draco("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert "interrupted at step" in stopped.stdout
    step = bench.run_state()["step"]
    with bench.resumed() as process:
        process.send_signal(signal.SIGINT)
        code, said = ended(process, 60)
    assert code == 130, said
    assert "RESUME=1" in said
    assert bench.run_state()["step"] > step


# --- Trust: what a worker node could try -----------------------------------------------------------------------------


def test_only_the_head_holds_a_private_key(bench: Bench) -> None:
    find = "grep -rlE 'BEGIN [A-Z ]*PRIVATE KEY' /etc/draco /etc/ssh /root/.ssh /home /srv 2>/dev/null | sort"
    for node in ("worker-01", "worker-02", "worker-03"):
        keys = bench.on(node, "sh", "-c", find).stdout.split()
        assert [key for key in keys if "ssh_host_" not in key] == []
    assert "/etc/draco/id_ed25519" in bench.on("head", "sh", "-c", find).stdout
    assert bench.sh("head", "stat -c %a /etc/draco/id_ed25519").strip() == "600"


def test_a_worker_can_log_in_nowhere(bench: Bench) -> None:
    user = bench.cluster.user
    for node in bench.cluster.nodes:
        if node.name == "worker-01":
            continue
        options = "-o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/tmp/known -p 2222"
        made = bench.on("worker-01", "sh", "-c", f"ssh {options} {user}@{node.address} true")
        assert made.returncode == 255
        assert "Permission denied" in made.stderr, made.stderr


def test_the_heads_key_is_of_no_use_on_a_worker(bench: Bench) -> None:
    """Even a stolen key opens nothing: workers accept it from the head's address only."""
    key = bench.sh("head", "cat /etc/draco/id_ed25519")
    other = bench.cluster.workers[1].address
    options = "-o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/tmp/known -i /tmp/stolen"
    line = f"umask 077; cat > /tmp/stolen <<'KEY'\n{key}KEY\nssh {options} -p 2222 {bench.cluster.user}@{other} true"
    made = bench.on("worker-01", "sh", "-c", line)
    bench.sh("worker-01", "rm /tmp/stolen")
    assert made.returncode == 255
    assert "Permission denied" in made.stderr, made.stderr


def test_workers_accept_the_heads_key_for_commands_only(bench: Bench) -> None:
    (line,) = bench.sh("worker-02", "cat /etc/draco/authorized_keys").splitlines()
    assert line.startswith(f'from="{bench.cluster.head.address}",restrict ssh-ed25519 ')
    assert bench.sh("head", "cat /etc/draco/authorized_keys") == ""
    third = bench.cluster.workers[2].address
    forwarded = bench.on("head", "ssh", "-F", "/etc/draco/ssh_config", "-W", f"{third}:2222", "worker-02")
    assert forwarded.returncode != 0
    assert "prohibited" in forwarded.stderr or "forwarding failed" in forwarded.stderr


def test_the_head_knows_every_worker_by_name_and_address_and_no_file_turns_the_check_off(bench: Bench) -> None:
    known = bench.sh("head", "cat /etc/draco/known_hosts")
    for node in bench.cluster.workers:
        assert f"[{node.name}]:2222" in known
        assert f"[{node.address}]:2222" in known
    config = bench.sh("head", "cat /etc/draco/ssh_config")
    assert "StrictHostKeyChecking yes" in config
    for path in [*bench.own.rglob("*"), *(Path(netns.__file__).parents[2] / "ansible").rglob("*")]:
        if path.is_file() and path.suffix not in (".log", ".pyc"):
            assert not re.search(r"StrictHostKeyChecking[ =]+(no|off|accept)", path.read_text(errors="replace")), path


def test_a_worker_neither_sees_the_runs_nor_writes_the_data(bench: Bench) -> None:
    for node in ("worker-01", "worker-03"):
        assert bench.on(node, "sh", "-c", "ls /srv/draco/runs | grep .").returncode != 0
        assert bench.on(node, "sh", "-c", "mkdir -p /srv/draco/runs/x").returncode != 0
        assert bench.on(node, "sh", "-c", "touch /srv/draco/data/x").returncode != 0
    bench.sh("head", "touch runs/x data/x && rm runs/x data/x")


# --- Faults ----------------------------------------------------------------------------------------------------------


def rank_pid(bench: Bench, node: str) -> str:
    """Return the process id, on the node, of its rank."""
    return bench.sh(node, "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q 'draco rank runs' "
                          "&& grep -qv mpirun $p/comm && echo ${p#/proc/}; done; true").split()[0]  # fmt: skip


def test_a_rank_that_is_killed_is_named_where_it_is_needed(bench: Bench) -> None:
    """Rank 2 is Byzantine. The run goes on without it; without another rank too nobody could tell who is right."""
    with bench.training(on_loss="fail") as process:
        for node in ("head", "worker-01", "worker-03"):  # they share /tmp, and process ids
            assert bench.sh(node, "ls /run/tmp")
        bench.sh("worker-03", f"kill -9 {rank_pid(bench, 'worker-03')}")
        code, said = ended(process, KILLED_S)
    assert code == 8, said
    assert "ranks 3 ended, and the repetition scheme cannot do without" in said
    assert bench.run_state()["state"] == "lost"


def test_a_worker_node_that_dies_is_lost_and_the_run_goes_on_after_cluster_up(bench: Bench) -> None:
    with bench.training(steps=60, on_loss="fail") as process:
        faults.kill(bench.cluster, bench.own, "worker-03")
        code, said = ended(process, KILLED_S)
        assert code == 8, said
        assert "worker-03 (ranks 3) is lost" in said
        assert f"make cluster-up NAME={bench.name} && make train" in said
        assert bench.run_state()["state"] == "lost"
        job = str(bench.job(steps=60, on_loss="fail"))
        refused = bench.draco("train", job, "--resume")
        assert refused.returncode == 6
        assert "worker-03: " in refused.stderr
        assert "worker-01" not in refused.stderr
        assert bench.up().returncode == 0
        again = bench.draco("train", job, "--resume")
        assert again.returncode == 0, again.stderr
        assert "resumed after step" in again.stderr


HEAR = """
import sys, time
from draco.launch import notices, roster
heard, deadline = notices.Notices(roster.read()), time.monotonic() + float(sys.argv[1])
while not (found := heard.read()) and time.monotonic() < deadline:
    time.sleep(0.05)
heard.close()
print({node: notice.sentence() for node, notice in found.items()})
"""


def test_a_worker_that_is_interrupted_is_announced_to_the_head_and_a_fresh_one_is_not(bench: Bench) -> None:
    hear = bench.backend.command(bench.cluster, bench.own, "head", [bench.cluster.python, "-c", HEAR, "60"])
    with bench.training(), subprocess.Popen(hear, stdout=subprocess.PIPE, text=True) as hearing:
        made = bench.draco("cluster", "interrupt", "worker-02", "--notice", "6", "--wait", "120")
        (told,) = re.findall(r"worker-02: (spot interruption at \d\d:\d\d:\d\dZ)", made.stderr)
        assert hearing.communicate()[0] == f"{ {'worker-02': told} }\n"
    assert made.returncode == 0, made.stderr
    assert re.search(rf"0\.0 +notice +{told} *\n(?s:.*)[67]\.\d +node gone +worker-02 *\n", made.stdout), made.stdout
    assert "without a step" in made.stdout
    left = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o '[n]otice.json'"
    assert bench.on("worker-01", "sh", "-c", f"sleep 3; {left}").stdout == ""
    assert bench.up().returncode == 0
    assert bench.sh("head", f"{bench.cluster.python} -c '{HEAR}' 4") == "{}\n"


def test_a_run_goes_on_by_itself_on_the_nodes_that_are_left(bench: Bench) -> None:
    with bench.training(steps=60) as process:
        faults.kill(bench.cluster, bench.own, "worker-03")
        killed = time.time()
        code, said = ended(process, KILLED_S)
    assert code == 0, said
    assert "interrupted: worker-03 (ranks 3) is lost" in said
    assert "launch 2 on worker-01, worker-02 without worker-03\nwarning: worker-01 hosts ranks 1, 3" in said
    interruption, relaunch = bench.events("interruption", "relaunch")
    assert relaunch["time"] - killed < PACKED_S
    assert (list(interruption["nodes"]), interruption["ranks"]) == (["worker-03"], [3])
    assert relaunch["nodes"] == ["worker-01", "worker-02", "worker-01"]
    assert bench.status()["run"]["interruptions"] == 1
    bench.undisturbed(60)
    assert bench.up().returncode == 0


def test_a_node_that_is_lost_is_brought_up_again_and_taken_back(bench: Bench) -> None:
    """The operator who watches brings it up, while the run goes on without it."""
    with bench.training(on_loss="replace") as process:
        faults.kill(bench.cluster, bench.own, "worker-03")
        deadline = time.monotonic() + REPLACED_S
        while not stepped(bench, launch=3):
            assert time.monotonic() < deadline, bench.events("interruption", "relaunch", "end")
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        code, said = ended(process, 60)
    assert code == 130, said
    assert f"make cluster-up NAME={bench.name}: started, so that the run gets its nodes back" in said
    packed, whole = bench.events("relaunch")
    assert packed["nodes"] == ["worker-01", "worker-02", "worker-01"]
    assert (whole["nodes"], whole["without"]) == (["worker-01", "worker-02", "worker-03"], {})
    assert len(bench.events("interruption")) == 1
    bench.undisturbed(bench.run_state()["step"])


def stepped(bench: Bench, launch: int) -> bool:
    """Say whether the newest run has taken a step in that launch."""
    told = bench.events("relaunch", "step")
    begun = [i for i, event in enumerate(told) if event.get("launch") == launch]
    return bool(begun) and told[-1]["event"] == "step"


def test_a_node_that_is_cut_off_is_lost_and_its_ranks_are_ended_before_the_next_run(bench: Bench) -> None:
    with bench.training(on_loss="fail") as process:
        faults.cut(bench.cluster, bench.own, "worker-02")
        try:
            code, said = ended(process, SILENT_S)
        finally:
            faults.heal(bench.cluster, bench.own, "worker-02")
    assert code == 8, said
    assert "worker-02 (ranks 2) is lost" in said
    assert bench.draco("train", str(bench.job(steps=3)), "--new").returncode == 0
    left = bench.on(
        "worker-02", "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o '[d]raco rank'"
    )
    assert left.stdout == ""


def test_a_run_whose_launcher_is_killed_is_lost_and_says_so(bench: Bench) -> None:
    with bench.training() as process:
        bench.sh("head", "pkill -9 -f '[d]raco supervise'; pkill -9 -f '[d]raco rank'; pkill -9 prterun; true")
        code, said = ended(process, KILLED_S)
    assert code == 8, said
    assert "its launcher and its server are gone" in said
    assert bench.run_state()["state"] == "lost"


def test_a_run_survives_the_death_of_its_nodes_sshd_and_the_next_one_names_the_node(bench: Bench) -> None:
    with bench.training() as process:
        bench.sh("worker-01", f"kill -9 $(cat {PID})")
        step = bench.status()["run"]["step"]
        deadline = time.monotonic() + 60
        while bench.status()["run"]["step"] < step + 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
    refused = bench.draco("train", str(bench.job(steps=3)), "--new")
    assert refused.returncode == 6, refused.stderr
    assert "worker-01: no sshd answers there; make cluster-up starts it again" in refused.stderr
    assert bench.up().returncode == 0


def test_a_full_disk_ends_the_run_with_a_state_that_says_so(bench: Bench) -> None:
    head = faults.init_process(bench.own, "head")
    inside = ["nsenter", "--target", str(head), "--mount", "--pid", "--"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", "/srv/draco/runs"], check=True)
    try:
        with bench.training() as process:
            bench.sh("head", "dd if=/dev/zero of=runs/filler bs=64k 2>/dev/null; true")
            code, said = ended(process, KILLED_S)
        assert code == 7, said
        assert "no space left on the disk" in said
        assert bench.run_state()["state"] == "failed"
        refused = bench.draco("train", str(bench.job(steps=3)), "--new")
        assert refused.returncode == 3
        assert re.search(r"is needed, and .* is free", refused.stderr), refused.stderr
    finally:
        subprocess.run([*inside, "umount", "--lazy", "/srv/draco/runs"], check=True)


def test_a_node_with_other_software_is_named_before_anything_starts(bench: Bench, tmp_path: Path) -> None:
    changed = tmp_path / "__init__.py"
    changed.write_text('"""Another version."""\n')
    inside = ["nsenter", "--target", str(faults.init_process(bench.own, "worker-02")), "--mount", "--pid", "--"]
    original = Path(netns.__file__).parents[1] / "__init__.py"
    subprocess.run([*inside, "mount", "--bind", str(changed), str(original)], check=True)
    try:
        refused = bench.draco("train", str(bench.job()), "--new")
    finally:
        subprocess.run([*inside, "umount", str(original)], check=True)
    assert refused.returncode == 6
    assert "worker-02: draco is " in refused.stderr
    assert "worker-01" not in refused.stderr


FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (Debian: libfaketime)")
def test_a_node_with_a_wrong_clock_is_named(bench: Bench) -> None:
    settings = f"SetEnv LD_PRELOAD={FAKETIME} FAKETIME=-90s"
    restart = f"kill -9 $(cat {PID}); rm {PID}; /usr/sbin/sshd -f /etc/draco/sshd_config -o PidFile={PID}"
    # Before the configuration's own line, as the first of them counts.
    bench.sh("worker-03", f"sed -i '1i {settings}' /etc/draco/sshd_config; {restart}")
    refused = bench.draco("train", str(bench.job()), "--new")
    assert refused.returncode == 6, refused.stderr
    assert re.search(r"worker-03: its clock is (8[5-9]|9[0-5]) s behind the head's", refused.stderr), refused.stderr
    assert bench.up().returncode == 0  # writes the configuration anew


def test_a_node_whose_key_changed_is_refused_until_cluster_up_has_seen_it(bench: Bench) -> None:
    restart = f"kill -9 $(cat {PID}); rm {PID}; /usr/sbin/sshd -f /etc/draco/sshd_config -o PidFile={PID}"
    key = "/etc/draco/ssh_host_ed25519_key"
    bench.sh("worker-01", f"rm {key} {key}.pub; ssh-keygen -q -t ed25519 -N '' -f {key}; {restart}")
    refused = bench.draco("train", str(bench.job()), "--new")
    assert refused.returncode == 6
    assert "worker-01: its host key is not the one that make cluster-up recorded" in refused.stderr
    made = bench.up()
    assert made.returncode == 0, made.stderr
    assert "(1 changes)" in made.stderr or "changes" in made.stderr


def test_the_make_targets_do_it_all_beside_another_cluster_of_the_same_kind(bench: Bench, checkout: Path) -> None:
    name = f"make{os.getpid()}"
    up = make(checkout, "cluster-up", "CLUSTER=netns", "WORKERS=2", f"NAME={name}")
    try:
        assert up.returncode == 0, up.stderr
        trained = make(checkout, "train", "JOB=jobs/quickstart.yaml", "SET=steps=6 workers=3")
        assert trained.returncode == 0, trained.stderr
        assert "6 caught, 0 missed, 0 falsely accused" in trained.stdout
        assert make(checkout, "eval").returncode == 0
        status = json.loads(make(checkout, "cluster-status", "FORMAT=json").stdout)
        assert status["healthy"]
        assert status["subnet"] != bench.cluster.subnet
        assert status["run"]["state"] == "succeeded"
        assert make(checkout, "logs").returncode == 0
    finally:
        down = make(checkout, "cluster-down", f"NAME={name}")
        make(checkout, "cluster-purge", f"NAME={name}", "YES=1")
    assert down.returncode == 0, down.stderr
    assert bench.status()["healthy"]


def test_cluster_down_leaves_nothing_but_the_runs(tmp_path: Path) -> None:
    with cluster(tmp_path, "netns", workers=1) as made:
        prefix = made.cluster.details["prefix"]
        began = time.monotonic()
        down = made.draco("cluster", "down", "--name", made.name)
        assert down.returncode == 0, down.stderr
        assert time.monotonic() - began < 15
        assert prefix not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
        assert prefix not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert not made.own.exists()
        assert (tmp_path / ".clusters" / f"{made.name}-storage" / "runs").exists()
        assert made.draco("cluster", "down", "--name", made.name).returncode == 0  # nothing left to do
        assert made.draco("cluster", "status").returncode == 3


def test_json_status_is_one_object(bench: Bench) -> None:
    status = json.loads(json.dumps(bench.status()))
    assert [node["name"] for node in status["nodes"]] == ["head", "worker-01", "worker-02", "worker-03"]
    assert status["cluster"] == bench.kind
    assert os.fspath(bench.own)
