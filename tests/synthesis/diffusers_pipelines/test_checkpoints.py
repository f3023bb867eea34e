import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines import auto_pipeline
from pipeline_generators import make, make_source, pixels_of

from boxtwin.errors import InputError
from boxtwin.synthesis.diffusers_pipelines.checkpoints import INDEX, KINDS, PRIORS, Checkpoint, described, folder_hash
from boxtwin.synthesis.diffusers_pipelines.image_variations import SDVariations, UnCLIP
from boxtwin.synthesis.diffusers_pipelines.img2img import Edit
from boxtwin.synthesis.diffusers_pipelines.layouts import GLIGEN
from boxtwin.synthesis.generator import Model, Request

TinyPipeline = Callable[[str], Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(tmp_path: Path, tiny_pipeline: TinyPipeline) -> Path:
    """A pipeline to change."""
    return Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "copied"))


def test_a_folder_is_told_by_all_that_a_pipeline_is_loaded_from(copied: Path, tmp_path: Path) -> None:
    before = folder_hash(copied)
    assert folder_hash(Path(shutil.copytree(copied, tmp_path / "elsewhere"))) == before
    (copied / "README.md").write_text("not loaded")
    (copied / "samples").mkdir()
    (copied / "samples" / "cat.png").write_bytes(b"not loaded either")
    assert folder_hash(copied) == before

    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of one weight, no byte more or less
    weights.write_bytes(content)
    other_weight = folder_hash(copied)
    assert other_weight != before

    settings = copied / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "beta_end": 0.013}))
    other_noise = folder_hash(copied)
    assert other_noise not in (before, other_weight)
    settings.rename(settings.with_name("scheduler.json"))
    assert folder_hash(copied) not in (before, other_weight, other_noise)


def test_a_folder_says_name_and_content_and_a_model_where_it_is(copied: Path) -> None:
    checkpoint = Checkpoint(str(copied), None, "img2img")
    assert checkpoint.parameters() == {"checkpoint": "copied", "revision": folder_hash(copied)}
    assert checkpoint.model() == Model(str(copied.resolve()), folder_hash(copied))
    assert checkpoint.index()["_class_name"] == "StableDiffusionPipeline"


def test_what_is_no_checkpoint_is_refused_before_anything_is_loaded(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(InputError, match=f"holds no {INDEX}"):
        Checkpoint(str(tmp_path), None, "img2img")
    for place in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere/at/all", "a/b/c"):
        with pytest.raises(InputError, match="does not exist"):
            Checkpoint(place, None, "img2img")
    with pytest.raises(InputError, match="has no revisions"):
        Checkpoint(str(copied), "v2.0", "img2img")


def test_a_broken_folder_is_one_message(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"copied cannot be loaded.*whole folder"):
        Checkpoint(str(copied), None, "img2img").load("StableDiffusionPipeline", torch.float32)
    (copied / INDEX).write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        Checkpoint(str(copied), None, "img2img").index()


def names_in(table: str) -> set[str]:
    return {pipeline.__name__ for pipeline in getattr(auto_pipeline, table).values()}


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("FluxKontextPipeline", "edit takes"),
        ("FluxKontextInpaintPipeline", None),  # of no table, and no generator takes it
        ("QwenImageEditInpaintPipeline", "inpaint_pretrained takes"),
        ("StableDiffusionInpaintPipeline", "inpaint_pretrained takes"),
        ("KandinskyV22InpaintPipeline", None),  # no strength
        ("KandinskyV22Pipeline", "unclip takes"),
        ("KandinskyV22PriorPipeline", "unclip takes as its prior"),
        ("StableDiffusionGLIGENTextImagePipeline", None),
        ("StableDiffusionImg2ImgPipeline", "text_to_image takes"),
        ("StableDiffusionControlNetPipeline", None),
        ("StableDiffusionControlNetInpaintPipeline", None),
    ],
)
def test_a_checkpoint_is_described_by_the_generator_that_takes_it(kind: str, taken: str | None) -> None:
    assert described(kind) == f"a {kind}" + (f", the kind that generator={taken}" if taken else "")


def test_descriptions_agree_with_the_generators_and_the_tables_of_diffusers() -> None:
    for generator in (Edit, GLIGEN, SDVariations, UnCLIP):
        of_name = KINDS[generator.name]
        assert generator.kinds[: len(of_name)] == of_name  # GLIGEN takes checkpoints that name another class, too
    for kind in [*(kind for kinds in KINDS.values() for kind in kinds), *PRIORS.values()]:
        assert hasattr(diffusers, kind)
    for kind in names_in("AUTO_TEXT2IMAGE_PIPELINES_MAPPING") - set(KINDS["edit"]):
        assert described(kind).endswith("text_to_image takes") == ("Control" not in kind)
    for kind in names_in("AUTO_INPAINT_PIPELINES_MAPPING"):
        refused = "Control" in kind or "Kandinsky" in kind
        assert described(kind).endswith("inpaint_pretrained takes") == (not refused)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub's client, empty, in a folder of this test, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_a_network_the_message_names_the_other_machine(cache: Path) -> None:
    checkpoint = Checkpoint("some-owner/some-model", "v2.0", "img2img")
    assert checkpoint.parameters() == {"checkpoint": "some-owner/some-model", "revision": "v2.0"}
    message = r"some-owner/some-model \(revision v2.0\).*hf download some-owner/some-model --local-dir FOLDER"
    with pytest.raises(InputError, match=message):
        checkpoint.index()


@pytest.mark.parametrize(("kind", "setting"), [("ip_adapter", "adapter"), ("controlnet", "controlnet")])
def test_without_a_network_the_message_names_the_part_that_is_missing(
    cache: Path, tiny_pipeline: TinyPipeline, tmp_path: Path, kind: str, setting: str
) -> None:
    generator = make(kind, tiny_pipeline, **{setting: "some-owner/some-part"})
    assert generator.parameters()[setting] == {"checkpoint": "some-owner/some-part", "revision": "main"}
    message = rf"{kind}: generator.{setting}=some-owner/some-part cannot be loaded.*hf download some-owner/some-part"
    with pytest.raises(InputError, match=message):
        generator.fit([], tmp_path)


def test_an_id_in_the_cache_is_loaded_and_its_commit_known(cache: Path, tiny_pipeline: TinyPipeline) -> None:
    repository = cache / "models--some-owner--some-model"
    shutil.copytree(tiny_pipeline("stable_diffusion"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    checkpoint = Checkpoint("some-owner/some-model", None, "img2img")
    assert checkpoint.parameters() == {"checkpoint": "some-owner/some-model", "revision": "main"}
    assert checkpoint.model() == Model("some-owner/some-model", "main")
    pipeline = checkpoint.load("AutoPipelineForImage2Image", torch.bfloat16)
    assert checkpoint.model() == Model("some-owner/some-model", COMMIT)
    assert type(pipeline).__name__ == "StableDiffusionImg2ImgPipeline"
    assert pipeline.safety_checker is None
    assert pipeline.unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("ip_adapter", "adapter"), ("controlnet", "controlnet"), ("kandinsky", "prior"), ("redux", "prior")],
)
def test_a_further_checkpoint_is_that_of_its_revision_and_its_commit_is_kept(
    cache: Path, tiny_pipeline: TinyPipeline, tmp_path: Path, kind: str, setting: str
) -> None:
    folder = Path(getattr(make(kind, tiny_pipeline), setting))
    repository = cache / "models--some-owner--some-part"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1.0").write_text(COMMIT)  # main is not in the cache: nothing of it can be loaded
    generator = make(kind, tiny_pipeline, **{setting: "some-owner/some-part", f"{setting}_revision": "v1.0"})
    generator.fit([], tmp_path)
    assert generator.model() == Model(
        generator.checkpoint, f"{folder_hash(Path(generator.checkpoint))}+{setting}:{COMMIT}"
    )


@pytest.mark.parametrize(("kind", "pipeline"), [("img2img", "stable_diffusion"), ("sd_variations", "image_variation")])
def test_files_as_old_as_the_published_ones_make_the_same_images(
    tmp_path: Path, tiny_pipeline: TinyPipeline, kind: str, pipeline: str
) -> None:
    """Checkpoints of 2022 name classes and settings of CLIP otherwise, and have a tokenizer in two files."""
    import tiny_parts

    new = tiny_pipeline(pipeline)
    old = Path(shutil.copytree(new, tmp_path / "old"))
    index = json.loads((old / INDEX).read_text())
    (old / INDEX).write_text(json.dumps({**index, "feature_extractor": ["transformers", "CLIPFeatureExtractor"]}))
    processor = old / "feature_extractor" / "preprocessor_config.json"
    settings = json.loads(processor.read_text())
    side = settings["crop_size"]["height"]
    settings |= {"crop_size": side, "size": side, "feature_extractor_type": "CLIPFeatureExtractor"}
    del settings["image_processor_type"]
    processor.write_text(json.dumps(settings))
    if "tokenizer" in index:
        shutil.rmtree(old / "tokenizer")
        tiny_parts.tokenizer(old / "tokenizer")  # leaves vocab.json and merges.txt
        (old / "tokenizer" / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": tiny_parts.TOKENS})
        )
    sample, made = make_source(tmp_path, "a.png"), []
    for folder in (new, old):
        generator = make(
            kind, tiny_pipeline, checkpoint=str(folder), **({"prompt": "a ship"} if kind == "img2img" else {})
        )
        generator.fit([], tmp_path)
        made += pixels_of(generator, Request(sample, 1, 0))
    np.testing.assert_array_equal(made[0], made[1])
