"""Where the CPU time of one run goes, from the first import to the last file.

    python benchmarks/cell_profile.py experiment=hrsid200 dataset.root=FOLDER detector.weights=FILE split=s1

Runs `train.py` with the settings given, one thread, in a folder of its own, with clocks around the parts; they do not
overlap, and "not told apart" is what no clock covers. Time is CPU time of the main thread; what other threads take is
shown as batches, which one of them makes. Of the last training steps torch's profiler tells the operators apart
(--operators 0: none), which slows those steps; they are few.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from run_overhead import Clocks, Seconds, install, run_train

IN_A_STEP = ("forward", "loss", "backward", "clipping", "optimiser", "averaging", "rest of the step")
# Substrings of operators' names, first match counts.
KINDS = {
    "convolution_backward": "convolutions, backward",
    "mkldnn_convolution": "convolutions, forward",
    "batch_norm": "batch normalisation, both ways",
    "leaky_relu": "leaky ReLU, both ways",
    "max_pool": "max pooling, both ways",
    "adamw": "AdamW, fused",
    "copy_": "copies and casts",
}


def clock() -> Seconds:
    """Clocks of the main thread and of the wall."""
    return time.thread_time(), time.perf_counter()


def install_in_step(clocks: Clocks) -> None:
    """Clocks around the parts of a training step, and around what a fit does between steps."""
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
    from pytorch_lightning.strategies import Strategy

    from boxtwin.detector import module
    from boxtwin.mixing.datamodule import PrefetchLoader

    detector: Any = module.DetectorModule
    clocks.around(detector, "forward", "forward")
    clocks.around(module, "detection_loss", "loss")
    clocks.around(detector, "configure_gradient_clipping", "clipping")
    clocks.around(detector, "validation_step", "validation, network and NMS")
    clocks.around(Strategy, "backward", "backward")
    clocks.around(torch.optim.AdamW, "step", "optimiser")
    clocks.around(WeightAveraging, "on_train_batch_end", "averaging")
    clocks.around(ModelCheckpoint, "on_validation_end", "checkpoints")
    clocks.around(pl.LightningModule, "log_dict", "logging")
    iterate = PrefetchLoader.__iter__

    def waited(self: Any) -> Any:
        batches = iterate(self)
        while True:
            clocks.start("waiting for batches")
            try:
                batch = next(batches, None)
            finally:
                clocks.stop()
            if batch is None:
                return
            yield batch

    PrefetchLoader.__iter__ = waited  # type: ignore[method-assign]


def profile_operators(steps: int) -> dict[str, float]:
    """Let torch's profiler watch the last ``steps`` training steps; the dictionary is filled when they are over."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from boxtwin.detector import module

    detector: Any = module.DetectorModule
    shares: dict[str, float] = {}
    watching: list[Any] = []
    begin, end = detector.on_train_batch_start, detector.on_train_batch_end

    def start(self: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.trainer.max_steps - steps:
            watching.append(profile(activities=[ProfilerActivity.CPU]))
            watching[0].start()
        begin(self, batch, batch_idx)

    def stop(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        end(self, outputs, batch, batch_idx)
        if watching and self.trainer.global_step == self.trainer.max_steps:
            watched = watching.pop()
            watched.stop()
            times: dict[str, float] = defaultdict(float)
            for operator in watched.key_averages():
                kind = next(
                    (kind for part, kind in KINDS.items() if part in operator.key.lower()), "all other operators"
                )
                times[kind] += operator.self_cpu_time_total
            total = sum(times.values())
            shares.update({kind: time / total for kind, time in times.items()})

    detector.on_train_batch_start, detector.on_train_batch_end = start, stop
    torch.set_num_threads(1)
    return shares


def main() -> None:
    """Run the command, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", type=int, default=10, help="training steps whose operators are told apart")
    parser.add_argument("overrides", nargs="*", help="settings of train.py")
    settings = parser.parse_args()
    overrides = [_absolute(override) for override in settings.overrides]
    from boxtwin.config import launch

    launch.set_environment()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    clocks = Clocks(clock)
    install(clocks)
    install_in_step(clocks)
    imports = time.process_time()
    shares = profile_operators(settings.operators) if settings.operators else {}
    command = ["trainer.threads=1", "study=profile", *overrides]
    run_train(command)
    process, main_thread = time.process_time(), time.thread_time()
    (run,) = clocks.runs
    parts = {part: cpu for part, (cpu, _) in run.items()}
    parts["rest of the step"] = parts.pop("training steps", 0.0)
    parts["imports"] = imports
    parts["batches, made by another thread beside the steps"] = process - main_thread
    unknown = parts.pop("rest", 0.0)
    unknown += process - sum(parts.values()) - unknown
    total = process
    print(f"\npython train.py {' '.join(command)}\n{total:.0f} CPU-seconds\n")
    print("| part | CPU-s | % |\n|---|---|---|")
    steps = sum(parts.get(part, 0.0) for part in IN_A_STEP)
    print(f"| **training steps** | {steps:.1f} | {100 * steps / total:.1f} |")
    for part in IN_A_STEP:
        print(f"| - {part} | {parts.get(part, 0.0):.1f} | {100 * parts.get(part, 0.0) / total:.1f} |")
    for part, cpu in sorted(parts.items(), key=lambda item: -item[1]):
        if part not in IN_A_STEP:
            print(f"| {part} | {cpu:.1f} | {100 * cpu / total:.1f} |")
    print(f"| not told apart | {unknown:.1f} | {100 * unknown / total:.1f} |")
    if shares:
        print("\n| operators of a training step | % |\n|---|---|")
        for kind, share in sorted(shares.items(), key=lambda item: -item[1]):
            print(f"| {kind} | {100 * share:.1f} |")


def _absolute(override: str) -> str:
    """The run has a folder of its own, so paths are made absolute."""
    key, _, value = override.partition("=")
    return f"{key}={Path(value).resolve()}" if "/" in value and Path(value).exists() else override


if __name__ == "__main__":
    main()
