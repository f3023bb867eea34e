import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from pipeline_generators import make, make_source, pixels_of

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import INDEX
from boxtwin.synthesis.generator import Request

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "LCMScheduler",
)


def put_scheduler(folder: Path, name: str, **settings: Any) -> None:
    """Another scheduler of the same noise in place of a checkpoint's own."""
    noise = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler").config  # type: ignore[no-untyped-call]
    settings = settings if name == "PNDMScheduler" else {}
    getattr(diffusers, name).from_config(noise, **settings).save_pretrained(folder / "scheduler")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "scheduler": ["diffusers", name]}))


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of schedulers, with NumPy 2
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_takes_the_steps_that_the_strength_leaves(
    tmp_path: Path, tiny_pipeline: Callable[[str], Path], name: str
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / name))
    put_scheduler(folder, name, skip_prk_steps=True)
    sample, calls, changes = make_source(tmp_path, "a.png", (32, 32, 3)), [], []
    for strength in (0.25, 1.0):
        generator = make("img2img", tiny_pipeline, checkpoint=str(folder), steps=8, strength=strength)
        generator.fit([], tmp_path)
        assert type(generator._pipeline.scheduler).__name__ == name
        taken: list[Any] = []
        generator._pipeline.unet.register_forward_hook(lambda *given, taken=taken: taken.append(given))
        (made,) = pixels_of(generator, Request(sample, 1, 5))
        calls.append(len(taken))
        changes.append(np.abs(made.astype(int) - sample.read()).mean())
    assert calls[0] <= 3  # Heun's and the pseudo linear multistep method call the network once more
    assert calls[1] >= 8
    assert changes[0] < changes[1]


@pytest.mark.parametrize("kind", ["img2img", "controlnet", "ip_adapter_strength"])
def test_a_scheduler_that_ignores_the_strength_is_refused(
    tmp_path: Path, tiny_pipeline: Callable[[str], Path], kind: str
) -> None:
    """PNDM may take Runge-Kutta steps first: eleven calls of the network for two steps of eight."""
    folder = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "prk"))
    put_scheduler(folder, "PNDMScheduler", skip_prk_steps=False)
    with pytest.raises(InputError, match=r"prk has a scheduler that ignores strength; set .skip_prk_steps.: true"):
        make(kind, tiny_pipeline, checkpoint=str(folder)).fit([], tmp_path)
    make("text_to_image", tiny_pipeline, checkpoint=str(folder)).fit([], tmp_path)
