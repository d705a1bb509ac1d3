"""compose.yaml, as far as it can be checked without Docker: schema, references, and no secrets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.artifacts import REPORT_URL
from mixer.server import IN_CONTAINER
from stages.contracts.stopping import SAVING_S
from tests.containers.dockerfile import read_dockerfile

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker" / "compose.yaml"
TEXT = FILE.read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
VARIABLE = re.compile(r"\$\{([A-Z_]+)(:[-?])?([^}]*)\}")


def settings() -> dict[str, str]:
    """Return what .env.example sets."""
    lines = (ROOT / "docker" / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolate(text: str, values: dict[str, str]) -> str:
    """Put values into `${NAME:-default}` and `${NAME:?message}`, as Compose does."""
    return VARIABLE.sub(
        lambda match: (
            values.get(match[1], "") or (match[3] if match[2] == ":-" else f"<{match[1]}>")
        ),
        text,
    )


def test_the_file_follows_the_compose_specification() -> None:
    """Compose refuses an unknown key, and here there is no Compose to do it."""
    program = str(Path(sys.executable).parent / "check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_services_are_those_of_the_readme() -> None:
    """Workers and mixers have a profile of their own, and nothing else has one."""
    assert sorted(SERVICES) == [
        "mixer-cpu", "mixer-gpu", "postgres", "report", "server", "worker-cpu", "worker-gpu",
    ]  # fmt: skip
    profiles = {name: each["profiles"] for name, each in SERVICES.items() if "profiles" in each}
    assert profiles == {
        "mixer-cpu": ["mixer-cpu"],
        "mixer-gpu": ["mixer-gpu"],
        "worker-cpu": ["cpu"],
        "worker-gpu": ["gpu"],
    }


def test_what_a_service_waits_for_exists_and_can_become_healthy() -> None:
    """A condition on a service without a health check, or with a profile, never comes true."""
    waited = []
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            waited.append(name)
            assert wait == {"condition": "service_healthy"}
            assert "test" in SERVICES[other]["healthcheck"]
            assert "profiles" not in SERVICES[other]
    assert sorted(waited) == ["server", "worker-cpu", "worker-gpu"]
    assert all("healthcheck" in service for service in SERVICES.values())


def test_every_volume_network_and_secret_is_declared_and_used() -> None:
    """A name that is nowhere declared stops Compose; one that nobody uses is left over."""
    used: dict[str, set[str]] = {"volumes": set(), "networks": {"default"}, "secrets": set()}
    for service in SERVICES.values():
        sources = (interpolate(each, {}).split(":")[0] for each in service.get("volumes", []))
        used["volumes"] |= set(sources)
        used["networks"] |= set(service.get("networks", []))
        used["secrets"] |= set(service.get("secrets", []))
    assert used == {kind: set(COMPOSE[kind]) for kind in used}


def test_ports_are_on_this_machine_alone_and_all_different() -> None:
    """Prefect's API, report and mixer know no users: nothing of them may be seen from elsewhere."""
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    assert published.pop("mixer-gpu") == published["mixer-cpu"]
    assert sorted(published) == ["mixer-cpu", "report", "server"]
    for (port,) in published.values():
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", interpolate(port, {})), port
    assert len({interpolate(port, {}).split(":")[1] for (port,) in published.values()}) == 3
    assert not any("network_mode" in service for service in SERVICES.values())


def test_the_database_is_reached_by_the_server_alone() -> None:
    """Its network goes nowhere else, and it has no port outside."""
    assert COMPOSE["networks"]["database"] == {"internal": True}
    inside = [name for name, each in SERVICES.items() if "database" in each.get("networks", [])]
    assert inside == ["postgres", "server"]
    assert "ports" not in SERVICES["postgres"]
    environment = SERVICES["server"]["environment"]
    assert environment["PREFECT_SERVER_DATABASE_HOST"] in SERVICES
    for ours, theirs in (("USER", "USER"), ("NAME", "DB"), ("PASSWORD", "PASSWORD")):
        given = SERVICES["postgres"]["environment"][f"POSTGRES_{theirs}"]
        assert environment[f"PREFECT_SERVER_DATABASE_{ours}"] == given


def test_every_variable_is_explained_with_its_default() -> None:
    """.env.example is all that a person has to read, and copying it changes nothing."""
    found = {match[1]: match for match in VARIABLE.finditer(TEXT)}
    assert sorted(found) == sorted(settings())
    for name, value in settings().items():
        defaults = {match[3] for match in VARIABLE.finditer(TEXT) if match[1] == name}
        if found[name][2] == ":-":
            assert defaults == {value}, name
        else:
            assert found[name][2] == ":?", name
            assert value == "", name
    example = (ROOT / "docker" / ".env.example").read_text(encoding="utf-8")
    offered = re.findall(r"^# ([A-Z_]+)=", example, re.MULTILINE)
    passed = [name for name, value in SERVICES["worker-gpu"]["environment"].items() if not value]
    assert "CUDA_VISIBLE_DEVICES" in passed
    assert sorted(offered) == sorted(passed)  # empty, they would say something else than absent
    ignored = subprocess.run(["git", "check-ignore", "docker/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_no_secret_is_written_down() -> None:
    """Passwords come from .env, which git ignores; the token from a file that is mounted."""
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|KEY", name) and not name.endswith("_PATH"):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]*\}", value), name
    assert not re.search(r"hf_[A-Za-z0-9]{20}|postgres(ql)?(\+asyncpg)?://", TEXT)
    assert (ROOT / "docker" / interpolate(COMPOSE["secrets"]["hf_token"]["file"], {})).is_file()
    assert (ROOT / "docker" / "no-hf-token").read_bytes() == b""


@pytest.mark.parametrize("kind", ["worker", "mixer"])
def test_two_of_a_kind_differ_in_image_and_gpu_alone(kind: str) -> None:
    """One definition: a volume or a token that only one of the two has would be a surprise."""
    own = {"profiles", "image", "build", "deploy", "shm_size"}
    cpu, gpu = (
        {key: value for key, value in SERVICES[name].items() if key not in own}
        for name in (f"{kind}-cpu", f"{kind}-gpu")
    )
    assert cpu == gpu
    device = SERVICES[f"{kind}-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_the_worker_says_where_the_report_is_served() -> None:
    """The link in Prefect's page is one for a browser on this machine."""
    for values in ({}, {"REPORT_PORT": "9"}):
        url = interpolate(SERVICES["worker-cpu"]["environment"][REPORT_URL], values)
        (port,) = (interpolate(each, values) for each in SERVICES["report"]["ports"])
        assert url == f"http://{port.rpartition(':')[0]}"


def test_a_training_has_time_to_save_its_state() -> None:
    """Docker kills what has not ended by then."""
    assert SERVICES["worker-cpu"]["stop_grace_period"] == "17m"
    assert SAVING_S + 60 < 17 * 60


def test_the_mixer_is_alone_and_changes_nothing_of_a_run() -> None:
    """It listens on its whole network, so nobody else is in that; what it writes has a volume."""
    mixer = SERVICES["mixer-cpu"]
    assert mixer["environment"][IN_CONTAINER] == "1"
    assert TEXT.count(IN_CONTAINER) == 1
    inside = {name for name, each in SERVICES.items() if "mixer" in each.get("networks", [])}
    assert (mixer["networks"], inside) == (["mixer"], {"mixer-cpu", "mixer-gpu"})
    volumes = [interpolate(each, {}).split(":") for each in mixer["volumes"]]
    assert [path for _, path, *mode in volumes if mode != ["ro"]] == ["/locks", "/mixes"]
    assert mixer["command"][-2:] == ["--out", "/mixes"]
    worker = SERVICES["worker-cpu"]["command"]
    assert f"--clone={mixer['working_dir']}" in worker
    for path in ("/locks", "/mixes"):
        assert path in (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_images_are_ours_or_pinned_and_targets_exist() -> None:
    """What is pulled cannot change under us; what is built is a target of the Dockerfile."""
    _, stages = read_dockerfile(ROOT / "docker" / "Dockerfile")
    targets = set()
    for service in SERVICES.values():
        if "build" in service:
            build = service["build"]
            assert service["image"] == f"blocklens:{build['target']}"
            assert (FILE.parent / build["context"] / build["dockerfile"]).is_file()
            targets.add(build["target"])
        else:
            assert re.fullmatch(r"[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", service["image"])
    assert targets == {"cpu", "cuda"}
    assert targets <= set(stages)


def test_our_containers_can_do_little() -> None:
    """A read-only root, no capabilities, no way to more of them."""
    for name, service in SERVICES.items():
        if name != "postgres":
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert "privileged" not in service
