"""A training step as shipped against the same step in plain PyTorch, in turns, and where the difference goes.

python benchmarks/training_step.py --threads 1
python benchmarks/training_step.py --threads 2 dataset=hrsid dataset.root=FOLDER split.file=SPLIT.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

from measuring import Clock, parser, prepared, report

import torch  # isort: skip  (measuring sets the environment that torch reads)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from boxtwin.commands.train import RunLogger
from boxtwin.detector.module import DetectorModule
from boxtwin.detector.training import fit
from boxtwin.hardware import torch_device
from boxtwin.mixing.datamodule import Batch
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import Prepared, make_data, make_detector
from boxtwin.tracking.mlflow_runs import Store


def bare_step(prepared: Prepared, module: DetectorModule, batch: Batch) -> Callable[[], None]:
    """Forward, loss, backward and fused AdamW on a batch in memory, and nothing else."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    device = torch_device(prepared.accelerator)
    module.to(device).train()
    batch = module.transfer_batch_to_device(batch, torch.device(device), 0)

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16, enabled=prepared.precision == "bf16-mixed")

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            raw = module(batch.images)
        module.losses(raw, batch).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def shipped(prepared: Prepared, folder: Path) -> Callable[[], None]:
    """The training of a run as train.py does it, with decoding, augmentation, averaging, logging, validation."""
    store = Store(uri=None, folder=folder / "mlruns")
    run = store.begin_run(study="benchmark", name=folder.name, identity=folder.name, params={}, tags={})
    data, module = make_data(prepared, make_plan(prepared.split, ())), make_detector(prepared)
    settings = prepared.config.trainer

    def train() -> None:
        fit(
            module,
            data,
            settings,
            log_every=min(50, prepared.steps),
            accelerator="cpu",
            precision=prepared.precision,
            logger=RunLogger(experiment_name="benchmark", tracking_uri=store.uri, run_id=run.run_id),
            checkpoints=folder / "checkpoints",
            title=folder.name,
        )

    return train


def repeated(times: int, work: Callable[[], object]) -> Clock:
    with Clock() as clock:
        for _ in range(times):
            work()
    return clock


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=80, help="steps from one validation to the next, as by default")
    options.add_argument("--rounds", type=int, default=2, help="how often the two take turns")
    arguments = options.parse_args()
    run = prepared(arguments, f"trainer.steps={arguments.steps}", "trainer.validations=1", "detector.warmup_steps=0")
    data, module = make_data(run, make_plan(run.split, ())), make_detector(run)
    batches = list(islice(data.train_dataloader(), 4))
    step = bare_step(run, module, batches[0])
    repeated(3, step)

    bare, whole = Clock(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            train = shipped(run, Path(folder) / str(number))
            with bare:
                repeated(arguments.steps // 2, step)
            with whole:
                train()
            with bare:
                repeated(arguments.steps - arguments.steps // 2, step)
    steps = arguments.rounds * arguments.steps

    few = min(arguments.steps, 10)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)  # type: ignore[no-untyped-call]
    average.update_parameters(module)
    with torch.no_grad():
        looked_at = list(data.val_dataloader())
        module.eval()
        parts = {
            "making batches": repeated(1, lambda: list(islice(data.train_dataloader(), few))),
            "averaging weights": repeated(few, lambda: average.update_parameters(module)),
            "clipping gradients": repeated(few, lambda: nn.utils.clip_grad_norm_(module.parameters(), 10.0)),
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16-mixed"):
            validation = repeated(1, lambda: [module.detect(batch) for batch in looked_at])
    rows: list[tuple[str, list[float]]] = []

    def row(name: str, clock: Clock, over: int) -> None:
        cpu, wall = clock.cpu / over / arguments.batch, clock.wall / over / arguments.batch
        per_image = bare.cpu / steps / arguments.batch, bare.wall / steps / arguments.batch
        rows.append((name, [cpu * 1e3, cpu / per_image[0], wall * 1e3, wall / per_image[1]]))

    row("bare step", bare, steps)
    row("as shipped", whole, steps)
    for name, clock in parts.items():
        row(f"- {name}", clock, few)
    row("- validation, without its metrics", validation, arguments.steps)
    known = [sum(column) for column in zip(*(values for _, values in rows[2:]), strict=True)]
    rest = [step - plain - part for step, plain, part in zip(rows[1][1], rows[0][1], known, strict=True)]
    rows.append(("- the rest (parts by themselves, so nothing overlaps)", rest))
    report(
        f"{arguments.architecture}, {arguments.image_size} pixels, batch {arguments.batch}, "
        f"{run.precision}, {steps} steps each",
        ("part", "CPU ms an image", "ratio", "wall ms an image", "ratio"),
        [[name, *values] for name, values in rows],
    )


if __name__ == "__main__":
    main()
