"""Training loop of generators that learn: saves its state, continues from it, and trains each model once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock
from boxtwin.weights import are_usable, load_state, save_state

WEIGHTS_FILE = "weights.safetensors"
STATE_FILE = "training_state.pt"
# A state of a few megabytes takes some hundredths of a second to save: little beside 15 s, and 15 s are little to lose.
SECONDS_BETWEEN_SAVES = 15.0


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
