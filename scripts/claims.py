"""The claims ledger: each claim of the paper, its source, our measurement, the verdict. For `make claims`.

    python -m scripts.claims
    python -m scripts.claims results_dir=results/paper reference=results/reference out=results/claims

Reads the records of one result set (only those of the paper profile count) and the kernels of `make ntk` (those of
every result set, or of the one that is named), writes <out>/claims.{md,csv,tex}.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from propulsion.harness import claims, ledger, references, sheets
from propulsion.harness.errors import UserError, ended, unknown
from propulsion.harness.evidence import unusable
from propulsion.harness.ntk import records as kernels
from propulsion.harness.record import REPOSITORY
from propulsion.harness.tables import load_records
from propulsion.harness.tables.as_csv import rows_to_csv

RESULTS = REPOSITORY / "results"
KEYS = ("results_dir", "reference", "out")


def main(arguments: list[str]) -> int:
    """Judge, write the three files, print one line for each claim. Exit code 2 on bad input."""
    try:
        chosen = dict(word.partition("=")[::2] for word in arguments)
        for key in chosen:
            if key not in KEYS:
                raise unknown("argument", key, KEYS)
        named = chosen.get("results_dir")
        if named and not any(Path(named, part).is_dir() for part in ("runs", "kernels")):
            raise UserError(f"{named} holds no records: name a folder with runs/ or kernels/")
        reference = Path(chosen.get("reference") or RESULTS / "reference")
        records = load_records(chosen.get("results_dir") or RESULTS / "paper")
        own = chosen.get("results_dir")
        out = Path(chosen.get("out") or (Path(own, "claims") if own else RESULTS / "claims"))
        entries = claims.ledger(
            references.read_claims(reference / "claims.csv"),
            references.read_scores(reference / "glue.csv"),
            records,
            kernels=kernels.read(own) if own else kernels.read_all(RESULTS),
        )
        texts = {
            "md": ledger.to_markdown(entries),
            "csv": rows_to_csv([asdict(e) for e in entries]),
            "tex": ledger.to_latex(entries),
        }
        paths = sheets.write(out, "claims", texts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    refused = Counter(reason for record in records if (reason := unusable(record)) is not None)
    for reason, count in sorted(refused.items()):
        print(f"{count} of {len(records)} records do not count: {reason}")
    for entry in entries:
        if not entry.is_score:
            print(f"{entry.verdict:>21}  {entry.statement}")
    print(f"all {len(entries)}: {ledger.tally(entries)}")
    print("written:", *paths)
    return 0


if __name__ == "__main__":
    sys.exit(ended(main))
