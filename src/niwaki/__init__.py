"""niwaki: find, train and ship the best neural network for a hardware budget.

>>> import niwaki
>>> result = niwaki.search(budget="macs<=100k")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "niwaki.run.api": ("Result", "resume", "search", "write_report", "export_run"),
    "niwaki.run.model": ("profile",),
    "niwaki.run.train_once": ("TrainedOnce", "train_once"),
    "niwaki.run.cascade": ("cascade",),
    "niwaki.run.shrink": ("shrink",),
    "niwaki.run.explaining": ("explain_run",),
    "niwaki.run.bench": ("bench", "write_comparison"),
    "niwaki.run.describe": ("describe_space",),
    "niwaki.run.reproduce": ("reproduce",),
    "niwaki.run.student_search": ("student_search",),
    "niwaki.space.choice": ("Choice", "SpaceError", "choose"),
    "niwaki.space.size": ("in_channels", "maximum", "minimum", "round8"),
    "niwaki.net.control": ("Add", "Chain", "Concat", "Graph", "Match", "Network", "Node", "OneOf", "Repeat", "Residual"),
    "niwaki.net.layer": (
        "Activation", "BatchNorm", "ChannelShuffle", "Conv", "Dropout", "Embed", "Flatten", "GlobalPool", "Identity", "Interleave", "Linear", "Opaque",
        "Pick", "Pool", "SqueezeExcite", "Subsample", "Zero",
    ),
    "niwaki.net.block": ("Columns", "classifier", "conv_bn_act", "depthwise", "encoder", "maybe", "mbconv"),
    "niwaki.net.place": ("ShapeError", "fix", "place", "space_of"),
    "niwaki.net.edit": ("decode", "edit", "encode", "expose", "restrict"),
    "niwaki.net.text": ("diff", "from_json", "to_json"),
    "niwaki.net.picture": ("picture",),
    "niwaki.net.program": ("distinct",),
    "niwaki.cost.count": ("count_activations", "count_macs", "count_params", "count_peak_activation", "count_size_bytes"),
    "niwaki.factor.factor": ("Cost", "Factor", "Limit"),
    "niwaki.factor.within": ("within",),
    "niwaki.factor.expect": ("expected",),
    "niwaki.factor.quantile": ("quantiles",),
    "niwaki.nn.build": ("build",),
    "niwaki.nn.supernet": ("Supernet", "extract", "supernet"),
    "niwaki.distribution.distribution": ("Distribution",),
    "niwaki.distribution.independent": ("Independent",),
    "niwaki.distribution.tree": ("Tree",),
    "niwaki.nn.importance": ("important_first",),
    "niwaki.adoption.describe": ("adopt",),
    "niwaki.task.classify": ("ImageClassification",),
    "niwaki.task.embedded": ("digits",),
    "niwaki.task.folder": ("image_folder",),
    "niwaki.task.images": ("arrays", "npz"),
    "niwaki.task.table": ("read_table", "table"),
    "niwaki.task.tabular": ("Tabular",),
    "niwaki.objective": ("Objective",),
    "niwaki.train.rates": ("Rated", "RateObjective", "parse_rate"),
    "niwaki.train.recipe": ("Recipe",),
    "niwaki.zoo.mlp": ("mlp",),
    "niwaki.zoo.mobile": ("mobile",),
    "niwaki.evaluate.proxy": ("ZeroCost",),
    "niwaki.deploy.predict": ("predict",),
    "niwaki.deploy.multi_hash": ("compress", "load_compressed", "materialise", "save_compressed"),
    "niwaki.explain.hierarchy": ("Hierarchy", "ancestor_tree", "flat_tree", "induced_tree", "labelled_tree", "nested_tree", "random_tree"),
    "niwaki.explain.nbdt": ("NeuralTree", "decision_paths", "neural_tree", "tune_tree"),
    "niwaki.deploy.committee": ("Committee", "at_resolutions"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use: `import niwaki` alone loads neither torch nor anything else that is heavy."""
    if name not in _HOME_OF:
        raise AttributeError(f"niwaki has no {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
