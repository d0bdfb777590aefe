"""Your own network, trained once for every budget: three of its members and a cascade of them as ONNX files."""

import torch
from my_model import net

import niwaki

task = niwaki.ImageClassification(niwaki.digits())
network, weights = niwaki.adopt(net(), torch.zeros(2, *task.input_shape), narrowest=3 / 8)  # its widths are choices now
trained = niwaki.train_once(network, task, weights=weights, epochs=20, out="runs/train-once")
files = []
for budget in ("macs<=25%", "macs<=50%", "macs<=100%"):
    member, module = trained.best(budget)  # plain PyTorch
    files.append(f"runs/train-once/{budget.strip('macs<=%')}.onnx")
    trained.export(member, files[-1])
print(niwaki.cascade(files, "accuracy>=largest-1%", task=task, part="validation", out="runs/train-once"))
