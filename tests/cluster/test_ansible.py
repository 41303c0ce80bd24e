"""The playbooks parse, every role says what it takes, and nowhere does anyone trust a host that nobody vouched for."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir() if path.is_dir())
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
FILES = [path for path in ANSIBLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]

needs_ansible = pytest.mark.skipif(
    not PLAYBOOK.exists(), reason="Ansible is not installed here: make setup EXTRAS=cluster"
)


def yaml(path: Path):
    return YAML(typ="safe").load(path)


def inventory(folder: Path, runtime: str) -> Path:
    """One head, two workers and nothing behind them."""
    path = folder / "inventory.yml"
    path.write_text(f"""\
all:
  vars:
    draco_cluster: dev
    draco_subnet: 198.51.100.0/24
    draco_runtime: {runtime}
    draco_python: /opt/draco/bin/python
    draco_user: draco
    draco_ssh_port: 2222
    storage_kind: given
  children:
    head: {{hosts: {{head: {{draco_address: 198.51.100.10}}}}}}
    workers: {{hosts: {{worker-01: {{draco_address: 198.51.100.11}}, worker-02: {{draco_address: 198.51.100.12}}}}}}
""")
    return path


def run(*command: object) -> str:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "NO_COLOR": "1"}
    result = subprocess.run(
        [str(word) for word in command], cwd=ANSIBLE, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@needs_ansible
@pytest.mark.parametrize("name", ["site.yml", "down.yml"])
def test_a_playbook_parses(name: str, tmp_path: Path) -> None:
    run(PLAYBOOK, "--syntax-check", "-i", inventory(tmp_path, "host"), name)


@needs_ansible
@pytest.mark.parametrize("runtime", ["node", "host", "container"])
def test_an_inventory_says_where_ranks_run_and_the_rest_follows(runtime: str, tmp_path: Path) -> None:
    """group_vars/all.yml would win over the inventory's own vars, so it may name none of them."""
    ansible = PLAYBOOK.with_name("ansible")
    said = "{{ draco_runtime }} {{ draco_owner }} {{ draco_is_head }} {{ draco_workers | join(',') }}"
    output = run(ansible, "-i", inventory(tmp_path, runtime), "--playbook-dir", ANSIBLE, "all", "-m", "debug",
                 "-a", f"msg='{said}'", "-o")  # fmt: skip
    owner = "10001" if runtime == "container" else "draco"
    for node in ("head", "worker-01", "worker-02"):
        assert f"{runtime} {owner} {node == 'head'} worker-01,worker-02" in output


@pytest.mark.parametrize("role", ROLES)
def test_a_role_says_what_it_is_and_what_it_takes(role: str) -> None:
    folder = ANSIBLE / "roles" / role
    specification = yaml(folder / "meta/argument_specs.yml")["argument_specs"]["main"]
    assert specification["short_description"]
    assert yaml(folder / "meta/main.yml")["galaxy_info"]["description"]
    defaults = yaml(folder / "defaults/main.yml") if (folder / "defaults/main.yml").exists() else {}
    options = specification["options"]
    assert set(defaults) <= set(options)
    for name, option in options.items():
        assert name.startswith((f"{role}_", "draco_")), name
        assert option["description"], name
        value = defaults.get(name)
        if not (isinstance(value, str) and "{{" in value) and not isinstance(value, list | dict):
            assert option.get("default") == value, name


def test_every_role_is_played() -> None:
    text = (ANSIBLE / "site.yml").read_text()
    assert all(re.search(rf"\b{role}\b", text) for role in ROLES)


def test_nothing_logs_in_to_a_host_that_nobody_vouched_for() -> None:
    for path in FILES:
        text = path.read_text()
        assert not re.search(
            r"StrictHostKeyChecking[ =]*(no|off|accept-new)|host_key_checking *= *(no|false)", text, re.I
        )
        assert "/dev/null" not in re.findall(r"UserKnownHostsFile[ =]*(\S+)", text), path
    assert "StrictHostKeyChecking yes" in (ANSIBLE / "roles/trust/templates/ssh_config.j2").read_text()


def test_workers_lose_whatever_only_the_head_may_have() -> None:
    only_head = yaml(ANSIBLE / "roles/trust/defaults/main.yml")["trust_head_only"]
    assert set(only_head) == {"id_ed25519", "id_ed25519.pub", "known_hosts", "ssh_config", "cluster.json"}


@pytest.mark.parametrize("name", ["head.sh", "worker.sh"])
def test_storage_scripts_name_node_folder_and_fault(name: str, tmp_path: Path) -> None:
    script = ANSIBLE / "roles/storage/files" / name
    data, runs = tmp_path / "data", tmp_path / "runs"

    def faults(kind: str = "given") -> list[str]:
        look = ["sh", "-c", script.read_text(), "node-7", kind, str(data), str(runs)]
        return subprocess.run(look, check=True, capture_output=True, text=True).stdout.splitlines()

    assert f"node-7: {data} is missing" in faults()
    data.mkdir()
    runs.mkdir()
    assert faults("local") == []
    assert f"node-7: nothing is mounted on {data}" in faults("mount")
    if name == "worker.sh":
        assert f"node-7: {data} can be written: mount it read-only on workers" in faults()
        (runs / "a-run").touch()
        assert f"node-7: {runs} can be seen: only the head may have it" in faults()
    else:
        assert faults() == []


@pytest.mark.skipif(not shutil.which("sshd", path="/usr/sbin:/usr/bin"), reason="sshd is not installed here")
def test_the_sshd_of_images_and_hosts_accepts_its_configuration(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    text = (ROOT / "images/sshd_config").read_text().replace("/etc/draco/ssh_host_ed25519_key", str(key))
    (tmp_path / "sshd_config").write_text(text)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # as a service manager does at its first start
    result = subprocess.run(["/usr/sbin/sshd", "-T", "-f", tmp_path / "sshd_config"], capture_output=True, text=True)
    if "privilege separation directory" in result.stderr:
        pytest.skip("sshd never ran here: /run/sshd is missing")
    assert result.returncode == 0, result.stderr
    for line in ("port 2222", "passwordauthentication no", "allowtcpforwarding no", "usepam no",
                 "authorizedkeysfile /etc/draco/authorized_keys"):  # fmt: skip
        assert line in result.stdout.lower().splitlines()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module directory_content, imported as Python."""
    intern = sys.intern
    pytest.importorskip("ansible.module_utils.basic", reason="Ansible is not installed here: make setup EXTRAS=cluster")
    sys.intern = intern  # which Ansible replaces for the whole process, and torch compiles with
    spec = importlib.util.spec_from_file_location("directory_content", ANSIBLE / "library/directory_content.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Node:
    """Calls the module as Ansible would, on a folder of this machine."""

    def __init__(self, module: ModuleType, path: Path) -> None:
        self.module, self.path = module, path

    def keep(self, check_mode: bool = False, **wanted: object) -> list[str]:
        """Names of what was changed."""
        parameters = {"path": str(self.path), "owner": None, "keys": [], "files": {}, "absent": [], **wanted}
        ansible = AnsibleStub(parameters, check_mode)
        directory = self.module.Directory(ansible)
        self.public_keys = self.module.keep(directory, parameters)
        return sorted({Path(name).name for name in directory.changes})


class AnsibleStub:
    """What the module needs of AnsibleModule."""

    def __init__(self, params: dict[str, object], check_mode: bool) -> None:
        self.params, self.check_mode = params, check_mode

    def run_command(self, command: list[str], check_rc: bool) -> tuple[int, str, str]:
        done = subprocess.run(command, check=check_rc, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def node(module: ModuleType, tmp_path: Path) -> Node:
    return Node(module, tmp_path / "etc")


def test_a_directory_is_made_once_and_then_left_alone(node: Node) -> None:
    wanted = {"keys": ["key"], "files": {"a": "1\n"}, "absent": ["b"]}
    assert node.keep(**wanted) == ["a", "etc", "key", "key.pub"]
    public = node.public_keys["key"]
    assert re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]{68}", public)
    assert node.keep(**wanted) == []
    assert node.public_keys["key"] == public
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in node.path.iterdir()}
    assert modes == {"a": 0o644, "key": 0o600, "key.pub": 0o644}


def test_a_directory_is_repaired_and_links_are_replaced_not_followed(node: Node, tmp_path: Path) -> None:
    wanted = {"keys": ["key"], "files": {"a": "1\n"}, "absent": ["b", "c"]}
    node.keep(**wanted)
    precious = tmp_path / "precious"
    precious.write_text("2\n")
    (node.path / "a").unlink()
    for name in ("a", "b"):
        (node.path / name).symlink_to(precious)
    (node.path / "c").mkdir()
    (node.path / "key").chmod(0o644)
    (node.path / "key.pub").unlink()
    (node.path / "key.pub").mkdir()
    node.path.chmod(0o777)
    assert node.keep(check_mode=True, **wanted) == ["a", "b", "c", "etc", "key", "key.pub"]
    assert (node.path / "a").is_symlink()
    assert node.keep(**wanted) == ["a", "b", "c", "etc", "key", "key.pub"]
    assert node.keep(**wanted) == []
    assert precious.read_text() == "2\n"
    assert not (node.path / "a").is_symlink()


def test_checking_makes_nothing(node: Node) -> None:
    assert node.keep(check_mode=True, keys=["key"], files={"a": "1\n"}) == ["a", "etc", "key"]
    assert not node.path.exists()
