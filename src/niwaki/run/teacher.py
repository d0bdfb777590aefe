"""Teachers from words: the folder of a run, an ONNX file, or code that makes the module with weights in safetensors. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from niwaki.device.onnx_session import session_of
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.net.text import from_json
from niwaki.nn.build import build
from niwaki.run.model import ModelError, load_model
from niwaki.run.search import AnyTask, plain
from niwaki.task.classify import ImageClassification
from niwaki.train.distill import Teacher, check_teaches, teacher_of

RUN_FILES = ("architecture.json", "model.safetensors")


def load_teacher(
    word: str, task: AnyTask, *, weights: str | Path | None = None, temperature: float = 4.0, weight: float = 1.0, device: str = "cpu"
) -> Teacher:
    """The teacher that `word` names, checked on two examples of the task.

    word: the folder of a finished run; a file `.onnx`, of ours or one that takes normalised images, float32 (B, C, H, W); or a model as every
    command takes it ("file.py:attr", a name in the zoo), with its weights in the safetensors file `weights`.
    """
    if Path(word).is_dir():
        _refuse_weights(word, weights)
        teacher = _of_run(Path(word), task)
    elif word.endswith(".onnx"):
        _refuse_weights(word, weights)
        teacher = _of_onnx(Path(word), task)
    else:
        teacher = teacher_of(_of_code(word, weights))
    teacher = replace(teacher, temperature=temperature, weight=weight)
    check_teaches(teacher, task, device)
    return teacher


def load_weights_(module: nn.Module, path: str | Path) -> None:
    """Sets parameters and buffers of `module` from a safetensors file that has exactly these. Raises ModelError."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path} is no .safetensors file; other forms would be unpickled, which runs what is in them. Save the weights by "
            "safetensors.torch.save_file(module.state_dict(), ...)"
        )
    try:
        state = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state] + [
        f"{name} is not the module's" for name in state if name not in own
    ]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise ModelError(f"{path} does not fit the module: {'; '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''}")
    module.load_state_dict(state)


def _refuse_weights(word: str, weights: str | Path | None) -> None:
    if weights is not None:
        raise ModelError(f"the teacher {word} brings its weights along; {weights} is one file too many")


def _of_code(word: str, weights: str | Path | None) -> nn.Module:
    found = load_model(word)
    if isinstance(found, Network):
        if len(space_of(found)):
            raise ModelError(f"{word} has choices; a teacher is one network, such as the folder of the run that chose it")
        if weights is None:
            raise ModelError(f"{word} describes a network without weights; name a safetensors file that has them (train.teacher_weights)")
        found = build(found)
    assert isinstance(found, nn.Module)  # an .onnx file goes elsewhere
    if weights is not None:
        load_weights_(found, weights)
    return found


def network_of_run(folder: Path, task: AnyTask) -> tuple[Network, nn.Module, dict[str, Any]]:
    """What a run delivered: the description, the trained module, and how its examples are stored and normalised. Raises ModelError where the
    task's classes are others."""
    if missing := [name for name in RUN_FILES if not (folder / name).is_file()]:
        raise ModelError(f"{folder} has no {' and no '.join(missing)}; a teacher is the folder of a finished run, or of one of its budgets")
    card = json.loads((folder / "architecture.json").read_text("utf-8"))
    network = from_json(card["network"])
    module = build(network)
    load_weights_(module, folder / "model.safetensors")
    _check_classes(card["class_names"], str(folder), task)
    return network, module, card["preprocessing"]


def _of_run(folder: Path, task: AnyTask) -> Teacher:
    """The network that a run delivered; where its data were normalised by other means than the task's, with that put right."""
    _, module, form = network_of_run(folder, task)
    if isinstance(plain(task), ImageClassification) and "mean" in form:
        module = _renormalised(module, form, plain(task))
    return teacher_of(module)


class _Renormalised(nn.Module):
    """`module` on inputs that were normalised by another mean and deviation: it is given scale * x + shift, (C, 1, 1) each."""

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x * self.scale + self.shift)


def _renormalised(module: nn.Module, form: dict[str, Any], task: Any) -> nn.Module:
    mean, std = task.normalisation
    theirs_mean, theirs_std = (torch.tensor(form[name], dtype=torch.float32) for name in ("mean", "std"))
    if len(theirs_mean) != len(mean):
        raise ModelError(f"the run's images have {len(theirs_mean)} channels, those of {task.source} {len(mean)}")
    if torch.allclose(mean, theirs_mean) and torch.allclose(std, theirs_std):
        return module
    scale, shift = std / theirs_std, (mean - theirs_mean) / theirs_std
    return _Renormalised(module, scale.view(-1, 1, 1), shift.view(-1, 1, 1))


def _of_onnx(path: Path, task: AnyTask) -> Teacher:
    """A model in ONNX Runtime. One of ours takes images as they are stored: batches are put back on the scale of the data first."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    data = path.with_name(f"{path.name}.data")  # where torch.onnx puts the weights of a model
    content = path.read_bytes() + (data.read_bytes() if data.is_file() else b"")
    try:
        session = session_of(str(path), threads=1)
    except Exception as error:  # onnxruntime's own kinds have no common base below Exception
        raise ModelError(f"{path} cannot be loaded by ONNX Runtime: {str(error).strip().splitlines()[0]}") from error
    if len(given := session.get_inputs()) != 1:
        raise ModelError(f"{path} has {len(given)} inputs; a teacher takes one")
    properties = session.get_modelmeta().custom_metadata_map
    ours = "preprocessing" in properties
    base = plain(task)
    if ours and not isinstance(base, ImageClassification):
        raise ModelError(f"{path} takes rows as stored, which batches of a table cannot be turned back into; give the folder of its run")

    if ours:
        _check_classes(json.loads(properties["class_names"]), str(path), task)

    def logits(inputs: Tensor) -> Tensor:
        array = inputs.detach().cpu().numpy()
        array = _as_stored(array, base) if ours else np.ascontiguousarray(array)
        try:
            (answer, *_) = session.run(None, {given[0].name: array})
        except Exception as error:
            raise ValueError(str(error).strip().splitlines()[0]) from error
        return torch.from_numpy(np.asarray(answer)).to(inputs.device)

    return Teacher(logits, hashlib.sha256(content).hexdigest()[:16])


def _check_classes(names: list[str], where: str, task: AnyTask) -> None:
    """Logits are compared place by place: the same classes in another order would teach nonsense."""
    base = plain(task)
    own = list(base.images.class_names if isinstance(base, ImageClassification) else base.table.class_names or ())
    if names != own:
        raise ModelError(
            f"{where} tells apart {', '.join(names) or 'no classes'}; the classes of {task.source} are {', '.join(own) or 'none'}"
        )


def _as_stored(inputs: np.ndarray, task: Any) -> np.ndarray:
    """Normalised images (B, C, H, W) as the data set stores them: (B, H, W[, C]), of its type; what augmentation made lies within its range."""
    mean, std = (one.numpy().reshape(1, -1, 1, 1) for one in task.normalisation)
    images = np.moveaxis(inputs * std + mean, 1, -1)
    stored = task.images.images
    images = images if stored.ndim == 4 else images[..., 0]
    return np.clip(np.rint(images), 0, 255).astype(np.uint8) if stored.dtype == np.uint8 else images.astype(stored.dtype)
