"""What becomes of an encoder under the adversarial step, iteration by iteration.

    python bench/collapse.py --root FACES --detector DETECTOR.onnx [--cache DIR] [--iterations 60]

For the paper's loss at the full and a tenth of the rate, the bounded critic, and the loss with a
floor: the mean length of the encoder's features h, the share of dead units (0 for all of 256 faces)
in h and in the regressor's last hidden layer of eight, mean and deviation of the critic's z. When
all eight are dead, every face gets the same prediction, and no gradient of L_AV comes back.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from train.augment import middle
from train.checkpoint import Progress
from train.config import read_config
from train.feed import Feed
from train.loop import make_players, network_input, training_steps
from train.parallel import Team
from train.sets import load_split
from train.steps import Players

VARIANTS = {
    "as written": ["game.adv_weight=1"],
    "as written, critic bounded by a sigmoid": ["game.adv_weight=1", "game.sigmoid=true"],
    "as written, distance to the strong": ["game.adv_weight=1", "game.adv_loss=distance"],
    "a tenth of the rate": ["game.adv_weight=0.1"],
}
SHOWN = (1, 5, 10, 15, 20, 30, 40, 50, 60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--detector", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="of crops, instead of $VAFER_DATA/crops")
    parser.add_argument("--iterations", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    common = [
        f"data.root={arguments.root}",
        f"data.detector={arguments.detector}",
        *([f"data.cache={arguments.cache}"] if arguments.cache else []),
        f"iterations={arguments.iterations}",
    ]
    cpu = torch.device("cpu")
    split = load_split(read_config("ablation/faces", common))
    feed = Feed(split.train, cpu)
    labels = np.concatenate([faces.labels for faces in split.train])
    (crops,) = feed.batches([np.arange(256)])
    print("| variant | iteration | L_adv | L_AV | length of h | dead in h | dead of 8 | z |")
    print("|---|---|---|---|---|---|---|---|")
    for name, changes in VARIANTS.items():
        config = read_config("ablation/faces", [*common, *changes])
        players = make_players(config, 0, cpu, Team())
        images = network_input(middle(crops, config.crop.size), config)
        for step in training_steps(players, feed, labels, config, 0, Progress()):
            if step.number in SHOWN:
                adversarial = step.losses.get("loss_adv", torch.nan)  # where the critic plays
                losses = f"{adversarial:.3g} | {step.losses['loss_av']:.2f}"
                print(
                    f"| {name} | {step.number} | {losses} | {state(players, images)} |", flush=True
                )


@torch.no_grad()
def state(players: Players, images: torch.Tensor) -> str:
    """Columns of the table. It leaves the networks in evaluation mode; training sets its own."""
    assert players.critic is not None
    regressor = players.net.regressor.eval()
    h = players.net.encoder(images)
    z = players.critic.eval()(h)
    last_hidden = regressor[:-1](h)
    dead = [(layer == 0).all(dim=0).float().mean().item() for layer in (h, last_hidden)]
    return (
        f"{h.norm(dim=1).mean():.3g} | {dead[0]:.0%} | {8 * dead[1]:.0f} "
        f"| {z.mean():.2f} ± {z.std(dim=0).mean():.2f}"
    )


if __name__ == "__main__":
    main()
