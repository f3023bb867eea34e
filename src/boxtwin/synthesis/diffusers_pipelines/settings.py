"""How published models are loaded: which of their files, in which format, and what saves memory or time."""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import Checkpoint
from boxtwin.synthesis.generator import Json
from boxtwin.synthesis.manifest import sha256_of

BITSANDBYTES: dict[str, dict[str, Any]] = {
    "bitsandbytes_4bit": {"load_in_4bit": True},
    "bitsandbytes_8bit": {"load_in_8bit": True},
}
INSTALL = {"gguf": "pip install gguf", "bitsandbytes": "pip install bitsandbytes"}


@dataclass(kw_only=True)
class LoadSettings:
    """The settings ``generator.load`` of one generator.

    The first two change weights, and so the pixels: the store is keyed by them. The others change the order in which
    numbers are added, and with it the last bits at most, as another GPU does: like the device, they are in no key.
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
        known = f"it is null, {', '.join(BITSANDBYTES)} or a .gguf file"
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
            digest = sha256_of(self.file.resolve(), self.file.stat().st_size, self.file.stat().st_mtime_ns)
            changed["load.quantisation"] = f"{self.file.name} {digest[:16]}"
        return {name: value for name, value in changed.items() if value is not None}

    def components(self, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
        """What `Checkpoint.load` is called with to load the checkpoint this way; InputError if its class cannot."""
        if self.quantisation is None:
            return {"variant": self.variant}
        diffusers: Any = importlib.import_module("diffusers")
        network: Any = getattr(diffusers, str(checkpoint.index().get("transformer", [None, None])[1]), None)
        cannot = not hasattr(network, "from_single_file")
        self._refuse("quantisation", cannot, f"{checkpoint.name} has no transformer that can be loaded so")
        if self.file is None:
            config = dict(BITSANDBYTES[self.quantisation])
            if self.quantisation == "bitsandbytes_4bit":  # the format of Dettmers et al. 2023
                config |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
            packed = {"quant_backend": self.quantisation, "components_to_quantize": ["transformer"]}
            config = diffusers.PipelineQuantizationConfig(quant_kwargs=config, **packed)
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
