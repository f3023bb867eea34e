"""A small diffusion model of the split's own training images: no download, minutes on a CPU."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from boxtwin.datasets.images import Pixels, read_image
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Json, Knowledge, Model, Request, Variation
from boxtwin.synthesis.sdedit import match_texture, noise_levels, object_mask, sdedit, strength_map
from boxtwin.synthesis.training_crops import Tone, TrainingCrops, is_grey, planes_of

MODEL = "pixel_ddpm"  # what its folder is called
WEIGHTS_FILE = "weights.safetensors"
STATE_FILE = "training_state.pt"
# A state of a few megabytes takes some hundredths of a second to save: noise against 15 s, and 15 s are little to lose.
SECONDS_BETWEEN_SAVES = 15.0

# `strength` is among those of the training: the network learns the noise levels up to it and no further.
TRAINING_SETTINGS = (
    *("strength", "tone", "channels", "unshuffle", "crop", "object_crops", "mirror"),
    *("train_steps", "batch_size", "learning_rate", "ema", "seed", "dtype"),
)
SAMPLING_SETTINGS = ("object_strength", "object_margin", "steps", "eta", "rho", "texture", "texture_window")


class PixelDDPM:
    """SDEdit with a U-Net trained from scratch on random crops, given the boxes' mask as a conditioning channel.

    Objects keep their places because the mask shows the network where they are and because noise of limited strength
    leaves their shape readable (Meng et al. 2022, "SDEdit", figure 3).

    Args:
        strength: time in [0, 1] to which the background is noised; 0 gives the source back, 1 forgets it.
        object_strength: the same inside the boxes, not above `strength`; rounded to the nearest time of the steps.
        object_margin: pixels around a box over which the strength rises from the one to the other.
        steps: denoising steps of a variation.
        eta: share of fresh noise in every step, 0 (DDIM) to 1 (ancestral).
        rho: crowding of the steps near the clean image (1: even).
        texture: 0 to 1, how far fine texture gets the local strength that it has in the source (`match_texture`).
        texture_window: width in pixels of the windows in which that strength is measured.
        tone: "log" models ``log(1 + value / mean)``, in which multiplicative speckle has the same spread in dark and
            bright areas; "linear" models the values themselves.
        channels: widths of the U-Net's levels, finest first.
        unshuffle: pixels folded into channels, so that the finest level works at 1 / unshuffle of the resolution
            (Shi et al. 2016).
        crop: side in pixels of the training crops.
        object_crops: share of the crops that show an object, where there are any.
        mirror: flip crops left to right and top to bottom at random.
        train_steps, batch_size, learning_rate: of AdamW, with a warm-up of 5 % and a cosine decay to 0.
        ema: greatest decay of the average of the weights that samples are made with.
        seed: of weights, crops and training noise. Variations have the seeds of their requests.
        device: "auto" takes a CUDA device if there is one.
        dtype: of the network's arithmetic; "auto" takes bfloat16 where the hardware computes in it.
    """

    name = "pixel_ddpm"
    learns = True
    boxes: Knowledge = "carried"
    remote = False

    def __init__(
        self,
        *,
        strength: float,
        object_strength: float,
        object_margin: int,
        steps: int,
        eta: float,
        rho: float,
        texture: float,
        texture_window: int,
        tone: str,
        channels: Sequence[int],
        unshuffle: int,
        crop: int,
        object_crops: float,
        mirror: bool,
        train_steps: int,
        batch_size: int,
        learning_rate: float,
        ema: float,
        seed: int,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        shares = {"strength": strength, "object_strength": object_strength, "eta": eta, "texture": texture}
        for setting, value in {**shares, "object_crops": object_crops, "ema": ema}.items():
            if not 0 <= value <= 1:
                raise InputError(f"pixel_ddpm: {setting} lies in [0, 1], got {value}")
        if object_strength > strength:
            raise InputError(
                f"pixel_ddpm: object_strength ({object_strength}) must not be above strength ({strength}): "
                "objects are changed as much as their surroundings, or less"
            )
        for setting, least, count in (
            ("steps", 1, steps),
            ("train_steps", 1, train_steps),
            ("batch_size", 1, batch_size),
            ("unshuffle", 1, unshuffle),
            ("texture_window", 4, texture_window),
        ):
            if count < least:
                raise InputError(f"pixel_ddpm: {setting} is at least {least}, got {count}")
        if rho <= 0:
            raise InputError(f"pixel_ddpm: rho is positive, got {rho}")
        if tone not in ("log", "linear"):
            raise InputError(f"pixel_ddpm: tone is log or linear, got {tone!r}")
        if not channels or min(channels) < 1:
            raise InputError(f"pixel_ddpm: channels needs one positive width for each level, got {list(channels)}")
        self._multiple = unshuffle * 2 ** (len(channels) - 1)
        if crop < 2 * self._multiple or crop % self._multiple:
            raise InputError(
                f"pixel_ddpm: crop is at least {2 * self._multiple} and a multiple of {self._multiple} "
                f"(unshuffle {unshuffle}, {len(channels)} levels), got {crop}"
            )
        self.strength, self.object_strength, self.object_margin = strength, object_strength, object_margin
        self.steps, self.eta, self.rho = steps, eta, rho
        self.texture, self.texture_window, self.tone = texture, texture_window, tone
        self.channels, self.unshuffle, self.crop = tuple(channels), unshuffle, crop
        self.object_crops, self.mirror = object_crops, mirror
        self.train_steps, self.batch_size, self.learning_rate = train_steps, batch_size, learning_rate
        self.ema, self.seed = ema, seed
        self.dtype = dtype
        self._device = _choose_device(device)
        self._compute_dtype = _choose_dtype(dtype, self._device)
        self._model: _Fitted | None = None
        self._revision: str | None = None

    def parameters(self) -> dict[str, Json]:
        """All settings but the device."""
        return {setting: _json(getattr(self, setting)) for setting in (*TRAINING_SETTINGS, *SAMPLING_SETTINGS)}

    # Training ---------------------------------------------------------------------------------------------------------

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train on ``training``, continue a training that was cut off, or load the finished weights from ``folder``.

        Raises:
            InputError: there are no training images, or ``folder`` holds a model of other images or settings.
        """
        if not training:
            raise InputError("pixel_ddpm needs at least one training image")
        identity = self._identity(training)
        folder = folder / f"{MODEL}-{identity[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / WEIGHTS_FILE
        with FileLock(folder / ".lock"):  # stores of several generators share one model
            if not weights.exists():
                self._train(training, folder, identity)
                (folder / STATE_FILE).unlink(missing_ok=True)
        self._model = self._load(weights, identity)
        self._revision = identity[:12]

    def model(self) -> Model | None:
        """The network trained here, by the hash of what it follows from."""
        return Model(MODEL, self._revision) if self._revision else None

    def price_usd(self, source: Sample) -> float:  # noqa: ARG002
        """Nothing."""
        return 0.0

    def _identity(self, training: Sequence[Sample]) -> str:
        """Hash of what the weights follow from: settings of the training, and names and boxes of its images."""
        content = {
            "settings": {setting: _json(getattr(self, setting)) for setting in TRAINING_SETTINGS},
            "images": [[sample.name, sample.sha256, sample.boxes.tolist()] for sample in training],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _train(self, training: Sequence[Sample], folder: Path, identity: str) -> None:
        crops = TrainingCrops(training, self.tone, self.crop, self.object_crops, self.mirror)
        rng = torch.Generator().manual_seed(self.seed)
        net = self._build(crops.channels, rng)
        average = {name: value.detach().clone() for name, value in net.state_dict().items()}
        # The settings of Karras et al. 2022 (EDM, table 7) but for the rate, which is the user's.
        optimiser = torch.optim.AdamW(net.parameters(), lr=self.learning_rate, betas=(0.9, 0.999), weight_decay=0.01)
        step = 0
        state_file = folder / STATE_FILE
        if state_file.exists():
            state = torch.load(state_file, map_location=self._device, weights_only=True)
            self._check_identity(state["identity"], identity, state_file)
            net.load_state_dict(state["net"])
            average = state["average"]
            optimiser.load_state_dict(state["optimiser"])
            rng.set_state(state["rng"].cpu())
            step = state["step"]

        net.train()
        saved = time.monotonic()
        progress = tqdm(total=self.train_steps, initial=step, desc="training pixel_ddpm", unit="step", mininterval=1.0)
        with progress:
            while step < self.train_steps:
                for group in optimiser.param_groups:
                    group["lr"] = self.learning_rate * _schedule(step, self.train_steps)
                loss = self._loss(net, crops, rng)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)  # as DDPM (Ho et al. 2020) does
                optimiser.step()
                step += 1
                # Warm-up of the average, so that short trainings forget their first weights (as tf.train.EMA has it).
                decay = min(self.ema, (1 + step) / (10 + step))
                with torch.no_grad():
                    for name, value in net.state_dict().items():
                        average[name].lerp_(value, 1 - decay)
                progress.update()
                if step % 50 == 0:
                    progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    state = {"identity": identity, "net": net.state_dict(), "average": average, "step": step}
                    _save_state({**state, "optimiser": optimiser.state_dict(), "rng": rng.get_state()}, state_file)
                    saved = time.monotonic()
        about = {
            "identity": identity,
            "channels": str(crops.channels),
            "tone": json.dumps({"scale": crops.scale, "mean": crops.mean, "std": crops.std}),
        }
        temporary = folder / f".{WEIGHTS_FILE}.{os.getpid()}.part"
        save_file({name: value.contiguous().cpu() for name, value in average.items()}, temporary, metadata=about)
        temporary.replace(folder / WEIGHTS_FILE)

    def _loss(self, net: nn.Module, crops: TrainingCrops, rng: torch.Generator) -> Tensor:
        """Mean squared error of v over one batch."""
        x_0, mask = (part.to(self._device) for part in crops.draw(self.batch_size, rng))
        # Sampling never sees more noise than `strength`, so the network need not learn to cope with it. Times are
        # spread evenly over the batch, with one random offset (Kingma et al. 2021, appendix I.1): less variance.
        offset = torch.rand((), generator=rng)
        t = ((torch.arange(self.batch_size) / self.batch_size + offset) % 1) * self.strength
        eps = torch.randn(x_0.shape, generator=rng).to(self._device)
        t = t.to(self._device)
        alpha, sigma = (level[:, None, None, None] for level in noise_levels(t))
        v = alpha * eps - sigma * x_0
        with torch.autocast(self._device.type, self._compute_dtype, enabled=self._compute_dtype != torch.float32):
            predicted = self._predict(net, alpha * x_0 + sigma * eps, mask, t)
        return F.mse_loss(predicted.float(), v)

    def _predict(self, net: nn.Module, x_t: Tensor, mask: Tensor, t: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(torch.cat([x_t, mask], dim=1), self.unshuffle)
        folded = folded.contiguous(memory_format=torch.channels_last)
        # The time embedding expects the 1,000 steps of DDPM.
        out = net(folded, t * 1000, return_dict=False)[0]
        return F.pixel_shuffle(out, self.unshuffle)

    def _build(self, image_channels: int, rng: torch.Generator | None) -> nn.Module:
        # Imported late: a cell whose variations are all on disk must not wait for diffusers.
        from diffusers import UNet2DModel

        levels = len(self.channels)
        seed = 0 if rng is None else int(torch.randint(2**62, (), generator=rng))
        # diffusers initialises from torch's global generator: borrow it and give it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: Any = UNet2DModel(  # type: ignore[no-untyped-call]
                in_channels=(image_channels + 1) * self.unshuffle**2,
                out_channels=image_channels * self.unshuffle**2,
                layers_per_block=1,
                block_out_channels=self.channels,
                down_block_types=("DownBlock2D",) * levels,
                up_block_types=("UpBlock2D",) * levels,
                add_attention=False,
                norm_num_groups=math.gcd(8, *self.channels),
            )
        net: nn.Module = made.to(self._device).to(memory_format=torch.channels_last)
        return net

    @staticmethod
    def _check_identity(found: str, expected: str, file: Path) -> None:
        if found != expected:
            raise InputError(
                f"{file} was trained with other settings or on other images; remove it to train again, or give this "
                "generator a folder of its own"
            )

    def _load(self, file: Path, identity: str) -> _Fitted:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata()
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, it is no dict
        self._check_identity(about["identity"], identity, file)
        channels = int(about["channels"])
        net = self._build(channels, None)
        net.load_state_dict(weights)
        net.requires_grad_(False).eval()
        # Child by child: diffusers' own `to` warns of casts that this network, free of special modules, is fine with.
        for child in net.children():
            child.to(self._compute_dtype)
        return _Fitted(net, channels, Tone(self.tone, **json.loads(about["tone"])))

    # Sampling ---------------------------------------------------------------------------------------------------------

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        """Make variations one by one: in a batch, their bytes would depend on how many are made together.

        Raises:
            RuntimeError: `fit` has not been called.
            InputError: a source has colour and the training images have none.
        """
        if self._model is None:
            raise RuntimeError("PixelDDPM.vary needs a model: call fit first")
        for request in requests:
            source = request.source
            pixels = self._vary_one(self._model, request)
            yield Variation(request=request, pixels=pixels, boxes=source.object_boxes, labels=source.object_labels)

    @torch.inference_mode()
    def _vary_one(self, model: _Fitted, request: Request) -> Pixels:
        pixels = read_image(request.source.path)
        if model.channels == 1 and not is_grey(pixels):
            raise InputError(
                f"{request.source.name} is a colour image, but all training images are grey: convert either of them"
            )
        height, width = pixels.shape[:2]
        mask = object_mask(request.source.boxes, height, width)
        x = model.tone.encode(planes_of(pixels, model.channels))
        # Mirrored borders up to a size that the network's levels divide, with two pixels or more at the coarsest for
        # its group norms; "symmetric" mirrors as often as it takes.
        pad = [(0, max(2 * self._multiple - size, -size % self._multiple)) for size in (height, width)]
        source = torch.from_numpy(np.pad(x, ((0, 0), *pad), mode="symmetric"))[None].to(self._device)
        condition = torch.from_numpy(np.pad(mask, pad, mode="symmetric"))[None, None].to(self._device)

        folded_mask = condition.to(self._compute_dtype)

        def predict_v(x_t: Tensor, t: float) -> Tensor:
            times = torch.full((1,), t, device=self._device, dtype=self._compute_dtype)
            return self._predict(model.net, x_t.to(self._compute_dtype), folded_mask, times).float()

        varied = sdedit(
            predict_v,
            source,
            strength_map(condition, self.strength, self.object_strength, self.object_margin),
            steps=self.steps,
            rho=self.rho,
            eta=self.eta,
            generator=torch.Generator().manual_seed(request.seed),
        )
        varied = match_texture(varied, source, self.texture_window, self.texture)
        values = model.tone.decode(varied[0, :, :height, :width].cpu().numpy())
        top = np.iinfo(pixels.dtype).max
        if is_grey(pixels):
            values = values.mean(axis=0, keepdims=True)
        stored = np.rint(np.clip(values, 0, 1) * top).astype(pixels.dtype)
        if pixels.ndim == 2:
            return stored[0]
        return np.ascontiguousarray(np.broadcast_to(stored, (3, height, width)).transpose(1, 2, 0))


class _Fitted:
    """A network ready to sample with, and what it knows of the images."""

    def __init__(self, net: nn.Module, channels: int, tone: Tone) -> None:
        self.net, self.channels, self.tone = net, channels, tone


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up over 5 % of the steps, cosine decay (Loshchilov & Hutter 2017)."""
    warmup = max(steps // 20, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _save_state(state: dict[str, Any], file: Path) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    torch.save(state, temporary)
    temporary.replace(file)


def _json(value: Any) -> Json:
    return list(value) if isinstance(value, tuple) else value


def _choose_device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"pixel_ddpm: device is auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("pixel_ddpm: device=cuda, but PyTorch finds no CUDA device; use device=auto or device=cpu")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")


def _choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype not in ("auto", "float32", "bfloat16"):
        raise InputError(f"pixel_ddpm: dtype is auto, float32 or bfloat16, got {dtype!r}")
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32
