"""Training loop of generators that learn: saves its state, continues from it, and trains each model once."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from boxtwin.datasets.levels import measure_levels
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock, write_bytes_atomically
from boxtwin.synthesis.arrays import Boxes, Mask, padded_to, planes_of
from boxtwin.weights import are_usable, load_state, save_state

log = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
STATE_FILE = "training_state.pt"
# A state of a few megabytes takes some hundredths of a second to save: little beside 15 s, and 15 s are little to lose.
SECONDS_BETWEEN_SAVES = 15.0
LOSSES_FILE = "losses.json"
CHECKS, DRAWS = 10, 8  # how often `HeldOut` measures, and over how many crops, always the same ones
MEMORISES = 0.05  # the loss of the held-out image may end above its lowest by this share of its first

# Which pixels of a training image are to be painted.
Repaint = Callable[[Boxes, int, int], Mask]


def train_once(folder: Path, train: Callable[[], None]) -> Path:
    """The file of weights in ``folder``; ``train`` writes it if it is missing or damaged.

    Processes that need the same weights wait for each other.
    """
    weights = folder / WEIGHTS_FILE
    with exclusive_lock(folder / ".lock", f"another process is training {folder}; waiting for it"):
        if not are_usable(weights):
            train()
            (folder / STATE_FILE).unlink(missing_ok=True)
    return weights


def train_steps(
    weights: Iterable[nn.Parameter],
    loss_of: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    rng: torch.Generator,
    folder: Path,
    identity: str,
    state: Mapping[str, Mapping[str, Tensor]],
    description: str,
    schedule: Callable[[int, int], float] = lambda step, steps: 1.0,  # noqa: ARG005
    after_step: Callable[[int], None] = lambda step: None,  # noqa: ARG005
) -> None:
    """Take the steps of AdamW that are left.

    ``loss_of`` gives the error of one batch, drawn with ``rng`` (on the CPU). Saved in ``folder`` and restored in place
    are the tensors in ``state``, ``rng`` and the optimiser; InputError if the ``identity`` of what is there is another.
    ``schedule`` gives a share of the learning rate from the number of the step (from 0) and that of all steps;
    ``after_step`` gets the number of steps taken.
    """
    trained = list(weights)
    # The settings of Karras et al. 2022 (EDM, table 7) but for the rate, which is the user's.
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.01)
    first, state_file = 0, folder / STATE_FILE
    saved = load_state(state_file)
    if saved is not None:
        check_identity(saved.get("identity"), identity, state_file)
        with torch.no_grad():
            for name, tensors in state.items():
                for key, value in tensors.items():
                    value.copy_(saved[name][key])
        optimiser.load_state_dict(saved["optimiser"])
        rng.set_state(saved["rng"].cpu())
        first = saved["step"]
    last_saved = time.monotonic()
    left = range(first + 1, steps + 1)
    progress = tqdm(left, initial=first, total=steps, desc=description, unit="step", mininterval=1.0)
    for step in progress:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * schedule(step - 1, steps)
        loss = loss_of()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, max_norm=1.0)  # as DDPM (Ho et al. 2020) does
        optimiser.step()
        after_step(step)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if time.monotonic() - last_saved > SECONDS_BETWEEN_SAVES:
            rest = {"optimiser": optimiser.state_dict(), "rng": rng.get_state(), "step": step}
            save_state({"identity": identity, **state, **rest}, state_file)
            last_saved = time.monotonic()


def check_identity(recorded: str | None, expected: str, file: Path) -> None:
    """Refuse weights or a state of another training with `InputError`: the hashes of what they follow from differ."""
    if recorded != expected:
        raise InputError(f"{file} is of other settings, other images or another version; remove it to train again")


def held_out_of(training: Sequence[Sample], seed: int) -> list[int]:
    """Numbers of the images that a generator does not learn: one, chosen by ``seed``, then others of its scene.

    Others are learnt after all where less than half of the images would remain; of a single image, none is held out.
    """
    if len(training) < 2:
        return []
    number = seed % len(training)
    scene = training[number].group
    others = [place for place, sample in enumerate(training) if scene and sample.group == scene and place != number]
    return [number, *(others if 2 * (len(others) + 1) <= len(training) else [])]


class Crops:
    """Random squares of some images, as shares of full scale, with what an inpainting model is to paint."""

    def __init__(self, samples: Sequence[Sample], side: int, repaint: Repaint | None) -> None:
        self.side, self.name = side, samples[0].name
        self._images = []
        for sample in samples:
            pixels = measure_levels([sample], Sample.read).levels.scaled(sample.read())
            height, width = pixels.shape[:2]
            mask = repaint(sample.object_boxes, height, width) if repaint else np.ones((height, width), dtype=bool)
            stacked = np.concatenate([planes_of(pixels, 3), mask[None].astype(np.float32)])
            self._images.append(torch.from_numpy(padded_to(stacked, side)))

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` squares (count, 3, side, side) and their masks (count, 1, side, side): 1 where to paint."""
        squares = []
        for _ in range(count):
            image = self._images[int(torch.randint(len(self._images), (), generator=rng))]
            top, left = (int(torch.randint(size - self.side + 1, (), generator=rng)) for size in image.shape[1:])
            squares.append(image[:, top : top + self.side, left : left + self.side])
        batch = torch.stack(squares)
        return batch[:, :3], batch[:, 3:]


class HeldOut:
    """The loss of an image that is held out of learning beside that of learnt images: it tells what is memorised.

    Without an image held out, it does nothing. ``state`` belongs to the saved state of the training.
    """

    def __init__(
        self, loss: Callable[[int, torch.Generator, Crops], Tensor], learnt: Crops, held_out: Crops | None, steps: int
    ) -> None:
        self._loss, self._learnt, self._held_out = loss, learnt, held_out
        self.steps = sorted({round(steps * number / CHECKS) for number in range(CHECKS + 1)})
        names = ("learnt", "held_out") if held_out is not None else ()
        self.state = {name: torch.zeros(len(self.steps)) for name in names}
        self.measure(0)

    def measure(self, step: int) -> None:
        """After ``step`` steps."""
        if self._held_out is not None and step in self.steps:
            for losses, crops in zip(self.state.values(), (self._learnt, self._held_out), strict=True):
                with torch.no_grad():
                    losses[self.steps.index(step)] = self._loss(DRAWS, torch.Generator().manual_seed(0), crops).cpu()

    def tell(self, about: str, folder: Path) -> None:
        """Write the losses to ``folder``, and log them: as a warning if the held-out image's has risen again."""
        if self._held_out is None:
            return
        learnt, other = (losses.tolist() for losses in self.state.values())
        name, best, last = self._held_out.name, self.steps[other.index(min(other))], self.steps[-1]
        content = {"held_out": name, "steps": self.steps, "learnt_images": learnt, "held_out_image": other}
        write_bytes_atomically(folder / LOSSES_FILE, json.dumps(content, indent=1).encode())
        text = (
            f"{about}: loss of learnt images {learnt[0]:.4f}, after {last} steps {learnt[-1]:.4f}; of {name}, which is "
        )
        text += f"held out, {other[0]:.4f}, then {other[-1]:.4f}, lowest after {best} steps"
        if other[-1] - min(other) <= MEMORISES * other[0]:
            log.info("%s", text)
        else:
            cure = f"finetune_steps={best}" if best else "finetune=null"
            log.warning(
                "%s. It memorises, so that variations may repeat training images: say generator.%s, a lower "
                "generator.finetune_learning_rate, or take more training images",
                text,
                cure,
            )
