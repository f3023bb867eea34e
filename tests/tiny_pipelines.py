"""Diffusers pipelines of a few thousand random weights, saved to folders as the real ones are.

Everything is real but the size: the same classes, files and loading code. One image of a pipeline takes milliseconds.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_parts import (
    AUTOENCODER,
    CLIP_SIDE,
    EMBEDDING,
    SIDE,
    TOKENS,
    XL,
    ddim,
    flow,
    flux_transformer,
    image_encoder,
    image_processor,
    projecting_text_encoder,
    qwen_tokenizer,
    safety_checker,
    seeded,
    t5_encoder,
    t5_tokenizer,
    text_encoder,
    tokenizer,
    unet,
    vae,
    vision_config,
)

# Their classes are not annotated.
diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")


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
            **AUTOENCODER,
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
