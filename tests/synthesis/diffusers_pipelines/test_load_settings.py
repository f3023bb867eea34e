"""The settings ``generator.load``: what they change, and what they refuse by name."""

import importlib
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_generators import make, make_source, pixels_of
from safetensors.torch import load_file

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import Checkpoint
from boxtwin.synthesis.diffusers_pipelines.loading import LoadSettings, PipelineGenerator
from boxtwin.synthesis.downloads import needs_of
from boxtwin.synthesis.generator import Request

TinyPipeline = Callable[[str], Path]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU this works")


def drawn(generator: PipelineGenerator, folder: Path) -> np.ndarray:
    generator.fit([], folder)
    (pixels,) = pixels_of(generator, Request(make_source(folder, "a.png"), 1, 5))
    return pixels


@pytest.fixture
def in_float16(tmp_path: Path, tiny_pipeline: TinyPipeline) -> Path:
    """A checkpoint whose weights are in files of the variant fp16 alone."""
    diffusers: Any = importlib.import_module("diffusers")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline("stable_diffusion"), dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16")
    return tmp_path / "fp16"


def test_a_variant_is_loaded_by_its_name_and_is_another_store(
    tmp_path: Path, tiny_pipeline: TinyPipeline, in_float16: Path
) -> None:
    generator = make("img2img", tiny_pipeline, checkpoint=str(in_float16), load={"variant": "fp16"})
    assert generator.parameters()["load.variant"] == "fp16"
    drawn(generator, tmp_path)
    stored = load_file(in_float16 / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    loaded = generator._pipeline.unet.state_dict()
    assert all(torch.equal(value.float(), loaded[name]) for name, value in stored.items())
    assert loaded["conv_in.weight"].dtype == torch.float32


def test_a_variant_that_is_not_there_is_refused(tmp_path: Path, tiny_pipeline: TinyPipeline, in_float16: Path) -> None:
    absent = make("img2img", tiny_pipeline, load={"variant": "fp16"})
    with pytest.raises(InputError, match=r"cannot be loaded: it has no fp16 files: say generator.load.variant=null"):
        absent.fit([], tmp_path)
    checkpoint = absent.checkpoints["checkpoint"]
    assert checkpoint is not None
    with pytest.raises(InputError, match=r"it has no fp16 files"):  # as a dry run asks
        needs_of(checkpoint, 2, "fp16")
    unsaid = make("img2img", tiny_pipeline, checkpoint=str(in_float16))
    with pytest.raises(InputError, match=r"fp16 cannot be loaded"):
        unsaid.fit([], tmp_path)


def test_settings_that_leave_the_pixels_are_in_no_key(tiny_pipeline: TinyPipeline) -> None:
    plain = make("img2img", tiny_pipeline).parameters()
    assert not any(name.startswith("load") for name in plain)
    sliced = make("img2img", tiny_pipeline, load={"slicing": True, "compile": True})
    assert sliced.parameters() == plain


def test_the_number_format_is_recorded_as_it_is_and_not_as_auto(tiny_pipeline: TinyPipeline) -> None:
    asked = make("img2img", tiny_pipeline, dtype="auto")
    assert asked.parameters()["dtype"] in ("float32", "bfloat16", "float16")
    resolved = str(asked.parameters()["dtype"])
    assert asked.parameters() == make("img2img", tiny_pipeline, dtype=resolved).parameters()
    assert asked.former_parameters() == {"dtype": "auto"}
    assert make("img2img", tiny_pipeline, dtype=resolved).former_parameters() == {}


def test_sliced_attention_makes_the_same_image(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    from diffusers.models.attention_processor import SlicedAttnProcessor

    sliced = make("img2img", tiny_pipeline, load={"slicing": True})
    pixels = drawn(sliced, tmp_path)
    assert any(isinstance(each, SlicedAttnProcessor) for each in sliced._pipeline.unet.attn_processors.values())
    whole = drawn(make("img2img", tiny_pipeline), tmp_path)
    assert np.abs(pixels.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(("kind", "reason"), [("redux", "a FluxTransformer2DModel"), ("ip_adapter", "an IP-Adapter")])
def test_slicing_is_refused_where_diffusers_would_ignore_it(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str, reason: str
) -> None:
    generator = make(kind, tiny_pipeline, load={"slicing": True})
    with pytest.raises(InputError, match=rf"load\.slicing=True is refused: .*{reason}"):
        generator.fit([], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on CPUs")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_a_compiled_network_makes_the_same_image(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    compiled = make("img2img", tiny_pipeline, load={"compile": True})
    pixels = drawn(compiled, tmp_path)
    assert compiled._pipeline.unet._compiled_call_impl is not None
    whole = drawn(make("img2img", tiny_pipeline), tmp_path)
    assert np.abs(pixels.astype(int) - whole).max() <= 1


def test_compiling_needs_a_compiler(tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"img2img: load\.compile=True is refused: it needs a C\+\+ compiler"):
        make("img2img", tiny_pipeline, load={"compile": True})


@needs_no_gpu
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_needs_a_gpu(tiny_pipeline: TinyPipeline, offload: str) -> None:
    with pytest.raises(InputError, match=rf"load\.offload={offload} is refused: it needs a CUDA device"):
        make("img2img", tiny_pipeline, load={"offload": offload})


@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize("kind", ["img2img", "ip_adapter", "redux", "kandinsky", "edit_klein"])
def test_offloaded_networks_make_the_same_image(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str, offload: str
) -> None:
    """Without a GPU, networks are moved within the CPU, by the same hooks; sequential offloading cannot do so."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and offload == "sequential":
        pytest.skip("needs a GPU")
    offloaded = make(kind, tiny_pipeline, device=device)
    offloaded.loading.offload = offload  # refused on a CPU
    pixels = drawn(offloaded, tmp_path)
    assert hasattr(offloaded._pipeline.vae if kind != "kandinsky" else offloaded._pipeline.unet, "_hf_hook")
    whole = drawn(make(kind, tiny_pipeline, device=device), tmp_path)
    assert np.abs(pixels.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"offload": "disk"}, "load.offload=disk is refused: it is null, model or sequential"),
        (
            {"quantisation": "int4"},
            "load.quantisation=int4 is refused: it is null, bitsandbytes_4bit",
        ),
        ({"quantisation": "nowhere.gguf"}, "load.quantisation=nowhere.gguf is refused"),
    ],
)
def test_unknown_values_are_refused(tiny_pipeline: TinyPipeline, load: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make("img2img", tiny_pipeline, load=load)


@pytest.mark.parametrize("package", ["bitsandbytes", "gguf"])
def test_quantisation_names_the_package_that_is_missing(
    tmp_path: Path, tiny_pipeline: TinyPipeline, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    (tmp_path / "q.gguf").write_bytes(b"")
    quantisation = "bitsandbytes_4bit" if package == "bitsandbytes" else str(tmp_path / "q.gguf")
    with pytest.raises(InputError, match=rf"is refused: it needs {package}: pip install {package}"):
        make("redux", tiny_pipeline, load={"quantisation": quantisation})


def test_quantised_weights_take_a_model_with_a_transformer(tiny_pipeline: TinyPipeline) -> None:
    checkpoint = Checkpoint(str(tiny_pipeline("stable_diffusion")), None, "img2img")
    settings = LoadSettings(quantisation="bitsandbytes_8bit")
    settings._owner = "img2img"
    with pytest.raises(InputError, match=r"quantisation=bitsandbytes_8bit is refused: .* has no transformer"):
        settings.components(checkpoint, torch.float32)
    of_flux = Checkpoint(str(tiny_pipeline("flux")), None, "redux")
    config = settings.components(of_flux, torch.float32)["quantization_config"]
    assert config.components_to_quantize == ["transformer"]


def test_fine_tuning_takes_whole_weights(tiny_pipeline: TinyPipeline, tmp_path: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("needs gguf")
    (tmp_path / "q.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"finetune=lora cannot be combined with load\.quantisation"):
        make("img2img", tiny_pipeline, finetune="lora", load={"quantisation": str(tmp_path / "q.gguf")})


def test_a_gguf_file_takes_the_place_of_the_transformer(tmp_path: Path, tiny_pipeline: TinyPipeline) -> None:
    gguf: Any = pytest.importorskip("gguf")
    folder = tiny_pipeline("flux")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "flux")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    packed = 0
    for name, value in weights.items():
        if fits := value.ndim == 2 and value.shape[1] % 32 == 0:  # blocks of Q8_0 have 32 weights
            content = gguf.quants.quantize(value.numpy(), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, content, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, value.numpy())
        packed += fits
    assert packed
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, write)()
    generator = make("redux", tiny_pipeline, load={"quantisation": str(tmp_path / "tiny.gguf")})
    assert re.fullmatch(r"tiny\.gguf [0-9a-f]{16}", str(generator.parameters()["load.quantisation"]))
    pixels = drawn(generator, tmp_path)
    kinds = {type(value).__name__ for value in generator._pipeline.transformer.parameters()}
    assert "GGUFParameter" in kinds
    whole = drawn(make("redux", tiny_pipeline), tmp_path)
    difference = np.abs(pixels.astype(int) - whole)
    assert 0 < difference.mean() < whole.std()
    json.dumps(generator.parameters())
