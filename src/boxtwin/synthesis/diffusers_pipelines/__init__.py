"""Published diffusion models, through diffusers."""
