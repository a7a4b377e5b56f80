"""The set-up: make targets, the lock of versions, and an installation that is made once and never half."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
MAKE = shutil.which("make") or ""
needs_make = pytest.mark.skipif(not MAKE, reason="no make on this machine")


def targets() -> list[str]:
    """Every target of the Makefile that has a description."""
    return re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make there, free of what the calling make and shell hand down."""
    names = ("MAKE", "MFLAGS", "PROFILE", "TASKS", "METHODS", "BACKBONES", "SEEDS", "DATA_DIR", "RESULTS_DIR")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(names) and k not in ("ARGS", "PY")}
    return subprocess.run(
        [MAKE, *arguments], cwd=folder, env=clean | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the set-up files and a Python that only notes what it is asked to do, in `log`."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "fakepython"
    fake.write_text(f"""#!/bin/sh
version=${{FAKE_VERSION:-3.11.0}}
case "$1" in
  -V) echo "Python $version"; exit 0 ;;
  -c) exec {sys.executable} -c "import sys; sys.version_info = tuple(map(int, '$version'.split('.'))); $2" ;;
esac
echo "$@" >> {tmp_path}/log
case "$*" in
  "-m venv "*) mkdir -p .venv/bin && cp {tmp_path}/fakepython .venv/bin/python ;;
  *"-r requirements.lock") exit ${{FAKE_PIP:-0}} ;;
esac
""")
    fake.chmod(0o755)
    return tmp_path


def log(clone: Path) -> list[str]:
    """What was asked of Python since the last look."""
    file = clone / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


@needs_make
def test_help_is_the_default_and_lists_every_target() -> None:
    done = make(ROOT)
    assert done.returncode == 0
    assert done.stdout == make(ROOT, "help").stdout
    listed = re.findall(r"^  ([a-z-]+)  +\S", done.stdout, flags=re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony
    assert listed == phony[1].split()[:-1]
    assert listed == targets()
    assert {"help", "reproduce-glue", "test", "tables", "lint"} <= set(listed)
    for variable in (
        "PROFILE",
        "TASKS",
        "METHODS",
        "BACKBONES",
        "SEEDS",
        "DATA_DIR",
        "RESULTS_DIR",
        "ARGS",
        "PY",
    ):
        assert f"{variable}=" in done.stdout


@needs_make
@pytest.mark.parametrize("target", targets())
def test_every_target_has_its_command(target: str, clone: Path) -> None:
    done = make(clone, "-n", target)
    assert done.returncode == 0, done.stderr
    for module in re.findall(r"-m (scripts\.\w+)", done.stdout):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@needs_make
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "suite=glue profile=auto"),
        (["PROFILE=mini", "TASKS=rte mrpc", "SEEDS=0,1"], "suite=glue profile=mini tasks=rte,mrpc seeds=0,1"),
        (
            ["METHODS=lora", "BACKBONES=minilm", "DATA_DIR=/some folder", "RESULTS_DIR=out"],
            "suite=glue profile=auto methods=lora backbones=minilm 'data_dir=/some folder' 'results_dir=out'",
        ),
        (["ARGS=a.b=1 c=2"], "suite=glue profile=auto a.b=1 c=2"),
    ],
)
def test_only_variables_that_are_set_are_handed_over(arguments: list[str], expected: str, clone: Path) -> None:
    done = make(clone, "-n", "reproduce-glue", *arguments)
    assert done.stdout.splitlines()[-1].strip() == f".venv/bin/python -m scripts.reproduce {expected}"


@needs_make
def test_tables_take_a_folder_or_a_profile_or_all(clone: Path) -> None:
    def last(*arguments: str) -> str:
        return make(clone, "-n", "tables", *arguments).stdout.splitlines()[-1].strip()

    assert last() == ".venv/bin/python -m scripts.tables"
    assert last("PROFILE=mini") == ".venv/bin/python -m scripts.tables 'results_dir=results/mini'"
    assert last("RESULTS_DIR=x y") == ".venv/bin/python -m scripts.tables 'results_dir=x y'"


@needs_make
def test_set_up_happens_once_and_again_when_the_lock_changes(clone: Path) -> None:
    assert make(clone, "PY=./fakepython", "tables").returncode == 0
    first = log(clone)
    assert first[0].startswith("-m venv")
    assert "-m pip install -r requirements.lock" in first
    assert first[-1] == "-m scripts.tables"
    assert make(clone, "PY=./fakepython", "tables").returncode == 0
    assert log(clone) == ["-m scripts.tables"]
    assert make(clone, "tables").returncode == 0  # without PY the .venv that is there is taken as it is
    assert log(clone) == ["-m scripts.tables"]
    later = (clone / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(clone / "requirements.lock", (later, later))
    assert make(clone, "PY=./fakepython", "tables").returncode == 0
    assert "-m pip install -r requirements.lock" in log(clone)


@needs_make
def test_an_installation_that_broke_off_is_made_again(clone: Path) -> None:
    broken = make(clone, "PY=./fakepython", "tables", FAKE_PIP="1")
    assert broken.returncode != 0
    assert not (clone / ".venv" / ".installed").exists()
    assert "-m scripts.tables" not in log(clone)
    assert make(clone, "PY=./fakepython", "tables").returncode == 0
    assert "-m pip install -r requirements.lock" in log(clone)


@needs_make
def test_another_python_makes_the_environment_again(clone: Path) -> None:
    make(clone, "PY=./fakepython", "tables")
    log(clone)
    other = clone / "other"
    other.write_text((clone / "fakepython").read_text().replace("3.11.0", "3.12.0"))
    other.chmod(0o755)
    assert make(clone, "PY=./other", "tables").returncode == 0
    assert log(clone)[0] == "-m venv --clear .venv"


@needs_make
@pytest.mark.parametrize("version", ["3.10.9", "3.14.0", "2.7.18"])
def test_an_unfit_python_is_refused_in_one_line(version: str, clone: Path) -> None:
    done = make(clone, "PY=./fakepython", "test", FAKE_VERSION=version)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    wanted = f"Python 3.11, 3.12 or 3.13 is needed; './fakepython' is: Python {version}."
    assert said == [f"{wanted} Type: make PY=python3.12 test"]
    assert not (clone / ".venv").exists()


def test_lock_has_exact_versions_and_nothing_else() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!]+", line) for line in LOCK)
    assert sorted(LOCK, key=str.lower) == LOCK
    names = [canonicalize_name(line.split("==")[0]) for line in LOCK]
    assert len(names) == len(set(names))
    assert "torch==2.13.0" in LOCK
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton")) or name == "propulsion"]


def test_lock_covers_and_satisfies_every_dependency() -> None:
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in LOCK)}
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"harness", "mini", "dev", "quantized", "slurm"}
    wanted = [*PROJECT["dependencies"]]
    for extra in ("harness", "mini", "dev", "slurm"):
        wanted += extras[extra]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_base_dependencies_are_what_the_tuner_imports() -> None:
    allowed = {Requirement(text).name for text in PROJECT["dependencies"]} | {"propulsion", "__future__"}
    for file in [ROOT / "propulsion" / "__init__.py", *(ROOT / "propulsion" / "tuner").rglob("*.py")]:
        for name in re.findall(r"^\s*(?:from|import) ([A-Za-z_]\w*)", file.read_text(), flags=re.MULTILINE):
            assert name in allowed or name in sys.stdlib_module_names, f"{file}: {name}"


def test_supported_pythons() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_ci_makes_a_fresh_environment_and_runs_the_suite(clone: Path) -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    (clone / ".ci").mkdir()
    shutil.copy(script, clone / ".ci" / "run")
    (clone / ".venv").mkdir()
    (clone / ".venv" / "old").touch()
    bin_folder = clone / "bin"
    bin_folder.mkdir()
    fake = bin_folder / "make"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {clone}/log\ntest "$1" != "$FAIL"\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    assert subprocess.run([clone / ".ci" / "run"], env=environment, check=False).returncode == 0
    assert log(clone) == ["lint", "test"]
    assert not (clone / ".venv").exists()
    for target in ("lint", "test"):
        failed = subprocess.run([clone / ".ci" / "run"], env=environment | {"FAIL": target}, check=False)
        assert failed.returncode != 0


def test_readme_names_the_two_commands_and_every_target() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in targets()[1:]:
        assert f"make {target}" in text
    assert text.index("make reproduce-glue") < text.index("make test")
