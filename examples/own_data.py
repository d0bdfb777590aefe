"""Your own images in, the best network for your budget out. Run: python examples/own_data.py FOLDER [NEW IMAGES] (one sub-folder per class)."""

import sys

import niwaki

images = niwaki.image_folder(sys.argv[1])
task = niwaki.ImageClassification(images, metric="balanced_accuracy")
result = niwaki.search("auto", task, budget=["macs<=1M and params<=100k", "macs<=250k"], out="runs/mine", minutes=15)

print(result.metrics)  # multiply-adds, parameters, accuracy on validation and test
print(dict(result.architecture))  # what was chosen
print(result.model)  # plain torch.nn, trained
for row in niwaki.predict(result.folder / "model.onnx", sys.argv[2:]).rows:  # of new images, in ONNX Runtime, no torch
    print(row.source, row.label, row.probability)
