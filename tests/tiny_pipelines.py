"""Diffusers pipelines of a few thousand random weights, saved to folders as the real ones are.

Everything is real but the size: the same classes, files and loading code. One image of a pipeline takes milliseconds.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

# Their classes are not annotated.
diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

SIDE = 32  # pixels of an image as the pipelines make it: 16 latent pixels times 2
EMBEDDING = 32  # of text and images
CLIP_SIDE = 30  # pixels of what the image encoder sees


def save_stable_diffusion(folder: Path) -> Path:
    """As stable-diffusion-v1-5: text to image, with a safety checker that blackens whatever it dislikes."""
    diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder.parent / f"{folder.name}-vocabulary"),
        unet=unet(),
        scheduler=ddim(),
        safety_checker=safety_checker(),
        feature_extractor=image_processor(),
    ).save_pretrained(folder)
    return folder


def save_inpainting(folder: Path) -> Path:
    """As stable-diffusion-inpainting: the network also sees the mask and the masked image."""
    diffusers.StableDiffusionInpaintPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder.parent / f"{folder.name}-vocabulary"),
        unet=unet(in_channels=9),
        scheduler=ddim(),
        safety_checker=safety_checker(),
        feature_extractor=image_processor(),
    ).save_pretrained(folder)
    return folder


def save_image_variation(folder: Path) -> Path:
    """As sd-image-variations-diffusers."""
    diffusers.StableDiffusionImageVariationPipeline(
        vae=vae(),
        image_encoder=image_encoder(),
        unet=unet(),
        scheduler=ddim(),
        safety_checker=safety_checker(),
        feature_extractor=image_processor(),
    ).save_pretrained(folder)
    return folder


def save_stable_unclip(folder: Path) -> Path:
    """As stable-diffusion-2-1-unclip."""
    with seeded(5):
        normalizer = diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(embedding_dim=EMBEDDING)
    diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(),
        image_encoder=image_encoder(),
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer(folder.parent / f"{folder.name}-vocabulary"),
        text_encoder=text_encoder(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * EMBEDDING),
        scheduler=ddim(),
        vae=vae(),
    ).save_pretrained(folder)
    return folder


def save_kandinsky_decoder(folder: Path) -> Path:
    """As kandinsky-2-2-decoder: sides are multiples of 4, the square of what its latents are smaller by."""
    with seeded(6):
        network = diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=8,  # mean and variance
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(8, 16),
            layers_per_block=1,
            encoder_hid_dim=EMBEDDING,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=EMBEDDING,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
            class_embed_type=None,
            norm_num_groups=4,
            sample_size=SIDE // 2,
        )
        movq = diffusers.VQModel(
            block_out_channels=[32, 32],  # 32 groups are written into its norm
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            in_channels=3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            norm_type="spatial",
            num_vq_embeddings=12,
            out_channels=3,
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            vq_embed_dim=4,
        )
    scheduler = diffusers.DDPMScheduler(
        variance_type="learned_range", clip_sample=False, beta_start=0.00085, beta_end=0.012
    )
    diffusers.KandinskyV22Pipeline(unet=network, scheduler=scheduler, movq=movq).save_pretrained(folder)
    return folder


def save_kandinsky_prior(folder: Path) -> Path:
    """As kandinsky-2-2-prior."""
    with seeded(7):
        prior = diffusers.PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=8,
            embedding_dim=EMBEDDING,
            num_layers=1,
            num_embeddings=TOKENS,
        )
        # As published ones have it: random embeddings are clamped to -1 .. 1 and moved by these.
        prior.clip_std = torch.nn.Parameter(torch.ones(prior.clip_std.shape))
        text = transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(**text_settings(), projection_dim=EMBEDDING)
        ).eval()
    diffusers.KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=image_encoder(),
        text_encoder=text,
        tokenizer=tokenizer(folder.parent / f"{folder.name}-vocabulary"),
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        image_processor=image_processor(),
    ).save_pretrained(folder)
    return folder


# Parts ----------------------------------------------------------------------------------------------------------------

WORDS = ("a", "b", "i", "m", "g", "e", "ship", "sea", "image", "texture")
TOKENS = 16  # in a prompt, with its start and end


class seeded:  # noqa: N801, it reads as a verb
    """Random weights from a seed, and the global generator as it was."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.random.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        torch.random.set_rng_state(self.state)


def unet(**settings: Any) -> torch.nn.Module:
    """Two levels, the finer with cross-attention."""
    with seeded(0):
        return diffusers.UNet2DConditionModel(
            **{
                "sample_size": SIDE // 2,
                "in_channels": 4,
                "out_channels": 4,
                "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "cross_attention_dim": EMBEDDING,
                "attention_head_dim": 2,
                "norm_num_groups": 4,
                **settings,
            }
        )


def vae() -> torch.nn.Module:
    """Latents of half the size."""
    with seeded(1):
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
        )


def ddim() -> Any:
    """The noise of Stable Diffusion."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def text_settings() -> dict[str, Any]:
    """Of a text encoder that fits `tokenizer`."""
    return {
        "vocab_size": len(vocabulary()),
        "hidden_size": EMBEDDING,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "bos_token_id": len(vocabulary()) - 2,
        "eos_token_id": len(vocabulary()) - 1,
        "pad_token_id": len(vocabulary()) - 1,
    }


def text_encoder() -> torch.nn.Module:
    """Two layers."""
    with seeded(2):
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_settings())).eval()


def vision_config() -> Any:
    """Two layers, patches of 6 pixels."""
    return transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=CLIP_SIDE,
        patch_size=6,
        projection_dim=EMBEDDING,
    )


def image_encoder() -> torch.nn.Module:
    """As CLIP's."""
    with seeded(3):
        return transformers.CLIPVisionModelWithProjection(vision_config()).eval()


def image_processor() -> Any:
    """What CLIP's images are made of: one size, one centre, one spread."""
    side = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    return transformers.CLIPImageProcessor(size={"shortest_edge": CLIP_SIDE}, crop_size=side)


def safety_checker() -> torch.nn.Module:
    """One that finds every image unsafe, and so blackens it: with it, all images would be equal."""
    with seeded(4):
        config = transformers.CLIPConfig(
            text_config=text_settings(), vision_config=vision_config().to_dict(), projection_dim=EMBEDDING
        )
        checker: Any = StableDiffusionSafetyChecker(config)
        checker.eval()
    checker.concept_embeds_weights.data.fill_(-2.0)  # every likeness is above it
    return checker


def vocabulary() -> dict[str, int]:
    """Pieces of words and whole words; the last two start and end a prompt, as in CLIP."""
    letters = sorted(set("".join(WORDS)))
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [f"{''.join(merge)}" for merge in merges()]
    return {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}


def merges() -> list[tuple[str, str]]:
    """What the byte-pair encoding joins to get from letters to the whole words."""
    joined: list[tuple[str, str]] = []
    for word in WORDS:
        done = ""
        for position, letter in enumerate(word):
            piece = f"{letter}</w>" if position == len(word) - 1 else letter
            if done and (done, piece) not in joined:
                joined.append((done, piece))
            done += piece
    return joined


def tokenizer(folder: Path) -> Any:
    """One with `WORDS` for words, from files as CLIP has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges())]) + "\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
