"""Settings of generators that are constants now, and those that were added.

Runs and stores still record the constants, so that older ones are found again. Nothing here imports torch: `config`
reads it.
"""

from __future__ import annotations

from typing import Any

# Objects that are pasted.
MOST_PASTES, LEAST_PASTES = 4, 1  # number for one image
FEATHER = 8  # width of the faded margin, pixels; backgrounds are compared over it
TOLERANCE = 0.5  # means of backgrounds may differ by this many standard deviations, these by this factor plus one
# The project's own diffusion model.
EMA = 0.995  # greatest decay of the average of the weights that samples are made with
RHO = 1.5  # crowding of the denoising steps near the clean image; 1 is even
ETA, ETA_PARTS = 0.0, 0.3  # share of fresh noise in a step (0: DDIM, 1: ancestral): whole images, and parts of them
TEXTURE, TEXTURE_WINDOW = 1.0, 32  # share and width of windows, pixels, of `match_texture`
BLEND_MARGIN = 6  # pixels around the boxes over which source and new background are mixed
MOVE, TURN_ONLY, REMOVE = 0.4, 0.25, 0.1  # probability that an object moves and turns, turns in place, is removed
ADD = 3  # greatest number of objects added to an image
OBJECT_STEPS = 12  # denoising steps of every object of a mask; objects are small, so that more cost little
LEAST_LENGTH = 10  # of an object in a mask, pixels; what is shorter is noise
CERTAINTY = -0.1  # least value of the blurred mask (-1 to 1) at an object's surest point
CONTRAST = 1.5  # by which an object differs from its ground at least, standard deviations
# Published models.
ANTIALIAS = False  # as the model card of the checkpoint of `sd_variations` says, it was trained without
FINETUNE_BATCH_SIZE, LORA_RANK = 1, 4
GIVE_UP_AFTER = 5  # images in a row that fail for a reason that may recur, after which the rest is not tried
# Hosts of OpenAI's protocol.
LONGEST_WAIT = 120.0  # seconds before another try; if a host wants a longer wait, the image fails

_PASTES = {"pastes": MOST_PASTES, "min_pastes": LEAST_PASTES, "feather": FEATHER, "tolerance": TOLERANCE}
_MODEL = {"ema": EMA, "rho": RHO}
_SDEDIT = {**_MODEL, "eta": ETA, "texture": TEXTURE, "texture_window": TEXTURE_WINDOW}
_LAYOUT = {"move": MOVE, "turn_only": TURN_ONLY, "remove": REMOVE, "add": ADD}
_MASK = {"redraw": 1.0, "object_steps": OBJECT_STEPS, "least_length": LEAST_LENGTH}
_ONLINE = {"local_files_only": False}
_FINETUNE = {**_ONLINE, "finetune_batch_size": FINETUNE_BATCH_SIZE, "finetune_rank": LORA_RANK}
_CALLS = {"longest_wait": LONGEST_WAIT, "give_up_after": GIVE_UP_AFTER}
# By class, below boxtwin.synthesis: the names that they had as settings.
FORMER_SETTINGS: dict[str, dict[str, Any]] = {
    "controls.CopyPaste": _PASTES,
    "ddpm.whole_image.PixelDDPM": _SDEDIT,
    "ddpm.background.PixelBackground": {**_SDEDIT, "blend_margin": BLEND_MARGIN},
    "ddpm.sketch.PixelSketch": {**_SDEDIT, **_PASTES},
    "ddpm.layout.PixelLayout": {**_MODEL, **_LAYOUT, "eta": ETA_PARTS},
    "ddpm.joint.PixelJoint": {**_MODEL, **_MASK, "eta": ETA_PARTS, "certainty": CERTAINTY, "contrast": CONTRAST},
    "diffusers_pipelines.image_variations.SDVariations": {**_ONLINE, "antialias": ANTIALIAS},
    "diffusers_pipelines.image_variations.UnCLIP": _ONLINE,
    "diffusers_pipelines.img2img.Img2Img": _FINETUNE,
    "diffusers_pipelines.img2img.InpaintPretrained": _FINETUNE,
    "external.openai_api.OpenAIVariations": _CALLS,
    "external.openai_api.OpenAIEdit": _CALLS,
}

# Settings added later, with the value that equals the behaviour before. With this value a setting is in no run's
# identity and no store's key, so that older ones are found again.
ADDED_SETTINGS: dict[str, Any] = {"outlines": False, "angle": 0.0, "stretch": 0.0, "brightness": 0.0, "grounds": 0}


def former_settings_of(generator: str) -> dict[str, Any]:
    """The former settings of a class of generators, given by module and name, with the constants in their place."""
    return FORMER_SETTINGS.get(generator.removeprefix("boxtwin.synthesis."), {})
