"""Scripts made from vae.py, cvae.py or gan.py by a few changed lines: see docs/recipes.md."""

# What each recipe was made from.
ORIGINALS = {
    "iwae": "vae",
    "vamp_prior": "vae",
    "vq_vae": "vae",
    "laplace": "vae",
    "denoising": "vae",
    "shortcuts": "vae",
    "semi_supervised": "cvae",
    "hinge_sn": "gan",
}
