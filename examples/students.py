"""A trained network in, smaller ones for several budgets out, without training them anew: its stages are distilled apart, once, side by side.

    python examples/students.py

The digits of scikit-learn; a few minutes. What is written to runs/students is what a run writes: model.onnx, model.py with its weights, ...
"""

import niwaki

task = niwaki.ImageClassification(niwaki.digits())
teacher = niwaki.search(task=task, budget="macs<=400k", minutes=3)
found = niwaki.student_search(teacher.folder, task, "macs<=70%; macs<=50%", tune=niwaki.Recipe(epochs=10, lr=0.02))
for student in found.students:
    print(student.budget, student.figures["costs"]["macs"], "multiply-adds; test accuracy", student.figures["accuracy"])
    print("  relative errors", {name: round(error["relative_mse"], 3) for name, error in student.figures["errors"].items()})
