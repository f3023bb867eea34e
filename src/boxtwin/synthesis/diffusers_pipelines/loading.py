"""What all generators that draw with a pipeline of diffusers have in common, and how its models are loaded."""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from boxtwin.datasets.image_io import Pixels
from boxtwin.datasets.levels import levels_of
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.hardware import choose_device, choose_dtype
from boxtwin.synthesis.arrays import as_pixels, planes_of
from boxtwin.synthesis.diffusers_pipelines.checkpoints import Checkpoint, accepts
from boxtwin.synthesis.generator import Generator, Json, Model, Refused, Request, Variation, check_settings, settings_of
from boxtwin.synthesis.manifest import content_hash
from boxtwin.synthesis.setting_types import check_types
from boxtwin.synthesis.tiling import Tile, draw_in_tiles, tile_seed

INSTALL = {"gguf": "pip install gguf", "bitsandbytes": "pip install bitsandbytes"}
BITSANDBYTES = ("bitsandbytes_4bit", "bitsandbytes_8bit")
Squares = Float[Tensor, "n channels side side"]  # shares of full scale


@dataclass(kw_only=True)
class LoadSettings:
    """The settings ``generator.load`` of one generator.

    The first two change weights, and so pixels: the store is keyed by them. The others change the last bits of numbers
    at most, as another GPU does, and are in no key.
    """

    variant: str | None = None  # what names of the checkpoint's files end in, such as fp16
    quantisation: str | None = None  # of a transformer: a .gguf file, or one of `BITSANDBYTES`
    offload: str | None = None  # model: one network at a time is on the GPU; sequential: one layer at a time
    slicing: bool = False  # attention is computed in slices
    compile: bool = False  # torch.compile of the network that denoises

    @property
    def file(self) -> Path | None:
        """The file of a quantised transformer."""
        return Path(self.quantisation) if self.quantisation and self.quantisation not in BITSANDBYTES else None

    def check(self, owner: str, device: torch.device) -> None:
        """Refuse what cannot work on this machine; ``owner`` is the generator's name."""
        self._owner, cuda, needs_cuda = owner, device.type == "cuda", "it needs a CUDA device"
        self._refuse("offload", self.offload not in (None, "model", "sequential"), "it is null, model or sequential")
        self._refuse("offload", bool(self.offload) and not cuda, needs_cuda)
        known = f"it is null, {', '.join(BITSANDBYTES)} or a .gguf file that exists"
        self._refuse("quantisation", self.file is not None and not self.file.is_file(), known)
        package = "gguf" if self.file else "bitsandbytes"
        missing = self.quantisation is not None and find_spec(package) is None
        self._refuse("quantisation", missing, f"it needs {package}: {INSTALL[package]}")
        self._refuse("quantisation", self.quantisation in BITSANDBYTES and not cuda, needs_cuda)
        compiler = find_spec("triton") if cuda else shutil.which(os.environ.get("CXX", "g++"))
        self._refuse("compile", self.compile and not compiler, f"it needs {'triton' if cuda else 'a C++ compiler'}")

    def parameters(self) -> dict[str, Json]:
        """What changes pixels, if it is set; of a file its name and the hash of its content."""
        changed = {"load.variant": self.variant, "load.quantisation": self.quantisation}
        if self.file:
            changed["load.quantisation"] = f"{self.file.name} {content_hash(self.file)[:16]}"
        return {name: value for name, value in changed.items() if value is not None}

    def components(self, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
        """What `Checkpoint.load` is called with to load the checkpoint this way; InputError if its class cannot."""
        if self.quantisation is None:
            return {"variant": self.variant}
        diffusers: Any = import_module("diffusers")
        network: Any = getattr(diffusers, str(checkpoint.index().get("transformer", [None, None])[1]), None)
        cannot = not hasattr(network, "from_single_file")
        self._refuse("quantisation", cannot, f"{checkpoint.name} has no transformer that can be loaded so")
        if self.file is None:
            # Four bits in the format of Dettmers et al. 2023.
            in_4_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
            packed = in_4_bit if self.quantisation == "bitsandbytes_4bit" else {"load_in_8bit": True}
            config = diffusers.PipelineQuantizationConfig(self.quantisation, packed, ["transformer"])
            return {"variant": self.variant, "quantization_config": config}
        with checkpoint.errors():
            config = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
            where = {"config": checkpoint.place, "subfolder": "transformer", "revision": checkpoint.revision}
            transformer = network.from_single_file(self.quantisation, quantization_config=config, dtype=dtype, **where)
        return {"variant": self.variant, "transformer": transformer}

    def place(self, pipeline: Any, device: torch.device) -> Any:
        """The pipeline, ready to draw on a device; InputError if its class cannot do what is asked for."""
        network: Any = getattr(pipeline, "unet", None) or pipeline.transformer
        if self.slicing:
            kind = "an IP-Adapter" if getattr(network, "encoder_hid_proj", None) else f"a {type(network).__name__}"
            cannot = "IP" in kind or not hasattr(network, "set_attention_slice")
            self._refuse("slicing", cannot, f"diffusers cannot slice the attention of {kind}")
            pipeline.enable_attention_slicing()
        if self.compile:
            network.compile()
        offload = {"model": "enable_model_cpu_offload", "sequential": "enable_sequential_cpu_offload"}
        getattr(pipeline, offload.get(str(self.offload), "to"))(device=device)
        return pipeline

    def _refuse(self, setting: str, wrong: bool, reason: str) -> None:
        if wrong:
            raise InputError(f"{self._owner}: load.{setting}={getattr(self, setting)} is refused: {reason}")


class NotDrawnError(Exception):
    """One image cannot be drawn: a reason, and whether it may recur, as `Refused` has them."""


@dataclass(kw_only=True, eq=False)
class PipelineGenerator(Generator):
    """A generator that draws with a pipeline of diffusers.

    Grey images go in as three equal channels and come back as their mean; 16 bits go in as shares of full scale. Large
    images go through in overlapping squares of the model's size (`boxtwin.synthesis.tiling`), without resampling.

    Each square has a CPU generator seeded by its request and its number, so that an image does not depend on what else
    is made. Its last bits may depend on how many of its squares are drawn at once.
    """

    checkpoint: str  # folder, or id on the Hugging Face hub
    revision: str | None  # of an id: branch, tag or commit
    steps: int  # denoising steps from pure noise; with a strength, that share of them is taken
    guidance_scale: float  # weight of classifier-free guidance (Ho & Salimans 2022); 1 is without, and twice as fast
    tile: int | None  # side of the squares in pixels, rounded up to what the model can do; None: the model's own
    overlap: int  # pixels that squares share, at most half of `tile`
    batch_size: int  # squares of one image that are drawn at once
    device: str  # "auto" takes a CUDA device if there is one
    dtype: str  # "auto" takes bfloat16 if the hardware computes in it, else float16 on GPUs and float32 on CPUs
    load: dict[str, Any] | None = None  # see `LoadSettings`

    kinds: ClassVar[tuple[str, ...]] = ()  # classes of the checkpoints that fit; none: all that `pipeline_class` loads
    pipeline_class: ClassVar[str | None] = None  # of diffusers; None: the checkpoint's own
    prior_kinds: ClassVar[tuple[str, ...]] = ()  # the same of the checkpoint of the setting `prior`
    without: ClassVar[tuple[str, ...]] = ()  # components of the checkpoint that are not loaded
    one_by_one: ClassVar[bool] = False  # whether a call of the pipeline draws one square

    def __post_init__(self) -> None:
        check_settings(self.name, self, steps=1, batch_size=1, overlap=0, guidance_scale=0)
        if self.tile is not None and self.tile < (least := max(2 * self.overlap, 8)):
            raise InputError(f"{self.name}: tile={self.tile} must be at least {least} (8, and twice the overlap)")
        several = self.one_by_one and self.batch_size != 1
        self.refuse(several, f"it draws one square at a time: say generator.batch_size=1, not {self.batch_size}")
        given = getattr(self, "strength", None)  # of generators that may start from the source
        strength = 1 if given is None else given
        self.refuse(not 0 < strength <= 1, f"strength lies in (0, 1], got {strength}")
        no_step = int(self.steps * strength) < 1  # diffusers rounds down
        self.refuse(no_step, f"strength={strength} of steps={self.steps} is no step; raise either")
        self._checkpoint = Checkpoint(self.checkpoint, self.revision, self.name, without=self.without)
        # All that it draws with, by the settings that name them.
        self.checkpoints: dict[str, Checkpoint | None] = {"checkpoint": self._checkpoint}
        self._device = choose_device(self.device, self.name)
        self.compute_dtype = choose_dtype(self.dtype, self._device, self.name)
        self.dtype_name = str(self.compute_dtype).removeprefix("torch.")
        check_types(LoadSettings, self.load or {}, "generator.load")
        self.loading = LoadSettings(**(self.load or {}))
        self.loading.check(self.name, self._device)
        self._pipeline: Any = None
        self._prior: Any = None  # another pipeline, which sees the source, of generators with a setting `prior`
        self._learnt: Path | None = None  # weights that were fine-tuned
        self._side, self._kind = 0, ""  # of its squares, and the class of its checkpoint

    def version(self, training: Sequence[Sample]) -> int:
        """2 of images of 16 bit, whose black and full-scale values are measured; before, all of it was shown."""
        return 2 if any(sample.bits > 8 for sample in training) else 1

    def parameters(self) -> dict[str, Json]:
        unused = ("device", "load", *(f"{setting}_revision" for setting in self.checkpoints))
        others = {name: other.parameters() if other else None for name, other in self.checkpoints.items()}
        loaded = {"dtype": self.dtype_name, **self.loading.parameters()}
        return settings_of(self, without=unused) | others | self._checkpoint.parameters() | loaded

    def former_parameters(self) -> dict[str, Json]:
        return {"dtype": "auto"} if self.dtype == "auto" else {}

    def model(self) -> Model | None:
        """The checkpoint: id and commit, or folder and hash of its content; then those of others and what it learnt."""
        if self._pipeline is None:
            return None
        others = [(name, other) for name, other in self.checkpoints.items() if other and other is not self._checkpoint]
        more = [f"+{name}:{other.model().revision}" for name, other in others]
        more += [f"+{self._learnt.parent.name}"] if self._learnt else []
        return Model(self._checkpoint.model().id, f"{self._checkpoint.model().revision}{''.join(more)}")

    def check_early(self) -> None:
        """Refuse a folder with a checkpoint of another kind; one at the hub is looked at when it is loaded."""
        if self._checkpoint.folder is not None:
            self._check_kind()

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Load or download the checkpoint; raises InputError if it is missing or of another kind than is needed."""
        if self._pipeline is None:
            # Layers are made with random weights before they are read: that must not move the global generator.
            with torch.random.fork_rng(devices=[]):
                self._check_kind()
                pipeline = self._load(training, folder)
            if getattr(self, "strength", None) and not pipeline.scheduler.config.get("skip_prk_steps", True):
                cure = 'set "skip_prk_steps": true in a copy of its scheduler/scheduler_config.json'
                raise InputError(f"{self.name}: {self.checkpoint} has a scheduler that ignores strength; {cure}")
            self._side = self._choose_side(pipeline)
            self._pipeline = self.loading.place(pipeline, self._device)

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:
        for request in requests:
            source = request.source
            try:
                varied = self._vary_one(request, source.read())
            except NotDrawnError as error:
                yield Refused(request, *error.args)
                continue
            known = len(source.object_boxes) if self.boxes != "none" else 0
            boxes, labels = source.object_boxes[:known], source.object_labels[:known]
            yield Variation(request, varied, boxes, labels, record={"dtype": self.dtype_name})

    def refuse(self, wrong: object, reason: str) -> None:
        """Raise InputError with the generator's name and the ``reason`` if something is ``wrong``."""
        if wrong:
            raise InputError(f"{self.name}: {reason}")

    def _other(self, setting: str, *parts: str, without: Sequence[str] = ()) -> Checkpoint:
        """The checkpoint that a setting names; see `Checkpoint` for the rest."""
        place, revision = getattr(self, setting), getattr(self, f"{setting}_revision")
        self.checkpoints[setting] = other = Checkpoint(place, revision, self.name, parts, without, setting)
        return other

    def _check_kind(self) -> None:
        """Find the class of the checkpoint, or raise InputError if the generator cannot use it."""
        self._kind = self._checkpoint.check_kind(*self.kinds)

    def _load(self, training: Sequence[Sample], folder: Path) -> Any:  # noqa: ARG002, most learn nothing
        """The pipeline."""
        return self._load_published(self.compute_dtype)

    def _load_published(self, dtype: torch.dtype, **components: Any) -> Any:
        """The pipeline as it was published, with ``components`` in place of its own."""
        if prior := self.checkpoints.get("prior"):
            self._prior = prior.load(prior.check_kind(*self.prior_kinds), dtype).to(self._device)
        components |= self.loading.components(self._checkpoint, dtype)
        return self._checkpoint.load(self.pipeline_class or self._kind, dtype, **components)

    @abstractmethod
    def _inputs(self, squares: Squares) -> dict[str, Any]:
        """What the pipeline is called with to draw some squares, beside size, steps, guidance and randomness."""

    def _vary_one(self, request: Request, pixels: Pixels, *more: Float[np.ndarray, "_ h w"]) -> Pixels:
        """The image that the pipeline draws of ``pixels``; ``more`` are further planes that `_inputs` gets."""
        levels = levels_of(request.source, pixels)
        planes = np.concatenate([planes_of(levels.scaled(pixels), 3), *more])

        def draw(tiles: Sequence[Tile]) -> list[np.ndarray]:
            squares = torch.from_numpy(np.stack([tile.values.transpose(2, 0, 1) for tile in tiles]))
            # Some pipelines would make images of their own size otherwise.
            sizes = ("height", "width") if accepts(self._pipeline, "height") else ()
            output = self._pipeline(
                **dict.fromkeys(sizes, self._side),
                num_inference_steps=self.steps,
                generator=[torch.Generator().manual_seed(tile_seed(request.seed, tile.number)) for tile in tiles],
                output_type="np",
                **{"guidance_scale": self.guidance_scale, **self._inputs(squares)},
            )
            drawn = np.asarray(output.images)
            if not np.isfinite(drawn).all():  # float16 ends at 65504, and some autoencoders go beyond
                reason = f"no numbers: {self.checkpoint} made values that are none, computing in {self.dtype_name}"
                raise NotDrawnError(f"{reason}; try generator.dtype=bfloat16 or float32", True)
            return list(drawn)

        with torch.inference_mode():
            values = draw_in_tiles(
                planes.transpose(1, 2, 0), draw, side=self._side, overlap=self.overlap, batch_size=self.batch_size
            )
        return levels.restored(as_pixels(values, pixels))

    def _choose_side(self, pipeline: Any) -> int:
        """Of the squares: the user's or the model's own, as a multiple of what the model can do."""
        scale, side = int(getattr(pipeline, "vae_scale_factor", 1)), self.tile  # without any, the model draws pixels
        processor = getattr(pipeline, "image_processor", None)
        least = 1 if processor is None else int(processor.config.vae_scale_factor)
        multiple = max(least, scale * getattr(pipeline, "patch_size", 1))
        if (movq := getattr(pipeline, "movq", None)) is not None:  # Kandinsky's, which rounds sides up to the square
            scale = 2 ** (len(movq.config.block_out_channels) - 1)
            multiple = scale**2
        if side is None or scale == 1:  # models that draw pixels draw images of one size only
            unet = getattr(pipeline, "unet", None)
            size: Any = unet.config.sample_size if unet is not None else getattr(pipeline, "default_sample_size", None)
            self.refuse(size is None, f"{self.checkpoint} has no size of its own; set generator.tile=PIXELS")
            side = int(max(size) if isinstance(size, list | tuple) else size) * scale
            only = f"{self.checkpoint} draws {side} x {side} pixels only: say generator.tile={side}"
            self.refuse(self.tile not in (None, side), only)
        side = -(-side // multiple) * multiple
        self.refuse(2 * self.overlap > side, f"overlap={self.overlap} is above {side // 2}, half of a square")
        return side


def as_pictures(squares: Squares) -> list[Image.Image]:
    """Squares in 8 bits, for pipelines that take nothing else."""
    pixels = (squares[:, :3].permute(0, 2, 3, 1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(square) for square in pixels]
