"""Parameter counts by backbone, method and head policy, from configs alone. `make params` calls this.

Without `methods` those of the paper's grid; any other of conf/method is counted when it is named.

    python -m scripts.params
    python -m scripts.params backbones=roberta_base,minilm methods=lora,propulsion results_dir=results
    python -m scripts.params methods=lora,<your own> --config-dir <folder>

Writes <results_dir>/params/params.{md,csv,tex}; without results_dir=, only the whole report. No weights, no network,
no GPU; methods that read the weights first (shira, adamss, frod, mica) are counted on random ones, and on backbones
below a billion parameters alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from propulsion.harness import configs, params, sheets
from propulsion.harness.errors import UserError, ended, unknown
from propulsion.harness.tables import escape
from propulsion.harness.tables.as_csv import rows_to_csv

KEYS = ("backbones", "methods", "results_dir")
TITLE = "Trainable parameters, counted on models without weights"
EXPLAINED = (
    "A classifier with two labels. Head trained: as peft does it, the whole head is trained and no method "
    "touches it. Head frozen: it stays at its random start, and what the method puts on it (z) is adapter.",
    "`effective`: of `adapter`, those that the outputs can tell apart. A query's scale and its key's act as a product "
    "alone, all embeddings' scales have one common factor that their layer norm does not see, LoRA's B A has r^2 "
    "choices of a basis, and AdaLoRA's P diag(E) Q r^2 + r (propulsion/harness/gauge.py). Of methods without such a "
    "rule no number is given.",
    "`on disk`: the trained tensors in float32. `share`: trained of the model's own parameters.",
    "The last six columns say how many times fewer parameters than LoRA (r=8 on q, v) and than full "
    f"fine-tuning. {'; '.join(f'{way}: {meaning}' for way, meaning in params.WAYS.items())}.",
    "propulsion_linear (the linears alone) and propulsion_code (with the z that the authors' code "
    "puts on DeBERTa's rel_embeddings, where no gradient reaches it) are counted here and cannot be run.",
)


def to_markdown(rows: list[params.Count]) -> str:
    """The whole report."""
    lines = [f"# {TITLE}", "", *(f"- {line}" for line in EXPLAINED)]
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    if headline := params.headline(rows):
        lines += ["", "## The headline", "", *(f"{i}. {line}" for i, line in enumerate(headline, 1))]
    if "roberta_base" in backbones:
        written, _ = params.arithmetic(params.load_backbone("roberta_base"))
        lines += ["", "## One row written out: roberta_base, propulsion, head frozen", ""]
        lines += [f"- {line}" for line in written]
    for backbone in backbones:
        sheet = params.sheet(backbone, rows)
        lines += ["", f"## {escape.markdown(sheet.title)}", "", *sheets.markdown(sheet)]
    return "\n".join(lines) + "\n"


def to_latex(rows: list[params.Count]) -> str:
    """One table for each backbone."""
    lines = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    lines += [f"% {escape.latex(line)}" for line in EXPLAINED]
    for backbone in dict.fromkeys(row.backbone for row in rows):
        lines += ["", *sheets.latex(params.sheet(backbone, rows), f"params-{backbone.replace('_', '-')}")]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Count, write the three files, print the headline. Exit code 2 on bad input."""
    started = time.monotonic()
    try:
        chosen = dict(word.partition("=")[::2] for word in configs.take(arguments))
        for key in chosen:
            if key not in KEYS:
                raise unknown("argument", key, KEYS)
        rows = list(params.count_all(_list(chosen, "backbones"), _list(chosen, "methods")))
        folder = Path(chosen.get("results_dir") or params.default_folder().parent, "params")
        table = rows_to_csv(params.table_rows(rows))
        texts = {"md": to_markdown(rows), "csv": table, "tex": to_latex(rows)}
        part = bool(chosen or configs.flag()) and "results_dir" not in chosen
        paths = [] if part else sheets.write(folder, "params", texts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(rows)} counts in {time.monotonic() - started:.0f} s")
    print(*params.headline(rows), sep="\n")
    if paths:
        print("written:", *paths)
    else:
        print("", texts["md"], "not written, as it is a part: name a folder with results_dir=", sep="\n")
    return 0


def _list(chosen: dict[str, str], key: str) -> list[str] | None:
    return [name for name in chosen[key].split(",") if name] if chosen.get(key) else None


if __name__ == "__main__":
    sys.exit(ended(main))
