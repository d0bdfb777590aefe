"""The public check on every model, as a table: python tests/models/table.py [--full] [--no-onnx] [NAME ...]"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import FULL, SMALL
from niwaki.run.claims import grid
from niwaki.testing.adoption import examine

COLUMNS = (
    "model", "parameters", "MACs", "groups", "searchable", "left as it is", "equal", "any order", "training", "cut MACs", "= counted",
    "ONNX", "seconds",
)  # fmt: skip


def row(name, model, onnx):
    module, began = model.make(), time.process_time()
    try:
        found = examine(module, model.example(), onnx=onnx)
    except Exception as error:
        return (name, *[""] * (len(COLUMNS) - 3), f"{type(error).__name__}: {error}"[:300], f"{time.process_time() - began:.1f}")
    params = sum(parameter.numel() for parameter in module.parameters())
    cut, worst = found.cut, max(found.differences.values())
    same = "=" if cut.predicted_macs == cut.counted_macs else f"**{cut.counted_macs:,}**"
    exported = {True: "equal", False: f"**{cut.why}**", None: cut.why or "-"}[cut.onnx_equal]
    return (
        name, f"{params:,}", f"{found.macs:,}" + ("" if found.macs == found.counted_macs else f" **{found.counted_macs:,}**"),
        str(len(found.adopted.groups)), f"{found.searchable_share:.0%}", ", ".join(found.adopted.opaque), f"{worst:.0e}", f"{found.permuted:.0e}",
        "random" if found.trained is None else f"{found.trained:.0e}", f"{cut.predicted_macs / max(1, found.macs):.0%}", same, exported,
        f"{time.process_time() - began:.1f}",
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--full", action="store_true", help="the published sizes too")
    parser.add_argument("--no-onnx", action="store_true")
    given = parser.parse_args()
    models = {**SMALL, **(FULL if given.full else {})}
    names = given.names or list(models)
    print("\n".join(grid(COLUMNS, ())), flush=True)
    for name in names:
        print(grid(COLUMNS, [row(name, {**SMALL, **FULL}[name], not given.no_onnx)])[-1], flush=True)


if __name__ == "__main__":
    main()
