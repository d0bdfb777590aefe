"""A table in, a small network out: how far diabetes has gone a year later, by ten measurements. Run: python examples/own_table.py [FILE.csv]"""

import sys

from sklearn.datasets import load_diabetes

import niwaki

if len(sys.argv) > 1:
    table = niwaki.read_table(sys.argv[1], target="target")  # CSV, Parquet or npz; see data.* for what else may be said
else:
    measured = load_diabetes(as_frame=False)
    table = niwaki.table(measured.data, measured.target, names=measured.feature_names, kind="regression")
task = niwaki.Tabular(table, metric="rmse")
result = niwaki.search("auto", task, budget="params<=500", out="runs/diabetes", minutes=3)

print(result.metrics["params"], result.metrics["test"]["rmse"])  # of rows never seen, in the units of the target
print(dict(result.architecture))
