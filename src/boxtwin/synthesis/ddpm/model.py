"""The small diffusion model of the split's own training images that several generators draw with."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock
from boxtwin.hardware import choose_device, choose_dtype
from boxtwin.synthesis.ddpm.sampling import Image, Map, noise_levels
from boxtwin.synthesis.ddpm.training_crops import Tone, TrainingCrops
from boxtwin.synthesis.generator import Json, Model
from boxtwin.weights import are_usable, load_state, read_weights, save_state, write_weights

MODEL = "pixel_ddpm"  # what its folder is called
WEIGHTS_FILE = "weights.safetensors"
STATE_FILE = "training_state.pt"
# A state of a few megabytes takes some hundredths of a second to save: noise against 15 s, and 15 s are little to lose.
SECONDS_BETWEEN_SAVES = 15.0
# The mask is two-valued and far easier to learn than the image: more weight would take from the image.
MASK_WEIGHT = 0.3

MaskKind = Literal["boxes", "silhouettes"]


class ModelSettings(TypedDict):
    """What the weights follow from, apart from the images, and where and how they are computed with.

    train_strength: the network learns the noise levels up to this time in (0, 1], and knows nothing of greater ones.
    mask: what tells the network where objects are: "boxes", or "silhouettes", which also say how objects lie in them.
    joint: share of the training in which the mask is as noisy as the image and has to be guessed along with it; above
        0 the model can make both from nothing.
    tone: "log" models ``log(1 + value / mean)``, in which multiplicative speckle has the same spread in dark and bright
        areas; "linear" models the values themselves.
    channels: widths of the U-Net's levels, finest first.
    unshuffle: pixels folded into channels, so that the finest level works at 1 / unshuffle of the resolution (Shi et
        al. 2016).
    crop: side in pixels of the training crops.
    object_crops: share of the crops that show an object, where there are any.
    mirror: flip crops left to right and top to bottom at random.
    train_steps, batch_size, learning_rate: of AdamW, with a warm-up of 5 % and a cosine decay to 0.
    ema: greatest decay of the average of the weights that samples are made with.
    seed: of weights, crops and training noise.
    device: "auto" takes a CUDA device if there is one.
    dtype: of the network's arithmetic; "auto" takes bfloat16 where the hardware computes in it.
    """

    train_strength: float
    mask: str
    joint: float
    tone: str
    channels: Sequence[int]
    unshuffle: int
    crop: int
    object_crops: float
    mirror: bool
    train_steps: int
    batch_size: int
    learning_rate: float
    ema: float
    seed: int
    device: str
    dtype: str


class PixelModel:
    """A U-Net trained from scratch on random crops, given the mask of the objects as a further channel.

    Models that follow from the same settings and images share one folder, whichever generators ask for them.

    Args:
        owner: the generator that asks, for messages.
        settings: see `ModelSettings`.
    """

    def __init__(self, owner: str, settings: ModelSettings) -> None:
        missing = sorted(ModelSettings.__required_keys__ - settings.keys())
        unknown = sorted(settings.keys() - ModelSettings.__required_keys__)
        if missing or unknown:
            raise TypeError(f"{owner}: settings of the model are missing ({missing}) or unknown ({unknown})")
        self.owner = owner
        self.settings = settings
        self._check()
        self.channels, self.unshuffle = tuple(settings["channels"]), settings["unshuffle"]
        self.joint = settings["joint"] > 0
        self.device = choose_device(settings["device"], owner)
        self.compute_dtype = choose_dtype(settings["dtype"], self.device, owner, float16=False)
        self.revision: str | None = None
        self._net: nn.Module | None = None
        self._image_channels = 0
        self._tone: Tone | None = None

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return int(self.unshuffle * 2 ** (len(self.channels) - 1))

    @property
    def mask(self) -> MaskKind:
        """What its mask shows."""
        return "silhouettes" if self.settings["mask"] == "silhouettes" else "boxes"

    def parameters(self) -> dict[str, Json]:
        """All settings but the device."""
        values: dict[str, Any] = dict(self.settings)
        return {name: _json(value) for name, value in values.items() if name != "device"}

    def model(self) -> Model | None:
        """The trained network, by the hash of what it follows from."""
        return Model(MODEL, self.revision) if self.revision else None

    def _check(self) -> None:
        owner, s = self.owner, self.settings
        if not 0 < s["train_strength"] <= 1:
            raise InputError(f"{owner}: train_strength lies above 0 and up to 1, got {s['train_strength']}")
        for setting, share in (("joint", s["joint"]), ("object_crops", s["object_crops"]), ("ema", s["ema"])):
            if not 0 <= share <= 1:
                raise InputError(f"{owner}: {setting} lies in [0, 1], got {share}")
        counts = {name: s[name] for name in ("train_steps", "batch_size", "unshuffle")}
        for setting, count in counts.items():
            if count < 1:
                raise InputError(f"{owner}: {setting} is at least 1, got {count}")
        if s["mask"] not in get_args(MaskKind):
            raise InputError(f"{owner}: mask is boxes or silhouettes, got {s['mask']!r}")
        if s["tone"] not in ("log", "linear"):
            raise InputError(f"{owner}: tone is log or linear, got {s['tone']!r}")
        if not s["channels"] or min(s["channels"]) < 1:
            raise InputError(f"{owner}: channels needs one positive width for each level, got {list(s['channels'])}")
        multiple = s["unshuffle"] * 2 ** (len(s["channels"]) - 1)
        if s["crop"] < 2 * multiple or s["crop"] % multiple:
            raise InputError(
                f"{owner}: crop is at least {2 * multiple} and a multiple of {multiple} "
                f"(unshuffle {s['unshuffle']}, {len(s['channels'])} levels), got {s['crop']}"
            )

    # Training ---------------------------------------------------------------------------------------------------------

    def fit(self, training: Sequence[Sample], folder: Path) -> None:
        """Train on ``training``, continue a training that was cut off, or load the finished weights from ``folder``.

        Raises:
            InputError: there are no training images, or ``folder`` holds a model of other images or settings.
        """
        if not training:
            raise InputError(f"{self.owner} needs at least one training image")
        identity = self._identity(training)
        folder = folder / f"{MODEL}-{identity[:12]}"
        weights = folder / WEIGHTS_FILE
        with exclusive_lock(
            folder / ".lock", f"another process is training {folder}; waiting for it"
        ):  # stores of several generators share one model
            if not are_usable(weights):
                self._train(training, folder, identity)
                (folder / STATE_FILE).unlink(missing_ok=True)
        self._load(weights, identity)
        self.revision = identity[:12]

    def _identity(self, training: Sequence[Sample]) -> str:
        """Hash of what the weights follow from: settings of the training, and names and boxes of its images."""
        content = {
            "settings": self.parameters(),
            "images": [[sample.name, sample.sha256, sample.boxes.tolist()] for sample in training],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def crops(self, training: Sequence[Sample]) -> TrainingCrops:
        """What the network sees of ``training``."""
        s = self.settings
        return TrainingCrops(training, s["tone"], s["crop"], s["object_crops"], s["mirror"], self.mask)

    def _train(self, training: Sequence[Sample], folder: Path, identity: str) -> None:
        s, steps = self.settings, self.settings["train_steps"]
        crops = self.crops(training)
        rng = torch.Generator().manual_seed(s["seed"])
        net = self._build(crops.channels, rng)
        average = {name: value.detach().clone() for name, value in net.state_dict().items()}
        # The settings of Karras et al. 2022 (EDM, table 7) but for the rate, which is the user's.
        optimiser = torch.optim.AdamW(net.parameters(), lr=s["learning_rate"], betas=(0.9, 0.999), weight_decay=0.01)
        step = 0
        state_file = folder / STATE_FILE
        state = load_state(state_file)
        if state is not None:
            self._check_identity(state["identity"], identity, state_file)
            net.load_state_dict(state["net"])
            average = {name: value.to(self.device) for name, value in state["average"].items()}
            optimiser.load_state_dict(state["optimiser"])
            rng.set_state(state["rng"].cpu())
            step = state["step"]

        net.train()
        saved = time.monotonic()
        with tqdm(total=steps, initial=step, desc="training pixel_ddpm", unit="step", mininterval=1.0) as progress:
            while step < steps:
                for group in optimiser.param_groups:
                    group["lr"] = s["learning_rate"] * _schedule(step, steps)
                loss = self.loss(net, crops, rng)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)  # as DDPM (Ho et al. 2020) does
                optimiser.step()
                step += 1
                # Warm-up of the average, so that short trainings forget their first weights (as tf.train.EMA has it).
                decay = min(s["ema"], (1 + step) / (10 + step))
                with torch.no_grad():
                    for name, value in net.state_dict().items():
                        average[name].lerp_(value, 1 - decay)
                progress.update()
                if step % 50 == 0:
                    progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    state = {"identity": identity, "net": net.state_dict(), "average": average, "step": step}
                    save_state({**state, "optimiser": optimiser.state_dict(), "rng": rng.get_state()}, state_file)
                    saved = time.monotonic()
        about = {
            "identity": identity,
            "channels": str(crops.channels),
            "tone": json.dumps({"scale": crops.scale, "mean": crops.mean, "std": crops.std}),
        }
        write_weights(folder / WEIGHTS_FILE, average, about)

    def loss(self, net: nn.Module, crops: TrainingCrops, rng: torch.Generator) -> Tensor:
        """Mean squared error of v over one batch."""
        batch = self.settings["batch_size"]
        x_0, mask = (part.to(self.device) for part in crops.draw(batch, rng))
        # Sampling never sees more noise than `train_strength`, so the network need not learn to cope with it. Times are
        # spread evenly over the batch, with one random offset (Kingma et al. 2021, appendix I.1): less variance.
        offset = torch.rand((), generator=rng)
        t = ((torch.arange(batch) / batch + offset) % 1) * self.settings["train_strength"]
        if self.joint:
            return self._joint_loss(net, x_0, mask, t, rng)
        eps = torch.randn(x_0.shape, generator=rng).to(self.device)
        t = t.to(self.device)
        x_t, v = _noised(x_0, eps, t)
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            predicted = self._predict(net, x_t, mask, t)
        return F.mse_loss(predicted.float(), v)

    def _joint_loss(self, net: nn.Module, x_0: Image, mask: Map, t: Tensor, rng: torch.Generator) -> Tensor:
        # As UniDiffuser (Bao et al. 2023): one network for the image given the mask, whose noise then is 0, and for
        # both together; a plane of constants tells it the level of the mask's noise.
        together = (torch.rand(len(t), generator=rng) < self.settings["joint"]).to(self.device)
        eps, eps_mask = (torch.randn(part.shape, generator=rng).to(self.device) for part in (x_0, mask))
        t = t.to(self.device)
        t_mask = torch.where(together, t, torch.zeros_like(t))
        x_t, v = _noised(x_0, eps, t)
        mask_t, v_mask = _noised(2 * mask - 1, eps_mask, t_mask)
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            predicted = self._predict(net, x_t, mask_t, t, t_mask)
        predicted = predicted.float()
        share = together[:, None, None, None] / together.sum().clamp(min=1)
        of_mask = (share * (predicted[:, -1:] - v_mask) ** 2).sum() / mask[0].numel()
        return F.mse_loss(predicted[:, :-1], v) + MASK_WEIGHT * of_mask

    def _predict(self, net: nn.Module, x_t: Tensor, mask: Tensor, t: Tensor, t_mask: Tensor | None = None) -> Tensor:
        folded = F.pixel_unshuffle(torch.cat([x_t, mask], dim=1), self.unshuffle)
        if t_mask is not None:
            level = t_mask[:, None, None, None].to(folded).expand(-1, 1, *folded.shape[2:])
            folded = torch.cat([folded, level], dim=1)
        folded = folded.contiguous(memory_format=torch.channels_last)
        # The time embedding expects the 1,000 steps of DDPM.
        out = net(folded, t * 1000, return_dict=False)[0]
        return F.pixel_shuffle(out, self.unshuffle)

    def _build(self, image_channels: int, rng: torch.Generator | None) -> nn.Module:
        # Imported late: a run whose variations are all on disk must not wait for diffusers.
        from diffusers import UNet2DModel

        levels = len(self.channels)
        seed = 0 if rng is None else int(torch.randint(2**62, (), generator=rng))
        # diffusers initialises from torch's global generator: borrow it and give it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: Any = UNet2DModel(  # type: ignore[no-untyped-call]
                in_channels=(image_channels + 1) * self.unshuffle**2 + self.joint,
                out_channels=(image_channels + self.joint) * self.unshuffle**2,
                layers_per_block=1,
                block_out_channels=self.channels,
                down_block_types=("DownBlock2D",) * levels,
                up_block_types=("UpBlock2D",) * levels,
                add_attention=False,
                norm_num_groups=math.gcd(8, *self.channels),
            )
        net: nn.Module = made.to(self.device).to(memory_format=torch.channels_last)
        return net

    @staticmethod
    def _check_identity(found: str, expected: str, file: Path) -> None:
        if found != expected:
            raise InputError(
                f"{file} was trained with other settings or on other images; remove it to train again, or give this "
                "generator a folder of its own"
            )

    def _load(self, file: Path, identity: str) -> None:
        weights, about = read_weights(file)
        self._check_identity(about.get("identity", ""), identity, file)
        self._image_channels = int(about["channels"])
        net = self._build(self._image_channels, None)
        net.load_state_dict(weights)
        net.requires_grad_(False).eval()
        # Child by child: diffusers' own `to` warns of casts that this network, free of special modules, is fine with.
        for child in net.children():
            child.to(self.compute_dtype)
        self._net = net
        self._tone = Tone(self.settings["tone"], **json.loads(about["tone"]))

    # Use --------------------------------------------------------------------------------------------------------------

    @property
    def net(self) -> nn.Module:
        """The trained network.

        Raises:
            RuntimeError: `fit` has not been called.
        """
        if self._net is None:
            raise RuntimeError(f"{self.owner}: vary needs a model: call fit first")
        return self._net

    @property
    def tone(self) -> Tone:
        """Between pixel values and the network's units, as measured on the training images; `fit` came first."""
        if self._tone is None:
            raise RuntimeError(f"{self.owner}: vary needs a model: call fit first")
        return self._tone

    @property
    def image_channels(self) -> int:
        """1 where all training images are grey, 3 otherwise; `fit` came first."""
        return self._image_channels

    def given_mask(self, mask: Map) -> Callable[[Image, float], Image]:
        """The network's guess of v, for an image with objects where ``mask`` (shares in [0, 1]) shows them."""
        net, condition = self.net, (2 * mask - 1 if self.joint else mask).to(self.compute_dtype)
        t_mask = torch.zeros(1, device=self.device, dtype=self.compute_dtype) if self.joint else None

        def predict_v(x_t: Image, t: float) -> Image:
            times = torch.full((1,), t, device=self.device, dtype=self.compute_dtype)
            v = self._predict(net, x_t.to(self.compute_dtype), condition, times, t_mask).float()
            return v[:, :-1] if self.joint else v

        return predict_v

    def with_mask(self, both_t: Image, t: float) -> Image:
        """The guess of v for image and mask (last channel, -1 to 1) at the same level of noise."""
        times = torch.full((1,), t, device=self.device, dtype=self.compute_dtype)
        both_t = both_t.to(self.compute_dtype)
        return self._predict(self.net, both_t[:, :-1], both_t[:, -1:], times, times).float()


def _noised(x_0: Image, eps: Image, t: Tensor) -> tuple[Image, Image]:
    """``x_t`` and the ``v`` that a network has to tell from it."""
    alpha, sigma = (level[:, None, None, None] for level in noise_levels(t))
    return alpha * x_0 + sigma * eps, alpha * eps - sigma * x_0


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up over 5 % of the steps, cosine decay (Loshchilov & Hutter 2017)."""
    warmup = max(steps // 20, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _json(value: Any) -> Json:
    return list(value) if isinstance(value, tuple | list) else value
