"""Tiny checkpoints of the families that diffusers starts from a noised image, by their names in its table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_parts as parts
import tiny_pipelines as saved

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")
WIDTH = 16  # of the transformers' text encoders

Save = Callable[[Path], object]


def words(folder: Path) -> Any:
    """CLIP's tokenizer."""
    return parts.tokenizer(folder.parent / f"{folder.name}-vocabulary")


def save_pag(folder: Path) -> None:
    """As Stable Diffusion, with perturbed-attention guidance."""
    diffusers.StableDiffusionPAGPipeline(
        vae=parts.vae(),
        text_encoder=parts.text_encoder(),
        tokenizer=words(folder),
        unet=parts.unet(),
        scheduler=parts.ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_xl_pag(folder: Path) -> None:
    """As Stable Diffusion XL, with the same."""
    diffusers.StableDiffusionXLPAGPipeline(
        vae=parts.vae(),
        text_encoder=parts.text_encoder(),
        text_encoder_2=parts.projecting_text_encoder(),
        tokenizer=words(folder),
        tokenizer_2=words(folder),
        unet=parts.unet(**parts.XL),
        scheduler=parts.ddim(),
    ).save_pretrained(folder)


def save_lcm(folder: Path) -> None:
    """Latent consistency: the network is told the guidance."""
    diffusers.LatentConsistencyModelPipeline(
        vae=parts.vae(),
        text_encoder=parts.text_encoder(),
        tokenizer=words(folder),
        unet=parts.unet(time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_sd3(folder: Path, pipeline: str = "StableDiffusion3Pipeline", **more: Any) -> None:
    """As Stable Diffusion 3, with three text encoders."""
    with parts.seeded(20):
        network = diffusers.SD3Transformer2DModel(
            sample_size=parts.SIDE // 2,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * parts.EMBEDDING,
            caption_projection_dim=16,
            pooled_projection_dim=2 * parts.EMBEDDING,
            pos_embed_max_size=32,
        )
    getattr(diffusers, pipeline)(
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.vae(shift_factor=0.1),
        text_encoder=parts.projecting_text_encoder(),
        tokenizer=words(folder),
        text_encoder_2=parts.projecting_text_encoder(),
        tokenizer_2=words(folder),
        text_encoder_3=parts.t5_encoder(2 * parts.EMBEDDING),
        tokenizer_3=parts.t5_tokenizer(),
        **more,
    ).save_pretrained(folder)


def save_sd3_pag(folder: Path) -> None:
    """The same with perturbed-attention guidance."""
    save_sd3(folder, "StableDiffusion3PAGPipeline", pag_applied_layers="blocks.1")


def save_kandinsky(folder: Path) -> None:
    """As kandinsky-2-2-decoder and its prior in one."""
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(
        saved.save_kandinsky_decoder(folder.parent / f"{folder.name}-decoder")
    )
    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(
        saved.save_kandinsky_prior(folder.parent / f"{folder.name}-prior")
    )
    diffusers.KandinskyV22CombinedPipeline(
        **decoder.components, **{f"prior_{name}": part for name, part in prior.components.items()}
    ).save_pretrained(folder)


def save_kandinsky3(folder: Path) -> None:
    """As kandinsky-3."""
    with parts.seeded(21):
        network = diffusers.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=8,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(8, 16),
            cross_attention_dim=8,
            encoder_hid_dim=parts.EMBEDDING,
        )
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(
        saved.save_kandinsky_decoder(folder.parent / f"{folder.name}-decoder")
    )
    diffusers.Kandinsky3Pipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5_encoder(),
        unet=network,
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        movq=decoder.movq,
    ).save_pretrained(folder)


def save_if(folder: Path) -> None:
    """As DeepFloyd IF's first stage, which draws pixels."""
    with parts.seeded(22):
        network = diffusers.UNet2DConditionModel(
            sample_size=parts.SIDE,
            in_channels=3,
            out_channels=6,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            cross_attention_dim=parts.EMBEDDING,
            encoder_hid_dim=parts.EMBEDDING,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
            norm_num_groups=4,
        )
    diffusers.IFPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5_encoder(),
        unet=network,
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", variance_type="learned_range"
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_qwen(folder: Path) -> None:
    """As Qwen-Image."""
    text: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 64}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    with parts.seeded(23):
        encoder = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ).eval()
        autoencoder = diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
        network = diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 2, 2),
        )
    diffusers.QwenImagePipeline(
        scheduler=parts.flow(),
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=parts.qwen_tokenizer(),
        transformer=network,
    ).save_pretrained(folder)


def save_z_image(folder: Path) -> None:
    """As Z-Image."""
    with parts.seeded(24):
        encoder = transformers.Qwen3Model(
            transformers.Qwen3Config(
                vocab_size=64,
                hidden_size=WIDTH,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
            )
        ).eval()
        network = diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        )
    diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.vae(shift_factor=0.1),
        text_encoder=encoder,
        tokenizer=parts.qwen_tokenizer(),
        transformer=network,
    ).save_pretrained(folder)


SAVE: dict[str, Save] = {
    "stable-diffusion": saved.save_stable_diffusion,
    "stable-diffusion-xl": saved.save_stable_diffusion_xl,
    "stable-diffusion-pag": save_pag,
    "stable-diffusion-xl-pag": save_xl_pag,
    "stable-diffusion-3": save_sd3,
    "stable-diffusion-3-pag": save_sd3_pag,
    "lcm": save_lcm,
    "if": save_if,
    "kandinsky22": save_kandinsky,
    "kandinsky3": save_kandinsky3,
    "flux": saved.save_flux,
    "qwenimage": save_qwen,
    "z-image": save_z_image,
}
