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
from safetensors.torch import save_file

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


def save_stable_diffusion_xl(folder: Path) -> Path:
    """As stable-diffusion-xl-base: two text encoders, and no image encoder or processor."""
    words = tokenizer(folder.parent / f"{folder.name}-vocabulary")
    diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        text_encoder_2=projecting_text_encoder(),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet(**XL),
        scheduler=ddim(),
    ).save_pretrained(folder)
    return folder


def save_ip_adapter(folder: Path, **settings: Any) -> Path:
    """As h94/IP-Adapter: files of adapters, small and plus, for `unet`, and an image encoder."""
    network = unet(**settings)
    image_encoder().save_pretrained(folder / "image_encoder")
    cross = [name.removesuffix(".processor") for name in network.attn_processors if "attn2" in name]
    with seeded(9):
        layers = {
            f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight": torch.randn(layer.to_k.weight.shape) / 4
            for number, layer in enumerate(network.get_submodule(name) for name in cross)
            for kind in "kv"
        }
        width = layers["ip_adapter.1.to_k_ip.weight"].shape[1]
        small = {"proj.weight": torch.randn(4 * width, EMBEDDING) / 4, "proj.bias": torch.zeros(4 * width)}
        small |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        hidden = vision_config().hidden_size
        plus = {
            "latents": torch.randn(1, 4, 64),
            "proj_in.weight": torch.randn(64, hidden) / 4,
            "proj_in.bias": torch.zeros(64),
            "proj_out.weight": torch.randn(width, 64) / 8,
            "proj_out.bias": torch.zeros(width),
            "norm_out.weight": torch.ones(width),
            "norm_out.bias": torch.zeros(width),
        }
        shapes = {"0.to_q": (64, 64), "0.to_kv": (128, 64), "0.to_out": (64, 64), "1.1": (256, 64), "1.3": (64, 256)}
        for block in range(4):
            plus |= {f"layers.{block}.{name}.weight": torch.randn(shape) / 8 for name, shape in shapes.items()}
            for norm in (f"layers.{block}.{part}" for part in ("0.norm1", "0.norm2", "1.0")):
                plus |= {f"{norm}.weight": torch.ones(64), f"{norm}.bias": torch.zeros(64)}
    for name, image in (("ip-adapter", small), ("ip-adapter-plus", plus)):
        weights = layers | {f"image_proj.{key}": value for key, value in image.items()}
        save_file(weights, folder / f"{name}.safetensors")
    return folder


def save_ip_adapter_xl(folder: Path) -> Path:
    """The same for the network of `save_stable_diffusion_xl`."""
    return save_ip_adapter(folder, **XL)


def save_controlnet(folder: Path, **settings: Any) -> Path:
    """As sd-controlnet-canny; that starts with zeros where it joins the network, and this one with more."""
    with seeded(14):
        net = diffusers.ControlNetModel.from_unet(unet(**settings), conditioning_embedding_out_channels=(4, 8))
        joins = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
        for join in joins:
            torch.nn.init.normal_(join.weight, std=0.6)
        net.controlnet_cond_embedding.conv_in.weight.data *= 8
    net.save_pretrained(folder)
    return folder


def save_controlnet_xl(folder: Path) -> Path:
    """The same for the network of `save_stable_diffusion_xl`."""
    return save_controlnet(folder, **XL)


def save_gligen(folder: Path) -> Path:
    """As gligen-1-4-generation-text-box: gates that let boxes in, closed in an untrained network, are open."""
    with seeded(15):
        network = unet(attention_type="gated")
        for name, gate in network.named_parameters():
            if "alpha" in name:
                gate.data.fill_(1.0)
    diffusers.StableDiffusionGLIGENPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder.parent / f"{folder.name}-vocabulary"),
        unet=network,
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
    diffusers.KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=image_encoder(),
        text_encoder=projecting_text_encoder(),
        tokenizer=tokenizer(folder.parent / f"{folder.name}-vocabulary"),
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        image_processor=image_processor(),
    ).save_pretrained(folder)
    return folder


def save_flux(folder: Path, pipeline: str = "FluxPipeline") -> Path:
    """As FLUX.1-dev, with two encoders of texts."""
    getattr(diffusers, pipeline)(
        scheduler=flow(),
        vae=vae(shift_factor=0.1),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder.parent / f"{folder.name}-vocabulary"),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=flux_transformer(),
    ).save_pretrained(folder)
    return folder


def save_flux_kontext(folder: Path) -> Path:
    """As FLUX.1-Kontext-dev, which edits images."""
    return save_flux(folder, "FluxKontextPipeline")


def save_flux_klein(folder: Path) -> Path:
    """As FLUX.2-klein: the text encoder's layers 9, 18 and 27 are used, and images have 64 pixels or more."""
    with seeded(13):
        autoencoder = diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
        )
        network = diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        )
        config = transformers.Qwen3Config(
            vocab_size=len(qwen_tokenizer()),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=27,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
        encoder = transformers.Qwen3ForCausalLM(config).eval()
    diffusers.Flux2KleinPipeline(
        scheduler=flow(),
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=qwen_tokenizer(),
        transformer=network,
        is_distilled=False,
    ).save_pretrained(folder)
    return folder


def save_flux_redux(folder: Path) -> Path:
    """As FLUX.1-Redux-dev: an image encoder, and what makes its output look like an encoded text."""
    size = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    with seeded(10):
        encoder = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=CLIP_SIDE,
                patch_size=6,
            )
        ).eval()
        embedder = diffusers.pipelines.flux.modeling_flux.ReduxImageEncoder(redux_dim=16, txt_in_features=EMBEDDING)
    diffusers.FluxPriorReduxPipeline(
        image_encoder=encoder,
        feature_extractor=transformers.SiglipImageProcessor(size=size),
        image_embedder=embedder,
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


def vae(**settings: Any) -> torch.nn.Module:
    """Latents of half the size."""
    with seeded(1):
        return diffusers.AutoencoderKL(
            **settings,
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
