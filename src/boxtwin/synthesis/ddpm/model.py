"""The small diffusion model of the split's own training images that several generators draw with."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.hardware import choose_device, choose_dtype
from boxtwin.synthesis.arrays import Boxes, Plane, Planes, is_grey, object_mask, padded_to, planes_of
from boxtwin.synthesis.constants import EMA
from boxtwin.synthesis.ddpm.sampling import Image, Map, PredictV, noise_levels
from boxtwin.synthesis.generator import Model, check_settings, hash_of, settings_of
from boxtwin.synthesis.silhouettes import draw, silhouettes_of
from boxtwin.synthesis.training import WEIGHTS_FILE, check_identity, train_once, train_steps
from boxtwin.weights import read_weights, write_weights

MODEL = "pixel_ddpm"  # the name of its folder
MASKS = ("boxes", "silhouettes")
TONES = ("log", "linear")
# The mask is two-valued and far easier to learn than the image: more weight would take from the image.
MASK_WEIGHT = 0.3


@dataclass(kw_only=True, eq=False)
class ModelSettings:
    """What the weights follow from, apart from the images, and where and how they are computed."""

    train_strength: float  # the network learns the noise levels up to this time in (0, 1], and no greater ones
    mask: str  # what shows it where objects are: "boxes", or "silhouettes", which also show how objects lie
    joint: float  # share of the training that predicts the mask too; above 0 the model can make both from noise
    tone: str  # "log": log(1 + value / mean), so that speckle has the same spread in dark and bright areas; "linear"
    channels: Sequence[int]  # widths of the U-Net's levels, finest first
    unshuffle: int  # pixels folded into channels: the finest level has 1 / unshuffle of the size (Shi et al. 2016)
    crop: int  # side of the training crops, pixels
    object_crops: float  # share of the crops that show an object, if there are any
    mirror: bool  # flip crops left to right and top to bottom at random
    train_steps: int  # of AdamW, with a warm-up of 5 % and a cosine decay to 0
    batch_size: int
    learning_rate: float
    seed: int  # of weights, crops and training noise
    device: str  # "auto" takes a CUDA device if there is one
    dtype: str  # "auto" takes bfloat16 if the hardware computes in it


class PixelModel:
    """A U-Net trained from scratch on random crops, with the mask of the objects as a further channel.

    Generators (``owner``, for messages) with the same settings and images share one model.
    """

    tone: Tone  # between pixel values and the network's units, as measured on the training images by `fit`

    def __init__(self, owner: str, settings: ModelSettings) -> None:
        self.owner, self.settings = owner, settings
        self.multiple = int(settings.unshuffle * 2 ** (len(settings.channels) - 1))  # sides of images are multiples
        self.predicts_masks = settings.joint > 0
        s, multiple = settings, self.multiple
        check_settings(owner, s, "joint", "object_crops", train_steps=1, batch_size=1, unshuffle=1)
        if not 0 < s.train_strength <= 1:
            raise InputError(f"{owner}: train_strength={s.train_strength} must be above 0 and at most 1")
        for name, value, known in (("mask", s.mask, MASKS), ("tone", s.tone, TONES)):
            if value not in known:
                raise InputError(f"{owner}: {name}={value} must be {' or '.join(known)}")
        if not s.channels or min(s.channels) < 1:
            raise InputError(f"{owner}: channels needs one positive width for each level, got {list(s.channels)}")
        if s.crop < 2 * multiple or s.crop % multiple:
            sizes = f"{2 * multiple} and a multiple of {multiple} (unshuffle {s.unshuffle}, {len(s.channels)} levels)"
            raise InputError(f"{owner}: crop={s.crop} must be at least {sizes}")
        self.device = choose_device(settings.device, owner)
        self.compute_dtype = choose_dtype(settings.dtype, self.device, owner, float16=False)
        self.image_channels = 0  # 1 if all training images are grey, 3 otherwise; 0 before `fit`
        self.revision: str | None = None
        self._net: nn.Module | None = None

    def model(self) -> Model | None:
        return Model(MODEL, self.revision) if self.revision else None

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train on ``training``, continue an interrupted training, or load the finished weights from ``folder``.

        Raises InputError if there are no training images, or ``folder`` holds a model of other images or settings.
        """
        if not training:
            raise InputError(f"{self.owner} needs at least one training image")
        settings = {"ema": EMA} | settings_of(self.settings, of=ModelSettings, without=("device",))
        images = [[sample.name, sample.sha256, sample.boxes.tolist()] for sample in training]
        identity = hash_of({"settings": settings, "images": images})
        folder = folder / f"{MODEL}-{identity[:12]}"
        self._load(train_once(folder, lambda: self._train(training, folder, identity)), identity)
        self.revision = identity[:12]

    def _train(self, training: Sequence[Sample], folder: Path, identity: str) -> None:
        s = self.settings
        crops = TrainingCrops(training, s)
        rng = torch.Generator().manual_seed(s.seed)
        net = self._build(crops.channels, int(torch.randint(2**62, (), generator=rng))).train()
        average = {name: value.detach().clone() for name, value in net.state_dict().items()}

        def update_average(step: int) -> None:
            # Warm-up of the average, so that short trainings forget their first weights (as in tf.train.EMA).
            decay = min(EMA, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, value in net.state_dict().items():
                    average[name].lerp_(value, 1 - decay)

        train_steps(
            net.parameters(),
            lambda: self.loss(net, crops, rng),
            steps=s.train_steps,
            learning_rate=s.learning_rate,
            rng=rng,
            folder=folder,
            identity=identity,
            state={"net": net.state_dict(), "average": average},
            description="training pixel_ddpm",
            schedule=_schedule,
            after_step=update_average,
        )
        tone = {"scale": crops.tone.scale, "mean": crops.tone.mean, "std": crops.tone.std}
        about = {"identity": identity, "channels": str(crops.channels), "tone": json.dumps(tone)}
        write_weights(folder / WEIGHTS_FILE, average, about)

    def loss(self, net: nn.Module, crops: TrainingCrops, rng: torch.Generator) -> Tensor:
        """Mean squared error of v over one batch."""
        batch = self.settings.batch_size
        x_0, mask = (part.to(self.device) for part in crops.draw(batch, rng))
        # Sampling never sees more noise than `train_strength`, so the network need not learn it. Times are spread
        # evenly over the batch, with one random offset (Kingma et al. 2021, appendix I.1): less variance.
        offset = torch.rand((), generator=rng)
        t = ((torch.arange(batch) / batch + offset) % 1) * self.settings.train_strength
        if not self.predicts_masks:
            t = t.to(self.device)
            x_t, v = _noised(x_0, torch.randn(x_0.shape, generator=rng).to(self.device), t)
            return F.mse_loss(self._predict_mixed(net, x_t, mask, t), v)
        # As UniDiffuser (Bao et al. 2023): one network for the image given the mask, whose noise then is 0, and for
        # both together; a plane of constants holds the level of the mask's noise.
        together = (torch.rand(len(t), generator=rng) < self.settings.joint).to(self.device)
        eps, eps_mask = (torch.randn(part.shape, generator=rng).to(self.device) for part in (x_0, mask))
        t = t.to(self.device)
        t_mask = torch.where(together, t, torch.zeros_like(t))
        x_t, v = _noised(x_0, eps, t)
        mask_t, v_mask = _noised(2 * mask - 1, eps_mask, t_mask)
        predicted = self._predict_mixed(net, x_t, mask_t, t, t_mask)
        share = together[:, None, None, None] / together.sum().clamp(min=1)
        of_mask = (share * (predicted[:, -1:] - v_mask) ** 2).sum() / mask[0].numel()
        return F.mse_loss(predicted[:, :-1], v) + MASK_WEIGHT * of_mask

    def _predict_mixed(self, *inputs: Any) -> Tensor:
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            predicted = self._predict(*inputs)
        return predicted.float()

    def _predict(self, net: nn.Module, x_t: Tensor, mask: Tensor, t: Tensor, t_mask: Tensor | None = None) -> Tensor:
        unshuffle = self.settings.unshuffle
        folded = F.pixel_unshuffle(torch.cat([x_t, mask], dim=1), unshuffle)
        if t_mask is not None:
            level = t_mask[:, None, None, None].to(folded).expand(-1, 1, *folded.shape[2:])
            folded = torch.cat([folded, level], dim=1)
        folded = folded.contiguous(memory_format=torch.channels_last)
        # The time embedding expects the 1,000 steps of DDPM.
        return F.pixel_shuffle(net(folded, t * 1000, return_dict=False)[0], unshuffle)

    def _build(self, image_channels: int, seed: int = 0) -> nn.Module:
        # Imported late: a run whose variations are all on disk must not wait for diffusers.
        from diffusers import UNet2DModel

        channels, pixels = tuple(self.settings.channels), self.settings.unshuffle**2
        # diffusers initialises from torch's global generator; the fork restores it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net: Any = UNet2DModel(  # type: ignore[no-untyped-call]
                in_channels=(image_channels + 1) * pixels + self.predicts_masks,
                out_channels=(image_channels + self.predicts_masks) * pixels,
                layers_per_block=1,
                block_out_channels=channels,
                down_block_types=("DownBlock2D",) * len(channels),
                up_block_types=("UpBlock2D",) * len(channels),
                add_attention=False,
                norm_num_groups=math.gcd(8, *channels),
            )
        built: nn.Module = net.to(self.device).to(memory_format=torch.channels_last)
        return built

    def _load(self, file: Path, identity: str) -> None:
        weights, about = read_weights(file)
        check_identity(about.get("identity"), identity, file)
        self.image_channels = int(about["channels"])
        net = self._build(self.image_channels)
        net.load_state_dict(weights)
        net.requires_grad_(False).eval()
        # Child by child: diffusers' own `to` warns of casts that this network can do.
        for child in net.children():
            child.to(self.compute_dtype)
        self._net = net
        self.tone = Tone(self.settings.tone, **json.loads(about["tone"]))

    @property
    def net(self) -> nn.Module:
        """The trained network; raises RuntimeError if `fit` has not been called."""
        if self._net is None:
            raise RuntimeError(f"{self.owner}: vary needs a model: call fit first")
        return self._net

    def given_mask(self, mask: Map) -> PredictV:
        """The network's prediction of v, for an image with objects where ``mask`` (shares in [0, 1]) shows them."""
        net, condition = self.net, (2 * mask - 1 if self.predicts_masks else mask).to(self.compute_dtype)
        t_mask = torch.zeros(1, device=self.device, dtype=self.compute_dtype) if self.predicts_masks else None

        def predict_v(x_t: Image, t: float) -> Image:
            times = torch.full((1,), t, device=self.device, dtype=self.compute_dtype)
            v = self._predict(net, x_t.to(self.compute_dtype), condition, times, t_mask).float()
            return v[:, :-1] if self.predicts_masks else v

        return predict_v

    def with_mask(self, both_t: Image, t: float) -> Image:
        """The prediction of v for image and mask (last channel, -1 to 1) at the same level of noise."""
        times = torch.full((1,), t, device=self.device, dtype=self.compute_dtype)
        both_t = both_t.to(self.compute_dtype)
        return self._predict(self.net, both_t[:, :-1], both_t[:, -1:], times, times).float()


@dataclass(frozen=True)
class Tone:
    """Pixel values, as shares of full scale, to the network's units (mean 0, standard deviation 1) and back."""

    kind: str  # one of `TONES`
    scale: float
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def measure(cls, kind: str, images: Sequence[np.ndarray]) -> Tone:
        """Take scale, mean and standard deviation from training images (values as shares of full scale)."""
        pixels = sum(image.size for image in images)
        scale = max(sum(float(image.sum(dtype=np.float64)) for image in images) / pixels, 1e-6)
        raw = cls(kind, scale)
        first = second = 0.0
        for image in images:
            x = raw.encode(image).astype(np.float64)
            first, second = first + float(x.sum()), second + float((x**2).sum())
        mean = first / pixels
        return cls(kind, scale, mean, math.sqrt(max(second / pixels - mean**2, 1e-12)))

    def encode(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        x = np.log1p(values / self.scale) if self.kind == "log" else values
        return ((x - self.mean) / self.std).astype(np.float32)

    def decode(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        values = x * self.std + self.mean
        return np.expm1(values) * self.scale if self.kind == "log" else values


def mask_of(kind: str, encoded: Planes, boxes: Boxes) -> Plane:
    """Mask that shows the network where objects are: their boxes, or their silhouettes (one of `MASKS`)."""
    height, width = encoded.shape[1:]
    if kind == "boxes":
        return object_mask(boxes, height, width)
    return draw(silhouettes_of(encoded.mean(axis=0), boxes), height, width)


class TrainingCrops:
    """Random crops of the training images, in the network's units, with the masks of their objects."""

    def __init__(self, training: Sequence[Sample], settings: ModelSettings) -> None:
        self._settings = settings
        pixels = [sample.read() for sample in training]
        self.channels = 1 if all(is_grey(image) for image in pixels) else 3
        planes = [planes_of(image, self.channels) for image in pixels]
        self.tone = Tone.measure(settings.tone, planes)
        self._images: list[Tensor] = []
        self._centres: list[tuple[int, float, float]] = []  # image, x, y of every object
        for index, (sample, values) in enumerate(zip(training, planes, strict=True)):
            encoded = self.tone.encode(values)
            mask = mask_of(settings.mask, encoded, sample.boxes)
            self._images.append(torch.from_numpy(padded_to(np.concatenate([encoded, mask[None]]), settings.crop)))
            self._centres += [(index, (x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in sample.boxes.tolist()]

    def draw(self, count: int, rng: torch.Generator) -> tuple[Image, Map]:
        """``count`` crops and their masks."""
        crops, side = [], self._settings.crop
        for _ in range(count):
            choice, x, y, mirror_x, mirror_y = torch.rand(5, generator=rng).tolist()
            if self._centres and choice < self._settings.object_crops:
                index, cx, cy = self._centres[int(torch.randint(len(self._centres), (), generator=rng))]
                left, top = cx - x * side, cy - y * side  # the object's centre falls anywhere in the crop
            else:
                index = int(torch.randint(len(self._images), (), generator=rng))
                _, height, width = self._images[index].shape
                left, top = x * (width - side + 1), y * (height - side + 1)
            image = self._images[index]
            column = min(max(int(left), 0), image.shape[2] - side)
            row = min(max(int(top), 0), image.shape[1] - side)
            crop = image[:, row : row + side, column : column + side]
            if self._settings.mirror:
                crop = crop.flip([axis for axis, chance in ((2, mirror_x), (1, mirror_y)) if chance < 0.5])
            crops.append(crop)
        batch = torch.stack(crops)
        return batch[:, :-1], batch[:, -1:]


def _noised(x_0: Image, eps: Image, t: Tensor) -> tuple[Image, Image]:
    """``x_t`` and the ``v`` that a network has to predict from it."""
    alpha, sigma = (level[:, None, None, None] for level in noise_levels(t))
    return alpha * x_0 + sigma * eps, alpha * eps - sigma * x_0


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up over 5 % of the steps, cosine decay (Loshchilov & Hutter 2017)."""
    warmup = max(steps // 20, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
