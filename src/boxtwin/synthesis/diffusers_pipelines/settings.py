"""How published models are loaded: which of their files, in which format, and what saves memory or time."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import Checkpoint
from boxtwin.synthesis.generator import Json
from boxtwin.synthesis.manifest import sha256_of

BITSANDBYTES: dict[str, dict[str, Any]] = {
    "bitsandbytes_4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},  # Dettmers et al. 2023
    "bitsandbytes_8bit": {"load_in_8bit": True},
}


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
        """Refuse what cannot work on this machine."""
        self._owner, cuda = f"{owner}: load", device.type == "cuda"
        packs = self.quantisation in BITSANDBYTES
        package = "bitsandbytes" if packs else "gguf"
        compiler = importlib.util.find_spec("triton") if cuda else shutil.which(os.environ.get("CXX", "g++"))
        if self.offload not in (None, "model", "sequential"):
            raise self._refusal("offload", "null, model or sequential is expected")
        if self.offload and not cuda:
            raise self._refusal("offload", "it needs a CUDA device")
        if self.quantisation and not packs and not Path(self.quantisation).is_file():
            raise self._refusal("quantisation", f"null, {', '.join(BITSANDBYTES)} or a .gguf file is expected")
        if self.quantisation and importlib.util.find_spec(package) is None:
            raise self._refusal("quantisation", f"it needs {package}: pip install {package}")
        if packs and not cuda:
            raise self._refusal("quantisation", "it needs a CUDA device")
        if self.compile and not compiler:
            raise self._refusal("compile", f"it needs {'triton' if cuda else 'a C++ compiler'}")

    def parameters(self) -> dict[str, Json]:
        """What changes pixels, if it is set; of a file its name and the hash of its content."""
        changed = {"load.variant": self.variant, "load.quantisation": self.quantisation}
        if self.file:
            digest = sha256_of(self.file.resolve(), self.file.stat().st_size, self.file.stat().st_mtime_ns)
            changed["load.quantisation"] = f"{self.file.name} {digest[:16]}"
        return {name: value for name, value in changed.items() if value is not None}

    def components(self, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
        """What `Checkpoint.load` is called with to load the checkpoint this way; InputError if its class cannot."""
        arguments: dict[str, Any] = {"variant": self.variant}
        if self.quantisation is None:
            return arguments
        diffusers: Any = importlib.import_module("diffusers")
        network: Any = getattr(diffusers, str(checkpoint.index().get("transformer", [None, None])[1]), None)
        if not hasattr(network, "from_single_file"):
            raise self._refusal("quantisation", f"{checkpoint.name} has no transformer that can be loaded so")
        if self.quantisation in BITSANDBYTES:
            settings = BITSANDBYTES[self.quantisation]
            settings |= {"bnb_4bit_compute_dtype": dtype} if "load_in_4bit" in settings else {}
            return arguments | {
                "quantization_config": diffusers.PipelineQuantizationConfig(
                    quant_backend=self.quantisation, quant_kwargs=settings, components_to_quantize=["transformer"]
                )
            }
        with checkpoint.errors():
            quantised = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
            where = {"config": checkpoint.place, "subfolder": "transformer", "revision": checkpoint.revision}
            transformer = network.from_single_file(
                self.quantisation, quantization_config=quantised, dtype=dtype, **where
            )
        return arguments | {"transformer": transformer}

    def place(self, pipeline: Any, device: torch.device) -> Any:
        """The pipeline, ready to draw on a device; InputError if its class cannot do what is asked for."""
        network: Any = getattr(pipeline, "unet", None) or pipeline.transformer
        if self.slicing:
            if not hasattr(network, "set_attention_slice") or getattr(pipeline.unet, "encoder_hid_proj", None):
                reason = "an IP-Adapter" if hasattr(network, "set_attention_slice") else f"a {type(network).__name__}"
                raise self._refusal("slicing", f"diffusers cannot slice the attention of {reason}")
            pipeline.enable_attention_slicing()
        if self.compile:
            network.compile()
        if self.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        elif self.offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        return pipeline

    def _refusal(self, setting: str, reason: str) -> InputError:
        return InputError(f"{self._owner}.{setting}={getattr(self, setting)} is refused: {reason}")
