"""One training run: crops, loop, log, scores and the model file, in a run folder."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.config import TrainConfig
from train.data import FaceSet, load_faces
from train.loop import Step, make_net, predict, training_steps
from vafer.faces import Detector
from vafer.metrics import scores
from vafer.model import AVNet, ModelCard, save_model

LOG_EVERY = 20


def run(
    config: TrainConfig,
    out: Path,
    *,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train as `config` says; returns the model file, `out/model.safetensors`.

    The folder also gets `config.json`, `log.jsonl` (one object a logged step), `scores.json` (after
    each epoch, of both held-out sets) and `last.pt` (the weights so far).
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(config), indent=2, default=str) + "\n")
    detector = Detector(config.detector)
    sets = load_faces(
        config.faces,
        detector,
        config.crop.widened(config.border),
        out / "crops",
        lambda name, done, total: (
            on_notice(f"crops of {name}: {done}/{total}")
            if done % 5000 == 0 or done == total
            else None
        ),
    )
    for faces in sets.values():
        on_notice(f"{faces.name}: {len(faces)} faces, {faces.n_detected} aligned by landmarks")

    net = make_net(config)
    held_out: dict[str, dict[str, Any]] = {}
    with (out / "log.jsonl").open("w") as log:
        for step in training_steps(net, [sets["fer_train"], sets["lfw_train"]], config):
            if step.number % LOG_EVERY == 0:
                _log(log.write, step)
            if step.last_of_epoch:
                held_out = {n: _score(net, sets[n], config) for n in ("fer_test", "lfw_test")}
                (out / "scores.json").write_text(json.dumps(held_out, indent=2) + "\n")
                torch.save(net.state_dict(), out / "last.pt")
                log.flush()
                on_notice(f"epoch {step.epoch}: {_one_line(held_out)}")
    card = ModelCard(
        name=out.name,
        backbone=config.backbone,
        pool=config.pool,
        crop=config.crop,
        training={
            "sets": {n: {"faces": len(s), "aligned": s.n_detected} for n, s in sets.items()},
            "detector_sha256": detector.sha256,
            "labels": "norms of the expression (Russell & Mehrabian 1977), one point a class",
            "procedure": {
                k: v for k, v in asdict(config).items() if k not in ("faces", "detector", "crop")
            },
        },
        metrics=held_out,
        licence="Apache-2.0",
    )
    path = out / "model.safetensors"
    save_model(path, net, card, dtype=torch.float16)
    return path


def _log(write: Callable[[str], object], step: Step) -> None:
    entry = {"step": step.number, "loss_av": step.loss_av.item(), "lr": step.learning_rate}
    write(json.dumps(entry) + "\n")


def _score(net: AVNet, faces: FaceSet, config: TrainConfig) -> dict[str, Any]:
    predicted = predict(net, faces, config)
    means = {
        str(name): [round(float(v), 3) for v in predicted[faces.expressions == name].mean(axis=0)]
        for name in np.unique(faces.expressions)
    }
    return {**scores(faces.labels, predicted), "n": len(faces), "mean_by_expression": means}


def _one_line(held_out: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        f"{name} {dimension} PCC {_short(result[dimension]['pcc'])} "
        f"CCC {_short(result[dimension]['ccc'])}"
        for name, result in held_out.items()
        for dimension in ("valence", "arousal")
    )


def _short(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.3f}"
