"""Networks, schedulers and tokenizers of a few thousand random weights, of which `tiny_pipelines` are made."""

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


# Settings of `unet` as of Stable Diffusion XL, whose network sees both texts, their embedding and the image's size.
XL: dict[str, Any] = {
    "cross_attention_dim": 2 * EMBEDDING,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": EMBEDDING + 6 * 4,
}


def unet(**settings: Any) -> Any:
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


def flux_transformer() -> torch.nn.Module:
    """One block of either kind."""
    with seeded(11):
        return diffusers.FluxTransformer2DModel(
            in_channels=16,  # two by two latent pixels
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=EMBEDDING,
            pooled_projection_dim=EMBEDDING,
            guidance_embeds=True,
            axes_dims_rope=(4, 2, 2),
        )


AUTOENCODER: dict[str, Any] = {  # latents of half the size
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": SIDE,
}


def vae(**settings: Any) -> torch.nn.Module:
    """Latents of half the size."""
    with seeded(1):
        return diffusers.AutoencoderKL(
            **settings,
            **AUTOENCODER,
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


def flow() -> Any:
    """The noise of FLUX and what came after it."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def t5_encoder(width: int = EMBEDDING) -> torch.nn.Module:
    """Two layers that fit `t5_tokenizer`."""
    with seeded(12):
        config = transformers.T5Config(
            vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        )
        return transformers.T5EncoderModel(config).eval()


def t5_tokenizer() -> Any:
    """One with letters and `WORDS` for words."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("\u2581", -2.0)]
    pieces += [(letter, -5.0) for letter in sorted(set("".join(WORDS)))]
    return transformers.T5TokenizerFast(vocab=[*pieces, *((f"\u2581{word}", -1.0) for word in WORDS)])


def qwen_tokenizer() -> Any:
    """One with letters for words, and a template of chats."""
    letters = sorted(set("".join(WORDS)))
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    words = transformers.Qwen2TokenizerFast(
        vocab={piece: number for number, piece in enumerate([*letters, *special])},
        merges=[],
        extra_special_tokens=list(special[1:]),
    )
    words.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    return words


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


def projecting_text_encoder() -> torch.nn.Module:
    """The same with an embedding of the whole text."""
    with seeded(2):
        config = transformers.CLIPTextConfig(**text_settings(), projection_dim=EMBEDDING)
        return transformers.CLIPTextModelWithProjection(config).eval()


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


def image_encoder() -> Any:
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
